// Products of small tiles by one warp, the inner loops of attention.
//
// A warp works on 16 rows. Of a result with 8 N columns its thread 4 g + t has acc[N][4]: of the rows g (the first two) and g + 8 (the
// last two) the columns 2 t and 2 t + 1 of each group of eight, which is how mma.sync deals out a result. Two products are all that
// attention needs, forwards and backwards:
//
//   rows_by_rows     acc += a b^T, a: 16 rows, b: 8 N rows in shared memory, FEATURES columns each;
//   weights_by_rows  acc += w b, w: 8 N columns in registers as above, b: 8 N rows in shared memory; acc has 8 M columns.
//
// They come in three makings with the same face: Simt by the ordinary units (float, double, and half precision where there is no
// tensor core for it), Tensor for half precision and Tf32 for float by the tensor cores (sm_80 and newer). Rows in shared memory lie
// STRIDE apart, 16 bytes more than they are long: then no two lanes of the loads below meet in a bank.

template <typename T> __device__ __forceinline__ T zero() { return static_cast<T>(0.0f); }

template <typename T> struct Simt {
  typedef typename Wide<T>::type W;
  static constexpr int LANES = 16 / sizeof(W);  // elements that one load brings
  static constexpr int SPLIT = LANES / 2;       // groups of eight columns among which they lie
  // As an element is kept in shared memory.
  static __device__ __forceinline__ T stored(T x) { return x; }
  static __device__ __forceinline__ W power(W x) { return exp(x); }

  template <int STRIDE, int FEATURES, int N>
  static __device__ __forceinline__ void rows_by_rows(W (&acc)[N][4], const T* a, const T* b, int lane) {
    const T *a0 = a + lane / 4 * STRIDE, *a1 = a0 + 8 * STRIDE, *b0 = b + lane % 4 * 2 * STRIDE;
#pragma unroll 2
    for (int f = 0; f < FEATURES; f += LANES) {
      Pack<T, LANES> x0, x1, y0, y1;
      load_pack(x0, a0 + f, true, LANES);
      load_pack(x1, a1 + f, true, LANES);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        load_pack(y0, b0 + 8 * n * STRIDE + f, true, LANES);
        load_pack(y1, b0 + (8 * n + 1) * STRIDE + f, true, LANES);
#pragma unroll
        for (int l = 0; l < LANES; ++l) {
          W u0 = static_cast<W>(x0.item[l]), u1 = static_cast<W>(x1.item[l]);
          W w0 = static_cast<W>(y0.item[l]), w1 = static_cast<W>(y1.item[l]);
          acc[n][0] = fma(u0, w0, acc[n][0]);
          acc[n][1] = fma(u0, w1, acc[n][1]);
          acc[n][2] = fma(u1, w0, acc[n][2]);
          acc[n][3] = fma(u1, w1, acc[n][3]);
        }
      }
    }
  }

  // The weights of a row are spread over four threads, which tell each other.
  template <int STRIDE, int N, int M>
  static __device__ __forceinline__ void weights_by_rows(W (&acc)[M][4], const W (&w)[N][4], const T* b, int lane) {
    const T* own = b + lane % 4 * LANES;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll 1
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          W w0 = __shfl_sync(0xffffffffu, w[n][e], (lane & 28) + s), w1 = __shfl_sync(0xffffffffu, w[n][2 + e], (lane & 28) + s);
          const T* row = own + (8 * n + 2 * s + e) * STRIDE;
#pragma unroll
          for (int m = 0; m < M; m += SPLIT) {
            Pack<T, LANES> y;
            load_pack(y, row + 8 * m, true, LANES);
#pragma unroll
            for (int l = 0; l < LANES; ++l) {
              W value = static_cast<W>(y.item[l]);
              acc[m + l / 2][l % 2] = fma(w0, value, acc[m + l / 2][l % 2]);
              acc[m + l / 2][2 + l % 2] = fma(w1, value, acc[m + l / 2][2 + l % 2]);
            }
          }
        }
      }
    }
  }
};

