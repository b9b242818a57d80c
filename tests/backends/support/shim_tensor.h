// What the tensor cores do, for the shim: the instructions of tiles.cuh, each thread's part of a matrix where PTX's manual says that
// it lies. Products are exact and added in float, in the order of the terms; a tensor core's own order and rounding are not known.

#define __noinline__

template <typename V> V __shfl_sync(unsigned mask, V value, int lane) {
  static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
  unsigned self = threadIdx.x, first = self / shim::kWarp * shim::kWarp;
  shim::Barrier& warp = shim::warps[self / shim::kWarp];
  if (mask != 0xffffffffu || warp.members != shim::kWarp) {
    fprintf(stderr, "shim: a shuffle needs the whole warp\n");
    abort();
  }
  memcpy(shim::exchange[self], &value, sizeof(V));
  shim::wait(warp);
  V result;
  memcpy(&result, shim::exchange[first + (unsigned)lane % shim::kWarp], sizeof(V));
  shim::wait(warp);
  return result;
}

namespace shim {

static unsigned parts[1024][6];  // of the threads' matrices

// ldmatrix: thread 8 m + r names row r of matrix m, 16 bytes in shared memory.
inline void load_matrices(unsigned (&to)[4], const void* row, bool transposed) {
  unsigned self = threadIdx.x, first = self / kWarp * kWarp, g = self % kWarp / 4, t = self % 4;
  if ((size_t)row % 16) {
    fprintf(stderr, "shim: a row of ldmatrix must begin at a multiple of 16 bytes\n");
    abort();
  }
  memcpy(exchange[self], &row, sizeof(row));
  wait(warps[self / kWarp]);
  for (unsigned m = 0; m < 4; ++m) {
    unsigned short two[2];
    for (unsigned e = 0; e < 2; ++e) {
      unsigned r = transposed ? 2 * t + e : g, c = transposed ? g : 2 * t + e;
      const unsigned short* from;
      memcpy(&from, exchange[first + 8 * m + r], sizeof(from));
      two[e] = from[c];
    }
    memcpy(&to[m], two, 4);
  }
  wait(warps[self / kWarp]);
}

template <typename T> float element(unsigned bits, unsigned which) {
  unsigned short two[2];
  memcpy(two, &bits, 4);
  T value;
  memcpy((void*)&value, &two[which], 2);
  return (float)value;
}

// mma.sync.m16n8kK: K / 8 registers hold a row's columns (2 t, 2 t + 1) + 8 c in half precision, or column t + 4 c in TF32.
template <typename T> void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  unsigned self = threadIdx.x, first = self / kWarp * kWarp, g = self % kWarp / 4, t = self % 4;
  memcpy(parts[self], a, 16);
  parts[self][4] = b0;
  parts[self][5] = b1;
  wait(warps[self / kWarp]);
  constexpr bool half = sizeof(T) == 2;
  for (unsigned e = 0; e < 4; ++e) {
    unsigned row = g + e / 2 * 8, col = 2 * t + e % 2;
    for (unsigned k = 0; k < (half ? 16 : 8); ++k) {
      unsigned owner = half ? k % 8 / 2 : k % 4, piece = half ? k / 8 : k / 4;
      unsigned x = parts[first + row % 8 * 4 + owner][2 * piece + row / 8], y = parts[first + col * 4 + owner][4 + piece];
      if constexpr (half) {
        c[e] += element<T>(x, k % 2) * element<T>(y, k % 2);
      } else {
        if ((x | y) & 0x1fffu) {
          fprintf(stderr, "shim: a factor of a TF32 product was not rounded to TF32\n");
          abort();
        }
        float u, w;
        memcpy(&u, &x, 4);
        memcpy(&w, &y, 4);
        c[e] += u * w;
      }
    }
  }
  wait(warps[self / kWarp]);
}

}  // namespace shim

inline void load_matrices(unsigned (&to)[4], const void* row) { shim::load_matrices(to, row, false); }
inline void load_matrices_transposed(unsigned (&to)[4], const void* row) { shim::load_matrices(to, row, true); }
template <typename T> void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
  shim::multiply<T>(c, a, b0, b1);
}
inline unsigned tf32_bits(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;  // to the nearest, the middle away from zero
  return bits & 0xffffe000u;
}
