// What the kernels of elementwise chains call. The chain itself is written by gpubackprop/backends/cuda/chain_source.py, behind
// this text and that of activations.cu, whose formulas it uses.

template <typename W> __device__ __forceinline__ W maximum(W a, W b) { return a > b || a != a ? a : b; }  // NaN wins
template <typename W> __device__ __forceinline__ W minimum(W a, W b) { return a < b || a != a ? a : b; }
template <typename W> __device__ __forceinline__ W sign_of(W x) { return x > W(0) ? W(1) : x < W(0) ? W(-1) : x; }
template <typename W> __device__ __forceinline__ bool is_finite(W x) { return x - x == W(0); }

// Integers wrap around as NumPy's do; those of C++ may not.
__device__ __forceinline__ i64 wrapped_add(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ i64 wrapped_subtract(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
__device__ __forceinline__ i64 wrapped_multiply(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }

struct Largest {
  template <typename W> __device__ W operator()(W a, W b) const { return maximum(a, b); }
};

// i / d, in half of the digits where both have no more: a division of 64 bits costs several times as much.
__device__ __forceinline__ i64 quotient(i64 i, i64 d) {
  return ((u64)i | (u64)d) >> 32 ? i / d : (i64)((u32)i / (u32)d);
}

// What a block's threads share while they add up columns: the same for every type of as many bytes, of which a chain may have several.
template <int BYTES> __device__ __forceinline__ void* shared_bytes() {
  alignas(16) __shared__ unsigned char memory[BYTES];
  return memory;
}

// The sums of a block's threads for each column of a tile, added up in the order of their rows: thread x of each of the rows of
// WIDTH threads holds L neighbouring columns.
template <int WIDTH, int L, typename A, typename F>
__device__ void fold_columns(const A (&sums)[L], A* row, i64 column, i64 columns, F f) {
  A* part = static_cast<A*>(shared_bytes<256 * L * (int)sizeof(A)>());
  int x = threadIdx.x % WIDTH, y = threadIdx.x / WIDTH;
  __syncthreads();  // the values of the call before this one have been read
#pragma unroll
  for (int k = 0; k < L; ++k) part[threadIdx.x * L + k] = sums[k];
  __syncthreads();
  if (y != 0) return;
#pragma unroll
  for (int k = 0; k < L; ++k) {
    A sum = part[x * L + k];
    for (int j = 1; j < 256 / WIDTH; ++j) sum = f(sum, part[(j * WIDTH + x) * L + k]);
    if (column + k < columns) row[column + k] = sum;
  }
}

// Columns over the spans of rows that blocks have added up, by blocks of 32 columns and 8 threads for each.
template <typename A, typename T, typename F> __device__ void finish_columns(const A* sums, T* out, i64 spans, i64 columns, A start, F f) {
  int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (i64 first = (i64)blockIdx.x * 32; first < columns; first += (i64)gridDim.x * 32) {
    i64 column = first + x;
    A sum[1] = {start};
    if (column < columns)
      for (i64 s = y; s < spans; s += 8) sum[0] = f(sum[0], sums[s * columns + column]);
    __shared__ A total[32];
    __syncthreads();
    fold_columns<32, 1>(sum, total, x, 32, f);
    if (y == 0 && column < columns) out[column] = static_cast<T>(total[x]);
  }
}

// One value over the blocks' values, by the first block.
template <typename A, typename T, typename F> __device__ void finish_all(const A* sums, T* out, i64 blocks, A start, F f) {
  if (blockIdx.x != 0) return;
  A sum = start;
  for (i64 i = threadIdx.x; i < blocks; i += 256) sum = f(sum, sums[i]);
  sum = team_reduce<256>(sum, f);
  if (threadIdx.x == 0) *out = static_cast<T>(sum);
}
