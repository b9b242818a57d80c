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
  u64 first = given(place, offset);
  bool whole = ((u64)x | (u64)y) % (4 * sizeof(T)) == 0 && (u64)keep % 4 == 0;
  i64 packs = whole ? n / 4 : 0;
  for (i64 q = thread_index(); q < packs; q += thread_count()) {
    Pack<T, 4> pack;
    Pack<bool, 4> kept;
    load_pack(pack, x + 4 * q, true, 4);
    Block block = philox(first + (u64)q, stream, seed);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      kept.item[lane] = block.word[lane] < threshold;
      pack.item[lane] = static_cast<T>(kept.item[lane] ? static_cast<W>(pack.item[lane]) * (W)scale : W(0));
    }
    store_pack(y + 4 * q, pack, true, 4);
    store_pack(keep + 4 * q, kept, true, 4);
  }
  // What is behind the last four, or all of it where an array begins elsewhere.
  each_word(n - 4 * packs, seed, stream, nullptr, first + (u64)packs, [=](i64 j, u32 word) {
    i64 i = 4 * packs + j;
    bool kept = word < threshold;
    keep[i] = kept;
    y[i] = static_cast<T>(kept ? static_cast<W>(x[i]) * (W)scale : W(0));
  });
}

template <typename T> __global__ void dropout_backward(const T* dy, const bool* keep, T* dx, i64 n, double scale) {
  typedef typename Wide<T>::type W;
  constexpr int L = Pack<T>::lanes;
  i64 packs = aligned(dy) && aligned(dx) && (u64)keep % L == 0 ? n / L : 0;
  for (i64 i = thread_index(); i < packs; i += thread_count()) {
    Pack<T> pack;
    Pack<bool, L> kept;
    load_pack(pack, dy + i * L, true, L);
    load_pack(kept, keep + i * L, true, L);
#pragma unroll
    for (int k = 0; k < L; ++k) pack.item[k] = static_cast<T>(kept.item[k] ? static_cast<W>(pack.item[k]) * (W)scale : W(0));
    store_pack(dx + i * L, pack, true, L);
  }
  for (i64 i = packs * L + thread_index(); i < n; i += thread_count())
    dx[i] = static_cast<T>(keep[i] ? static_cast<W>(dy[i]) * (W)scale : W(0));
}
