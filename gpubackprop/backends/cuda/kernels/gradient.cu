// What is asked of a gradient before a step: the sum of its squares, and whether it has elements that are not finite. One pass
// over memory and a short second one over the blocks' sums; the host learns nothing and waits for nothing.
//
// Squares are added up in double, where those of smaller types neither overflow nor vanish.

template <typename W> __device__ __forceinline__ void add_square(W x, double& sum, int& bad) {
  bad |= !(x - x == W(0));
  double wide = widened(x);
  sum = fma(wide, wide, sum);
}

template <typename T, int BLOCK> __global__ void square_norm(const T* grad, double* sums, int* counts, i64 n) {
  typedef typename Wide<T>::type W;
  constexpr int LANES = Pack<T>::lanes, AHEAD = 4;
  double sum = 0;
  int bad = 0;
  bool whole = aligned(grad);
  i64 packs = n / LANES, step = thread_count();
  for (i64 i = thread_index(); i < packs; i += AHEAD * step) {
    Pack<T> ahead[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (i + u * step < packs) load_pack(ahead[u], grad + (i + u * step) * LANES, whole, LANES);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (i + u * step >= packs) break;
#pragma unroll
      for (int k = 0; k < LANES; ++k) add_square(static_cast<W>(ahead[u].item[k]), sum, bad);
    }
  }
  for (i64 i = packs * LANES + thread_index(); i < n; i += thread_count()) add_square(static_cast<W>(grad[i]), sum, bad);
  sum = team_reduce<BLOCK>(sum, Plus());
  bad = team_reduce<BLOCK>(bad, Plus());
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    counts[blockIdx.x] = bad;
  }
}

// The blocks' sums by one block, each thread's in the order of the blocks.
template <int BLOCK> __global__ void square_norm_total(const double* sums, const int* counts, i64 n, double* squares, bool* nonfinite) {
  double sum = 0;
  int bad = 0;
  for (i64 i = threadIdx.x; i < n; i += BLOCK) {
    sum += sums[i];
    bad |= counts[i];
  }
  sum = team_reduce<BLOCK>(sum, Plus());
  bad = team_reduce<BLOCK>(bad != 0 ? 1 : 0, Plus());
  if (threadIdx.x == 0) {
    *squares = sum;
    *nonfinite = bad != 0;
  }
}
