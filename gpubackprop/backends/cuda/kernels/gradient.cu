// What is asked of a gradient before a step: the sum of its squares, and whether it has elements that are not finite. One pass
// over memory and a short second one over the blocks' sums; the host learns nothing and waits for nothing.
//
// Squares are added up in double, where those of smaller types neither overflow nor vanish.

template <typename T, int BLOCK> __global__ void square_norm(const T* grad, double* sums, int* counts, i64 n) {
  typedef typename Wide<T>::type W;
  const T* const arrays[1] = {grad};
  double sum = 0;
  int bad = 0;
  take_each<4>(arrays, n, [&](const W(&v)[1]) {
    bad |= !(v[0] - v[0] == W(0));
    double wide = widened(v[0]);
    sum = fma(wide, wide, sum);
  });
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
