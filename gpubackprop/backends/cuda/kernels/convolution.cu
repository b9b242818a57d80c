// Windows of images (samples, n0, n1, n2, channels) as the rows of matrices, and the transpose; images of fewer axes have axes of
// length one in front. The columns are (groups, samples * windows, places of the kernel, channels of a group).
//
// Window o of an axis has the elements o * stride + k * dilation - padding. Neighbouring threads are neighbouring channels, so they
// read and write neighbouring places.

// columns[g, window, k, c] = what the window sees at place k: the image, or 0 in the padding
template <typename T>
__global__ void im2col(const T* x, T* columns, i64 samples, i64 channels, i64 groups, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1,
                       i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0, i64 d1, i64 d2) {
  typedef typename Wide<T>::type W;
  i64 own = channels / groups;
  for (i64 e = thread_index(); e < samples * o0 * o1 * o2 * k0 * k1 * k2 * channels; e += thread_count()) {
    i64 i = e, c = i % own;
    i /= own;
    i64 j2 = i % k2;
    i /= k2;
    i64 j1 = i % k1;
    i /= k1;
    i64 j0 = i % k0;
    i /= k0;
    i64 z2 = i % o2 * s2 + j2 * d2 - p2;
    i /= o2;
    i64 z1 = i % o1 * s1 + j1 * d1 - p1;
    i /= o1;
    i64 z0 = i % o0 * s0 + j0 * d0 - p0;
    i /= o0;
    i64 sample = i % samples, g = i / samples;
    bool inside = z0 >= 0 && z0 < n0 && z1 >= 0 && z1 < n1 && z2 >= 0 && z2 < n2;
    columns[e] = inside ? x[(((sample * n0 + z0) * n1 + z1) * n2 + z2) * channels + g * own + c] : static_cast<T>(W(0));
  }
}

// Which window sees element z of an axis at place k; -1 if none does.
__device__ __forceinline__ i64 window_at(i64 z, i64 k, i64 out, i64 stride, i64 padding, i64 dilation) {
  i64 shift = z + padding - k * dilation;
  return shift < 0 || shift % stride || shift / stride >= out ? -1 : shift / stride;
}

// x[sample, z, channel] = the sum of the columns of all windows that see it, in the order of the places: nothing is added
// atomically.
template <typename T>
__global__ void col2im(const T* columns, T* x, i64 samples, i64 channels, i64 groups, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1,
                       i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0, i64 d1, i64 d2) {
  typedef typename Wide<T>::type W;
  i64 own = channels / groups;
  for (i64 e = thread_index(); e < samples * n0 * n1 * n2 * channels; e += thread_count()) {
    i64 i = e, channel = i % channels;
    i /= channels;
    i64 z2 = i % n2;
    i /= n2;
    i64 z1 = i % n1;
    i /= n1;
    i64 z0 = i % n0, sample = i / n0, g = channel / own, c = channel % own;
    W sum = 0;
    for (i64 j0 = 0; j0 < k0; ++j0) {
      i64 w0 = window_at(z0, j0, o0, s0, p0, d0);
      if (w0 < 0) continue;
      for (i64 j1 = 0; j1 < k1; ++j1) {
        i64 w1 = window_at(z1, j1, o1, s1, p1, d1);
        if (w1 < 0) continue;
        for (i64 j2 = 0; j2 < k2; ++j2) {
          i64 w2 = window_at(z2, j2, o2, s2, p2, d2);
          if (w2 < 0) continue;
          i64 window = (((g * samples + sample) * o0 + w0) * o1 + w1) * o2 + w2;
          sum += static_cast<W>(columns[(((window * k0 + j0) * k1 + j1) * k2 + j2) * own + c]);
        }
      }
    }
    x[e] = static_cast<T>(sum);
  }
}
