// Pooling over three spatial axes, channels last; images of fewer axes have axes of length one in front. A thread makes one element
// of the result: neighbouring threads are neighbouring channels, so they read and write neighbouring places. Backwards a thread goes
// through the windows that its element is in, in order, so that nothing has to be added atomically.
//
// Window o of an axis has the elements o * stride + k * dilation - padding.

typedef unsigned char u8;

// One axis: its length, number of windows, size of a window, stride, padding, dilation.
struct Axis {
  i64 in, out, kernel, stride, padding, dilation;
  // The first and the last window that element z may be in.
  __device__ i64 first(i64 z) const {
    i64 room = z + padding - dilation * (kernel - 1);
    return room > 0 ? (room + stride - 1) / stride : 0;
  }
  __device__ i64 last(i64 z) const {
    i64 o = (z + padding) / stride;
    return o < out ? o : out - 1;
  }
  // Which place of window o element z is; negative if none.
  __device__ i64 place(i64 z, i64 o) const {
    i64 shift = z + padding - o * stride;
    return shift % dilation ? -1 : shift / dilation;
  }
  // How many places of window o count: those inside, and with `wide` those in the padding.
  __device__ i64 count(i64 o, bool wide) const {
    i64 begin = o * stride - padding, end = begin + kernel, low = wide ? -padding : 0, high = wide ? in + padding : in;
    return (end < high ? end : high) - (begin > low ? begin : low);
  }
};

// Where a result element is: its channel, its place on each axis, its sample.
struct Place {
  i64 channel, a, b, c, sample;
  __device__ Place(i64 i, i64 channels, i64 na, i64 nb, i64 nc) {
    channel = i % channels, i /= channels;
    c = i % nc, i /= nc;
    b = i % nb, i /= nb;
    a = i % na, sample = i / na;
  }
};

__device__ __forceinline__ i64 offset(i64 sample, i64 a, i64 b, i64 c, i64 channel, i64 na, i64 nb, i64 nc, i64 channels) {
  return (((sample * na + a) * nb + b) * nc + c) * channels + channel;
}

// The first of the largest elements wins, and a NaN is the largest. A window without elements gives -inf.
template <typename T, typename P>
__global__ void max_pool(const T* x, T* y, P* winner, i64 samples, i64 channels, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1, i64 o2,
                         i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0, i64 d1, i64 d2) {
  typedef typename Wide<T>::type W;
  for (i64 i = thread_index(); i < samples * o0 * o1 * o2 * channels; i += thread_count()) {
    Place at(i, channels, o0, o1, o2);
    W top = 0;
    i64 won = 0;
    bool none = true;
    for (i64 j0 = 0; j0 < k0; ++j0) {
      i64 z0 = at.a * s0 + j0 * d0 - p0;
      if (z0 < 0 || z0 >= n0) continue;
      for (i64 j1 = 0; j1 < k1; ++j1) {
        i64 z1 = at.b * s1 + j1 * d1 - p1;
        if (z1 < 0 || z1 >= n1) continue;
        for (i64 j2 = 0; j2 < k2; ++j2) {
          i64 z2 = at.c * s2 + j2 * d2 - p2;
          if (z2 < 0 || z2 >= n2) continue;
          W v = static_cast<W>(x[offset(at.sample, z0, z1, z2, at.channel, n0, n1, n2, channels)]);
          if (none || v > top || (v != v && top == top)) {
            top = v;
            won = (j0 * k1 + j1) * k2 + j2;
            none = false;
          }
        }
      }
    }
    y[i] = static_cast<T>(none ? log(W(0)) : top);  // the compiler at run time has no INFINITY
    winner[i] = static_cast<P>(won);
  }
}

