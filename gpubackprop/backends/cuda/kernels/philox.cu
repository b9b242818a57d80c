// Kernels that draw random words (Philox4x32-10, in common.cuh) and what is made of them.

// One thread draws four words. `use(i, word)` is called for each word i < n.
template <typename F>
__device__ __forceinline__ void each_word(i64 n, u64 seed, u32 stream, const u64* place, u64 offset, F use) {
  u64 first = given(place, offset);
  for (i64 q = thread_index(); q < (n + 3) / 4; q += thread_count()) {
    Block block = philox(first + (u64)q, stream, seed);
    for (int lane = 0; lane < 4; ++lane)
      if (4 * q + lane < n) use(4 * q + lane, block.word[lane]);
  }
}

__global__ void random_bits(u32* out, i64 n, u64 seed, u32 stream, const u64* place, u64 offset) {
  each_word(n, seed, stream, place, offset, [=](i64 i, u32 word) { out[i] = word; });
}

// The upper 24 bits as a fraction: exact.
__global__ void uniform(float* out, i64 n, u64 seed, u32 stream, const u64* place, u64 offset) {
  each_word(n, seed, stream, place, offset, [=](i64 i, u32 word) { out[i] = (float)(word >> 8) * 5.9604644775390625e-8f; });
}

__global__ void bernoulli(bool* out, i64 n, u32 threshold, u64 seed, u32 stream, const u64* place, u64 offset) {
  each_word(n, seed, stream, place, offset, [=](i64 i, u32 word) { out[i] = word < threshold; });
}

// y = x * scale where the word is below the threshold, else 0; `keep` remembers which.
template <typename T>
__global__ void dropout(const T* x, T* y, bool* keep, i64 n, u32 threshold, double scale, u64 seed, u32 stream,
                        const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  each_word(n, seed, stream, place, offset, [=](i64 i, u32 word) {
    bool kept = word < threshold;
    keep[i] = kept;
    y[i] = kept ? static_cast<T>(static_cast<W>(x[i]) * (W)scale) : static_cast<T>(W(0));
  });
}

template <typename T> __global__ void dropout_backward(const T* dy, const bool* keep, T* dx, i64 n, double scale) {
  typedef typename Wide<T>::type W;
  for (i64 i = thread_index(); i < n; i += thread_count())
    dx[i] = keep[i] ? static_cast<T>(static_cast<W>(dy[i]) * (W)scale) : static_cast<T>(W(0));
}
