// The product of two vectors, such as a gradient with itself: one pass over memory and a short second one over the blocks' sums.
//
// Products are added up in double, where those of smaller types neither overflow nor vanish; a library's matrix product would give the
// whole sum to one block.

template <typename T, int BLOCK> __global__ void inner_product(const T* x, const T* y, double* sums, i64 n) {
  typedef typename Wide<T>::type W;
  constexpr int LANES = Pack<T>::lanes, AHEAD = 2;
  double sum = 0;
  bool whole = aligned(x) && aligned(y);
  i64 packs = n / LANES, step = thread_count();
  for (i64 i = thread_index(); i < packs; i += AHEAD * step) {
    Pack<T> a[AHEAD], b[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (i + u * step < packs) {
        load_pack(a[u], x + (i + u * step) * LANES, whole, LANES);
        load_pack(b[u], y + (i + u * step) * LANES, whole, LANES);
      }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (i + u * step >= packs) break;
#pragma unroll
      for (int k = 0; k < LANES; ++k) sum = fma(widened(static_cast<W>(a[u].item[k])), widened(static_cast<W>(b[u].item[k])), sum);
    }
  }
  for (i64 i = packs * LANES + thread_index(); i < n; i += thread_count())
    sum = fma(widened(static_cast<W>(x[i])), widened(static_cast<W>(y[i])), sum);
  sum = team_reduce<BLOCK>(sum, Plus());
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The blocks' sums by one block, each thread's in the order of the blocks.
template <typename T, int BLOCK> __global__ void inner_product_total(const double* sums, i64 n, T* total) {
  double sum = 0;
  for (i64 i = threadIdx.x; i < n; i += BLOCK) sum += sums[i];
  sum = team_reduce<BLOCK>(sum, Plus());
  if (threadIdx.x == 0) *total = static_cast<T>(sum);
}
