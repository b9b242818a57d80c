// What every kernel file begins with. The loader puts this text in front of each file, so there is nothing to include.
//
// Rules that the kernels keep:
//  * arrays are C-contiguous, sizes and indices are 64 bits wide, and a grid of any size covers any array (grid-stride loops);
//  * half-precision values are computed with in float, float in float, double in double;
//  * no atomics: every sum has one order, fixed by the shapes alone;
//  * the files are compiled without contraction of a * b + c, so that elementwise results equal NumPy's bit for bit.

#ifdef GPUBACKPROP_HALF
#include <cuda_fp16.h>
#endif
#ifdef GPUBACKPROP_BFLOAT16
#include <cuda_bf16.h>
#endif

typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// The type to compute in.
template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

__device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

// A number that is given by value, or, so that a captured CUDA graph can replay with another one, by its place on the device.
template <typename S> __device__ __forceinline__ S given(const S* place, S value) { return place ? *place : value; }

// Neighbours that one instruction moves, 16 bytes unless said otherwise. An array may begin in the middle of one (a view, a stretch
// of the arena), and the last one may not be whole: such are moved element by element, by the same thread, so that no sum depends
// on where an array lies. `whole` says that all L of them are there, in one piece; else the first `count` are moved.
template <typename T, int L = 16 / sizeof(T)> struct alignas(L * sizeof(T)) Pack {
  static constexpr int lanes = L;
  T item[L];
};
#ifndef GPUBACKPROP_SHIM
// What runs the kernels on a CPU looks whether x is at a boundary, and whether it is global memory: a GPU stops where it is not.
#define MOVED_AT_ONCE(x, bytes)
#define STORED_GLOBALLY(x)
#endif
template <typename T, int L> __device__ __forceinline__ void load_pack(Pack<T, L>& pack, const T* x, bool whole, int count) {
  if (whole) {
    MOVED_AT_ONCE(x, sizeof(pack));
    pack = *reinterpret_cast<const Pack<T, L>*>(x);
    return;
  }
#pragma unroll
  for (int k = 0; k < L; ++k) pack.item[k] = x[k < count ? k : 0];
}
// As the language has it, the compiler may make of this store one of each element, for it sees those of the other branch of
// store_pack beside it and merges them.
template <typename T, int L> __device__ __forceinline__ void store_at_once(T* x, const Pack<T, L>& pack) {
#ifndef GPUBACKPROP_SHIM
  if constexpr (sizeof(pack) == 16) {
    uint4 bits;
    memcpy(&bits, &pack, 16);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(x)), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
    return;
  }
  if constexpr (sizeof(pack) == 8) {
    uint2 bits;
    memcpy(&bits, &pack, 8);
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(x)), "r"(bits.x), "r"(bits.y) : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, L>*>(x) = pack;
}
template <typename T, int L> __device__ __forceinline__ void store_pack(T* x, const Pack<T, L>& pack, bool whole, int count) {
  if (whole) {
    MOVED_AT_ONCE(x, sizeof(pack));
    STORED_GLOBALLY(x);
    store_at_once(x, pack);
    return;
  }
#pragma unroll
  for (int k = 0; k < L; ++k)
    if (k < count) x[k] = pack.item[k];
}
__device__ __forceinline__ bool aligned(const void* x) { return (u64)x % 16 == 0; }

// The packs i, i + step, ... of N arrays, AHEAD in number, all of them loaded before the first is computed with.
template <int AHEAD, typename T, int N, typename F>
__device__ __forceinline__ void each_pack(const T* const (&from)[N], T* to, i64 i, i64 step, F f) {
  typedef typename Wide<T>::type W;
  constexpr int L = Pack<T>::lanes;
  Pack<T> packs[AHEAD][N];
#pragma unroll
  for (int u = 0; u < AHEAD; ++u)
#pragma unroll
    for (int a = 0; a < N; ++a) load_pack(packs[u][a], from[a] + (i + u * step) * L, true, L);
#pragma unroll
  for (int u = 0; u < AHEAD; ++u) {
    Pack<T> out;
#pragma unroll
    for (int k = 0; k < L; ++k) {
      W v[N];
#pragma unroll
      for (int a = 0; a < N; ++a) v[a] = static_cast<W>(packs[u][a].item[k]);
      out.item[k] = static_cast<T>(f(v));
    }
    store_pack(to + (i + u * step) * L, out, true, L);
  }
}