template <typename T, typename P>
__global__ void max_pool_backward(const T* dy, const P* winner, T* dx, i64 samples, i64 channels, i64 n0, i64 n1, i64 n2, i64 o0,
                                  i64 o1, i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, i64 d0,
                                  i64 d1, i64 d2) {
  typedef typename Wide<T>::type W;
  Axis first = {n0, o0, k0, s0, p0, d0}, second = {n1, o1, k1, s1, p1, d1}, third = {n2, o2, k2, s2, p2, d2};
  for (i64 i = thread_index(); i < samples * n0 * n1 * n2 * channels; i += thread_count()) {
    Place at(i, channels, n0, n1, n2);
    W sum = 0;
    for (i64 w0 = first.first(at.a); w0 <= first.last(at.a); ++w0) {
      i64 j0 = first.place(at.a, w0);
      if (j0 < 0) continue;
      for (i64 w1 = second.first(at.b); w1 <= second.last(at.b); ++w1) {
        i64 j1 = second.place(at.b, w1);
        if (j1 < 0) continue;
        for (i64 w2 = third.first(at.c); w2 <= third.last(at.c); ++w2) {
          i64 j2 = third.place(at.c, w2);
          if (j2 < 0) continue;
          i64 window = offset(at.sample, w0, w1, w2, at.channel, o0, o1, o2, channels);
          if (static_cast<i64>(winner[window]) == (j0 * k1 + j1) * k2 + j2) sum += static_cast<W>(dy[window]);
        }
      }
    }
    dx[i] = static_cast<T>(sum);
  }
}

// A divisor of 0 stands for the number of places that count.
template <typename T>
__global__ void avg_pool(const T* x, T* y, i64 samples, i64 channels, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1, i64 o2, i64 k0,
                         i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, int wide, i64 divisor) {
  typedef typename Wide<T>::type W;
  Axis first = {n0, o0, k0, s0, p0, 1}, second = {n1, o1, k1, s1, p1, 1}, third = {n2, o2, k2, s2, p2, 1};
  for (i64 i = thread_index(); i < samples * o0 * o1 * o2 * channels; i += thread_count()) {
    Place at(i, channels, o0, o1, o2);
    W sum = 0;
    for (i64 j0 = 0; j0 < k0; ++j0) {
      i64 z0 = at.a * s0 + j0 - p0;
      if (z0 < 0 || z0 >= n0) continue;
      for (i64 j1 = 0; j1 < k1; ++j1) {
        i64 z1 = at.b * s1 + j1 - p1;
        if (z1 < 0 || z1 >= n1) continue;
        for (i64 j2 = 0; j2 < k2; ++j2) {
          i64 z2 = at.c * s2 + j2 - p2;
          if (z2 < 0 || z2 >= n2) continue;
          sum += static_cast<W>(x[offset(at.sample, z0, z1, z2, at.channel, n0, n1, n2, channels)]);
        }
      }
    }
    i64 n = divisor ? divisor : first.count(at.a, wide) * second.count(at.b, wide) * third.count(at.c, wide);
    y[i] = static_cast<T>(sum / (W)n);
  }
}

template <typename T>
__global__ void avg_pool_backward(const T* dy, T* dx, i64 samples, i64 channels, i64 n0, i64 n1, i64 n2, i64 o0, i64 o1, i64 o2,
                                  i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2, int wide,
                                  i64 divisor) {
  typedef typename Wide<T>::type W;
  Axis first = {n0, o0, k0, s0, p0, 1}, second = {n1, o1, k1, s1, p1, 1}, third = {n2, o2, k2, s2, p2, 1};
  for (i64 i = thread_index(); i < samples * n0 * n1 * n2 * channels; i += thread_count()) {
    Place at(i, channels, n0, n1, n2);
    W sum = 0;
    for (i64 w0 = first.first(at.a); w0 <= first.last(at.a); ++w0) {
      i64 c0 = first.count(w0, wide);
      for (i64 w1 = second.first(at.b); w1 <= second.last(at.b); ++w1) {
        i64 c1 = second.count(w1, wide);
        for (i64 w2 = third.first(at.c); w2 <= third.last(at.c); ++w2) {
          i64 n = divisor ? divisor : c0 * c1 * third.count(w2, wide);
          sum += static_cast<W>(dy[offset(at.sample, w0, w1, w2, at.channel, o0, o1, o2, channels)]) / (W)n;
        }
      }
    }
    dx[i] = static_cast<T>(sum);
  }
}
