// The product of two vectors, such as a gradient with itself: one pass over memory and a short second one over the blocks' sums.
//
// Products are added up in double, where those of smaller types neither overflow nor vanish; a library's matrix product would give the
// whole sum to one block.

template <typename T, int BLOCK> __global__ void inner_product(const T* x, const T* y, double* sums, i64 n) {
  typedef typename Wide<T>::type W;
  constexpr int LANES = Pack<T>::lanes;
  double sum = 0;
  bool whole = aligned(x) && aligned(y);
  i64 packs = n / LANES;
  for (i64 i = thread_index(); i < packs; i += thread_count()) {
    Pack<T> a, b;
    load_pack(a, x + i * LANES, whole, LANES);
    load_pack(b, y + i * LANES, whole, LANES);
#pragma unroll
    for (int k = 0; k < LANES; ++k) sum = fma((double)static_cast<W>(a.item[k]), (double)static_cast<W>(b.item[k]), sum);
  }
  for (i64 i = packs * LANES + thread_index(); i < n; i += thread_count())
    sum = fma((double)static_cast<W>(x[i]), (double)static_cast<W>(y[i]), sum);
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