// to[i] = f(v) for each i < n, with v the elements i of N arrays: by packs where all arrays begin at a boundary of 16 bytes, so
// that each thread has 32 bytes on their way at least, and one by one where not.
template <typename T, int N, typename F>
__device__ __forceinline__ void each_element(const T* const (&from)[N], T* to, i64 n, F f) {
  typedef typename Wide<T>::type W;
  constexpr int L = Pack<T>::lanes, AHEAD = N == 1 ? 2 : 1;
  bool whole = aligned(to);
#pragma unroll
  for (int a = 0; a < N; ++a) whole = whole && aligned(from[a]);
  i64 packs = whole ? n / L : 0, i = thread_index(), step = thread_count();
  for (; i + (AHEAD - 1) * step < packs; i += AHEAD * step) each_pack<AHEAD>(from, to, i, step, f);
  if (AHEAD > 1 && i < packs) each_pack<1>(from, to, i, step, f);
  for (i = packs * L + thread_index(); i < n; i += step) {
    W v[N];
#pragma unroll
    for (int a = 0; a < N; ++a) v[a] = static_cast<W>(from[a][i]);
    to[i] = static_cast<T>(f(v));
  }
}

// A number as a double, of a float by whole numbers: the instruction that converts is as slow as arithmetic in double, of which many
// GPUs do a sixty-fourth of what they do in float. What is below the normal floats is 0, as all kernels take it.
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ double widened(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  u32 magnitude = bits & 0x7fffffffu, high = (magnitude >> 3) + 0x38000000u;  // exponents count from -1023, not -127
  if (magnitude >= 0x7f800000u) high += 0x38000000u;                         // infinity and NaN have the largest
  u64 all = magnitude < 0x00800000u ? 0 : (u64)high << 32 | bits << 29;
  all |= (u64)(bits & 0x80000000u) << 32;
  double y;
  memcpy(&y, &all, 8);
  return y;
}

// f(v) for each i < n, with v the elements i of N arrays, to be added up: AHEAD packs are on their way at once, and which thread has
// which elements, and in which order, follows from n and the grid alone.
template <int AHEAD, typename T, int N, typename F>
__device__ __forceinline__ void take_each(const T* const (&from)[N], i64 n, F f) {
  typedef typename Wide<T>::type W;
  constexpr int L = Pack<T>::lanes;
  W v[N];
  bool whole = true;
#pragma unroll
  for (int a = 0; a < N; ++a) whole = whole && aligned(from[a]);
  i64 packs = n / L, step = thread_count();
  for (i64 i = thread_index(); i < packs; i += AHEAD * step) {
    Pack<T> ahead[AHEAD][N];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (i + u * step < packs)
#pragma unroll
        for (int a = 0; a < N; ++a) load_pack(ahead[u][a], from[a] + (i + u * step) * L, whole, L);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (i + u * step >= packs) break;
#pragma unroll
      for (int k = 0; k < L; ++k) {
#pragma unroll
        for (int a = 0; a < N; ++a) v[a] = static_cast<W>(ahead[u][a].item[k]);
        f(v);
      }
    }
  }
  for (i64 i = packs * L + thread_index(); i < n; i += step) {
#pragma unroll
    for (int a = 0; a < N; ++a) v[a] = static_cast<W>(from[a][i]);
    f(v);
  }
}

struct Plus {
  template <typename W> __device__ W operator()(W a, W b) const { return a + b; }
};
struct Larger {
  template <typename W> __device__ W operator()(W a, W b) const { return a > b ? a : b; }
};

// Combine one value of each thread of a team; every thread gets the same bits. A team is a warp, or the whole block where
// TEAM > 32, and all its threads must call.
template <int TEAM, typename W, typename F> __device__ W team_reduce(W v, F f) {
  for (int lane = 16; lane; lane >>= 1) v = f(v, __shfl_xor_sync(0xffffffffu, v, lane));
  if (TEAM > 32) {
    __shared__ W part[TEAM / 32];
    __syncthreads();  // the values of the call before this one have been read
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < TEAM / 32; ++i) v = f(v, part[i]);
  }
  return v;
}

// Rows are dealt out to teams in turn; a team's threads share a row's columns.
template <int TEAM> __device__ __forceinline__ i64 first_row() { return thread_index() / TEAM; }
template <int TEAM> __device__ __forceinline__ i64 row_step() { return thread_count() / TEAM; }
template <int TEAM> __device__ __forceinline__ int first_column() { return threadIdx.x % TEAM; }

// Philox4x32-10 (Salmon et al. 2011). The same words as gpubackprop/backends/philox.py: key = seed, counter = (offset low, offset
// high, stream, 0), word i = lane i % 4 of the block at offset + i / 4.

struct Block {
  u32 word[4];
};

__device__ __forceinline__ Block philox(u64 counter, u32 stream, u64 seed) {
  u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = stream, c3 = 0;
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
    c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
    c1 = (u32)p1;
    c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
    c3 = (u32)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  Block block = {{c0, c1, c2, c3}};
  return block;
}
