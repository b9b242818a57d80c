// The product of two vectors, such as a gradient with itself: one pass over memory and a short second one over the blocks' sums.
//
// Products are added up in double, where those of smaller types neither overflow nor vanish; a library's matrix product would give the
// whole sum to one block.

template <typename T, int BLOCK> __global__ void inner_product(const T* x, const T* y, double* sums, i64 n) {
  typedef typename Wide<T>::type W;
  const T* const arrays[2] = {x, y};
  double sum = 0;
  take_each<2>(arrays, n, [&](const W(&v)[2]) { sum = fma(widened(v[0]), widened(v[1]), sum); });
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