// The first of the two neighbouring columns that a thread has of group m in a result of weights_by_rows. One load brings Simt four
// neighbours in float, so there a thread has four neighbours of two groups.
template <typename E> __device__ __forceinline__ int column(int m, int t) {
  return m / E::SPLIT * 8 * E::SPLIT + 2 * E::SPLIT * t + m % E::SPLIT * 2;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define GPUBACKPROP_TENSOR_CORES
#endif

#ifdef GPUBACKPROP_TENSOR_CORES

#ifndef GPUBACKPROP_SHIM
// Four matrices of 8 by 8 elements of 16 bits: each thread names a row, eight threads a matrix (PTX: ldmatrix).
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((u32)__cvta_generic_to_shared(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((u32)__cvta_generic_to_shared(row))
               : "memory");
}
// c += a b, a: 16 by 16 (TF32: 8), b: 16 (8) by 8 (PTX: mma.sync). The last argument says of which type the elements are.
#define GPUBACKPROP_MULTIPLY(TYPE, SHAPE, NAME)                                                                              \
  __device__ __forceinline__ void multiply(float(&c)[4], const u32(&a)[4], u32 b0, u32 b1, TYPE) {                             \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
                 "{%0, %1, %2, %3};"                                                                                         \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                              \
  }
GPUBACKPROP_MULTIPLY(float, "m16n8k8", "tf32")
#ifdef GPUBACKPROP_HALF
GPUBACKPROP_MULTIPLY(__half, "m16n8k16", "f16")
#endif
#ifdef GPUBACKPROP_BFLOAT16
GPUBACKPROP_MULTIPLY(__nv_bfloat16, "m16n8k16", "bf16")
#endif
// To the nearest number of 10 fraction bits, what lies in the middle away from zero.
__device__ __forceinline__ u32 tf32_bits(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
#endif

template <typename To, typename From> __device__ __forceinline__ To bits_of(const From& x) {
  static_assert(sizeof(To) == sizeof(From), "another number of bits");
  return *reinterpret_cast<const To*>(&x);
}

template <typename T> struct Tensor {
  typedef float W;
  static constexpr int SPLIT = 1;
  static __device__ __forceinline__ T stored(T x) { return x; }
  static __device__ __forceinline__ float power(float x) { return exp2f(x * 1.4426950408889634f); }

  template <int STRIDE, int FEATURES, int N>
  static __device__ __forceinline__ void rows_by_rows(float (&acc)[N][4], const T* a, const T* b, int lane) {
    static_assert(N % 2 == 0 && FEATURES % 16 == 0, "half precision is multiplied 16 features and 16 rows at a time");
    const T *own_a = a + lane % 16 * STRIDE + lane / 16 * 8, *own_b = b + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int f = 0; f < FEATURES; f += 16) {
      u32 x[4], y[4];
      load_matrices(x, own_a + f);
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        load_matrices(y, own_b + 8 * n * STRIDE + f);
        multiply(acc[n], x, y[0], y[1], T());
        multiply(acc[n + 1], x, y[2], y[3], T());
      }
    }
  }

  // What one product deals out as a result is what the next one takes as its left side.
  template <int STRIDE, int N, int M>
  static __device__ __forceinline__ void weights_by_rows(float (&acc)[M][4], const float (&w)[N][4], const T* b, int lane) {
    static_assert(N % 2 == 0 && M % 2 == 0, "half precision is multiplied 16 rows and 16 columns at a time");
    const T* own = b + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      u32 x[4] = {pair(w[n][0], w[n][1]), pair(w[n][2], w[n][3]), pair(w[n + 1][0], w[n + 1][1]), pair(w[n + 1][2], w[n + 1][3])};
#pragma unroll
      for (int m = 0; m < M; m += 2) {
        u32 y[4];
        load_matrices_transposed(y, own + 8 * n * STRIDE + 8 * m);
        multiply(acc[m], x, y[0], y[1], T());
        multiply(acc[m + 1], x, y[2], y[3], T());
      }
    }
  }

  static __device__ __forceinline__ u32 pair(float a, float b) {
    Pack<T, 2> both = {{static_cast<T>(a), static_cast<T>(b)}};
    return bits_of<u32>(both);
  }
};

struct Tf32 {
  typedef float W;
  static constexpr int SPLIT = 1;
  static __device__ __forceinline__ float stored(float x) { return bits_of<float>(tf32_bits(x)); }
  static __device__ __forceinline__ float power(float x) { return exp2f(x * 1.4426950408889634f); }

  template <int STRIDE, int FEATURES, int N>
  static __device__ __forceinline__ void rows_by_rows(float (&acc)[N][4], const float* a, const float* b, int lane) {
    const float *own_a = a + lane / 4 * STRIDE + lane % 4, *own_b = b + lane / 4 * STRIDE + lane % 4;
#pragma unroll
    for (int f = 0; f < FEATURES; f += 8) {
      const float* at = own_a + f;
      u32 x[4] = {bits_of<u32>(at[0]), bits_of<u32>(at[8 * STRIDE]), bits_of<u32>(at[4]), bits_of<u32>(at[8 * STRIDE + 4])};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float* y = own_b + 8 * n * STRIDE + f;
        multiply(acc[n], x, bits_of<u32>(y[0]), bits_of<u32>(y[4]), 0.0f);
      }
    }
  }

  // The order of the eight terms of a product is free. With the terms 2 t where mma.sync expects t, and 2 t + 1 where it expects
  // t + 4, the weights need not move.
  template <int STRIDE, int N, int M>
  static __device__ __forceinline__ void weights_by_rows(float (&acc)[M][4], const float (&w)[N][4], const float* b, int lane) {
    const float* own = b + lane % 4 * 2 * STRIDE + lane / 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      u32 x[4] = {tf32_bits(w[n][0]), tf32_bits(w[n][2]), tf32_bits(w[n][1]), tf32_bits(w[n][3])};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float* y = own + 8 * n * STRIDE + 8 * m;
        multiply(acc[m], x, bits_of<u32>(y[0]), bits_of<u32>(y[STRIDE]), 0.0f);
      }
    }
  }
};

