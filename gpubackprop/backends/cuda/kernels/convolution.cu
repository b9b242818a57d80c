// Windows of images (samples, n0, n1, n2, channels) as the rows of matrices, and the transpose; images of fewer axes have axes of
// length one in front. The columns are (groups, samples * windows, places of the kernel, channels of a group).
//
// Window o of an axis has the elements o * stride + k * dilation - padding. A thread takes L channels side by side, 16 bytes where a
// group's channels are so many times L (PACKED), and neighbouring threads are neighbouring channels. What costs is to find out which
// window and place an element belongs to, by divisions: of 32 bits where no number is larger (U), and once for L elements.

template <typename U> struct Coordinate { typedef int type; };  // which may be negative
template <> struct Coordinate<u64> { typedef i64 type; };

// The remainder of i by n; i becomes the quotient. Of a missing axis, all sizes are 1.
template <typename U> __device__ __forceinline__ U taken(U& i, U n) {
  if (n == 1) return 0;
  U whole = i / n, rest = i - whole * n;
  i = whole;
  return rest;
}

// columns[g, window, k, c] = what the window sees at place k: the image, or 0 in the padding
template <typename T, typename U, int PACKED>
__global__ void im2col(const T* x, T* columns, i64 samples, i64 channels, i64 groups, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1,
                       i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0, i64 d1, i64 d2) {
  typedef typename Coordinate<U>::type I;
  constexpr int L = PACKED ? 16 / sizeof(T) : 1;
  U packs = (U)(channels / groups) / L, total = (U)(samples * o0 * o1 * o2 * k0 * k1 * k2 * groups) * packs;
  bool whole = PACKED && aligned(x) && aligned(columns);
  for (U e = (U)thread_index(); e < total; e += (U)thread_count()) {
    U i = e, c = taken(i, packs) * L;
    I j2 = (I)taken(i, (U)k2), j1 = (I)taken(i, (U)k1), j0 = (I)taken(i, (U)k0);
    I z2 = (I)taken(i, (U)o2) * (I)s2 + j2 * (I)d2 - (I)p2;
    I z1 = (I)taken(i, (U)o1) * (I)s1 + j1 * (I)d1 - (I)p1;
    I z0 = (I)taken(i, (U)o0) * (I)s0 + j0 * (I)d0 - (I)p0;
    I sample = (I)taken(i, (U)samples), g = (I)i;
    Pack<T, L> pack = {};
    if (z0 >= 0 && z0 < (I)n0 && z1 >= 0 && z1 < (I)n1 && z2 >= 0 && z2 < (I)n2)
      load_pack(pack, x + (((sample * (I)n0 + z0) * (I)n1 + z1) * (I)n2 + z2) * (I)channels + g * (I)(packs * L) + (I)c, whole, L);
    store_pack(columns + (i64)e * L, pack, whole, L);
  }
}

// Which window sees element z of an axis at place k; -1 if none does.
template <typename I> __device__ __forceinline__ I window_at(I z, I k, I out, I stride, I padding, I dilation) {
  I shift = z + padding - k * dilation;
  if (shift < 0) return -1;
  if (stride > 1) {
    I whole = shift / stride;
    if (whole * stride != shift) return -1;
    shift = whole;
  }
  return shift < out ? shift : -1;
}

// x[sample, z, channel] = the sum of the columns of all windows that see it, in the order of the places: nothing is added
// atomically.
template <typename T, typename U, int PACKED>
__global__ void col2im(const T* columns, T* x, i64 samples, i64 channels, i64 groups, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1,
                       i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0, i64 d1, i64 d2) {
  typedef typename Wide<T>::type W;
  typedef typename Coordinate<U>::type I;
  constexpr int L = PACKED ? 16 / sizeof(T) : 1;
  U packs = (U)(channels / groups) / L, total = (U)(samples * n0 * n1 * n2 * groups) * packs;
  bool whole = PACKED && aligned(x) && aligned(columns);
  for (U e = (U)thread_index(); e < total; e += (U)thread_count()) {
    U i = e, c = taken(i, packs) * L;
    I g = (I)taken(i, (U)groups), z2 = (I)taken(i, (U)n2), z1 = (I)taken(i, (U)n1), z0 = (I)taken(i, (U)n0), sample = (I)i;
    W sum[L] = {};
    for (I j0 = 0; j0 < (I)k0; ++j0) {
      I w0 = window_at<I>(z0, j0, (I)o0, (I)s0, (I)p0, (I)d0);
      if (w0 < 0) continue;
      for (I j1 = 0; j1 < (I)k1; ++j1) {
        I w1 = window_at<I>(z1, j1, (I)o1, (I)s1, (I)p1, (I)d1);
        if (w1 < 0) continue;
        for (I j2 = 0; j2 < (I)k2; ++j2) {
          I w2 = window_at<I>(z2, j2, (I)o2, (I)s2, (I)p2, (I)d2);
          if (w2 < 0) continue;
          I window = (((g * (I)samples + sample) * (I)o0 + w0) * (I)o1 + w1) * (I)o2 + w2;
          Pack<T, L> pack;
          load_pack(pack, columns + (((window * (I)k0 + j0) * (I)k1 + j1) * (I)k2 + j2) * (I)(packs * L) + (I)c, whole, L);
#pragma unroll
          for (int l = 0; l < L; ++l) sum[l] += static_cast<W>(pack.item[l]);
        }
      }
    }
    Pack<T, L> pack;
#pragma unroll
    for (int l = 0; l < L; ++l) pack.item[l] = static_cast<T>(sum[l]);
    store_pack(x + (i64)e * L, pack, whole, L);
  }
}