#endif  // GPUBACKPROP_TENSOR_CORES

// Which making serves elements of T; TENSOR: by the tensor cores, where this GPU has them for T.
template <typename T, int TENSOR> struct Engine { typedef Simt<T> type; };
#ifdef GPUBACKPROP_TENSOR_CORES
template <> struct Engine<float, 1> { typedef Tf32 type; };
#ifdef GPUBACKPROP_HALF
template <> struct Engine<__half, 1> { typedef Tensor<__half> type; };
#endif
#ifdef GPUBACKPROP_BFLOAT16
template <> struct Engine<__nv_bfloat16, 1> { typedef Tensor<__nv_bfloat16> type; };
#endif
#endif

// A value's sum, or the largest, over the four threads that share a row.
template <typename W, typename F> __device__ __forceinline__ W row_reduce(W v, F f) {
  v = f(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return f(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// COUNT rows of each of N arrays, on their way into shared memory by all threads of the block: of (rows, features) elements whose rows
// are `step` apart, with zeros beyond their ends. A thread moves 16 bytes at a time, of all arrays before it waits for the first. With
// EARLY they wait in registers, so that the block can do something else between fetch() and store().
template <typename E, typename T, int N, int THREADS, int COUNT, int FEATURES, int STRIDE, bool EARLY> struct Incoming {
  static constexpr int L = 16 / sizeof(T), PACKS = FEATURES / L, TIMES = COUNT * PACKS / THREADS, EACH = THREADS / PACKS;
  static constexpr int KEPT = EARLY || TIMES < 4 ? TIMES : 4;
  static_assert(THREADS % PACKS == 0 && COUNT % EACH == 0 && TIMES % KEPT == 0, "every thread moves as much");
  T* to[N];
  const T* from[N];
  i64 step[N];
  int features[N];
  i64 rows;
  Pack<T, L> packs[N][KEPT];

  __device__ __forceinline__ bool whole() const {
    bool all = true;
#pragma unroll
    for (int a = 0; a < N; ++a) all = all && aligned(from[a]) && step[a] % L == 0 && features[a] % L == 0;
    return all;
  }
  // Rows from `first` on; those before the u-th of a thread's own are left out.
  __device__ __forceinline__ void load(i64 first, int u) {
    int f = threadIdx.x % PACKS * L;
    first += threadIdx.x / PACKS + u * EACH;
#pragma unroll
    for (int a = 0; a < N; ++a)
#pragma unroll
      for (int k = 0; k < KEPT; ++k) {
        i64 i = first + k * EACH;
        if (i < rows && f < features[a]) {
          load_pack(packs[a][k], from[a] + i * step[a] + f, true, L);
        } else {
#pragma unroll
          for (int l = 0; l < L; ++l) packs[a][k].item[l] = zero<T>();
        }
      }
  }
  __device__ __forceinline__ void fetch(i64 first) {
    if (EARLY && whole()) load(first, 0);
  }
  // The rows of the last fetch(), if EARLY.
  __device__ __forceinline__ void store(i64 first) {
    if (whole()) {
#pragma unroll
      for (int u = 0; u < TIMES; u += KEPT) {
        if (!EARLY) load(first, u);
#pragma unroll
        for (int a = 0; a < N; ++a)
#pragma unroll
          for (int k = 0; k < KEPT; ++k) {
            Pack<T, L> pack = packs[a][k];
#pragma unroll
            for (int l = 0; l < L; ++l) pack.item[l] = E::stored(pack.item[l]);
            int r = threadIdx.x / PACKS + (u + k) * EACH;
            *reinterpret_cast<Pack<T, L>*>(to[a] + r * STRIDE + threadIdx.x % PACKS * L) = pack;
          }
      }
    } else {
#pragma unroll
      for (int a = 0; a < N; ++a)
#pragma unroll 1
        for (int k = threadIdx.x; k < COUNT * FEATURES; k += THREADS) {
          int r = k / FEATURES, f = k % FEATURES;
          bool there = first + r < rows && f < features[a];
          to[a][r * STRIDE + f] = there ? E::stored(from[a][(first + r) * step[a] + f]) : zero<T>();
        }
    }
  }
};

// A warp's 16 rows of a result, multiplied with `scale` (one for each of a thread's two rows), from its registers to rows `step` apart;
// row 0 of the warp is number `first` of `rows`.
template <typename E, int M, typename T, typename W>
__device__ __forceinline__ void store_rows(T* to, i64 step, i64 first, i64 rows, int features, const W (&acc)[M][4],
                                           const W (&scale)[2], int lane) {
  bool pairs = (u64)to % (2 * sizeof(T)) == 0 && step % 2 == 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    i64 i = first + lane / 4 + 8 * r;
    if (i >= rows) continue;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      int f = column<E>(m, lane % 4);
      Pack<T, 2> pack = {{static_cast<T>(acc[m][2 * r] * scale[r]), static_cast<T>(acc[m][2 * r + 1] * scale[r])}};
      if (f < features) store_pack(to + i * step + f, pack, pairs && f + 2 <= features, features - f);
    }
  }
}
