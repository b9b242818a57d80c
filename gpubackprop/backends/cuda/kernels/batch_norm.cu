// Normalisation of images (samples, rows, channels), rows being places: over each sample's rows and over channels / groups
// neighbouring channels. Group normalisation (Wu & He 2018) as it is; instance normalisation with a group for each channel; batch
// normalisation (Ioffe & Szegedy 2015) with the whole batch as one sample and a group for each channel.
//
// A thread takes neighbouring channels, 16 bytes of a row at once, and keeps to them: their moments and parameters are read once and
// no index is divided for each element. Sums over the rows go in two steps, so that they have one order: each thread sums over
// `span` rows, then a team adds up the sums of the spans. `part` is (2, samples, spans, channels).
//
// Moments are (samples, groups), of the type that is computed in: half precision cannot hold a variance beyond 65504. `weight` and
// `bias` are of that type too, as parameters of mixed precision are; they may be null.

// Where the moments of L neighbouring channels of a sample are, with groups of `size` channels: one division for all of them.
template <int L> __device__ __forceinline__ void groups_of(i64 (&q)[L], i64 sample, i64 channel, i64 groups, i64 size) {
  i64 group = size == 1 ? channel : channel / size, left = (group + 1) * size - channel;
  group += sample * groups;
#pragma unroll
  for (int l = 0; l < L; ++l) {
    q[l] = group;
    if (--left == 0) {
      ++group;
      left = size;
    }
  }
}

// Neighbours that are taken at once: those of 16 bytes where rows of all arrays begin at such a boundary, else single ones.
template <typename T> struct Lanes {
  static constexpr int most = Pack<T>::lanes;
};
template <typename T> __device__ __forceinline__ bool by_packs(i64 channels, const T* x, const T* y) {
  return channels % Lanes<T>::most == 0 && aligned(x) && aligned(y);
}

// f(v, l) with v the elements of N arrays in row i of `span` ones at channel c + l, for i = 0, 1, ... < n: the loads of AHEAD rows
// are on their way at the same time.
template <typename T, int L, int AHEAD, int N, typename F>
__device__ __forceinline__ void each_row(const T* const (&from)[N], i64 start, i64 step, i64 n, F f) {
  typedef typename Wide<T>::type W;
  for (i64 i = 0; i < n; i += AHEAD) {
    Pack<T, L> packs[AHEAD][N];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
#pragma unroll
      for (int a = 0; a < N; ++a)
        if (i + u < n) load_pack(packs[u][a], from[a] + start + (i + u) * step, true, L);
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (i + u >= n) continue;
#pragma unroll
      for (int l = 0; l < L; ++l) {
        W v[N];
#pragma unroll
        for (int a = 0; a < N; ++a) v[a] = static_cast<W>(packs[u][a].item[l]);
        f(v, l);
      }
    }
  }
}

// to = f(v, l) everywhere, with v the elements of N arrays and l which of L neighbouring channels it is. `load(sample, c)` is called
// before, for the channels from c on, whenever sample or channels change; of several samples, a thread takes AHEAD rows that follow
// each other, so that this is seldom.
template <typename T, int L, int AHEAD, int N, typename Load, typename F>
__device__ __forceinline__ void each_place(const T* const (&from)[N], T* to, i64 samples, i64 rows, i64 channels, Load load, F f) {
  typedef typename Wide<T>::type W;
  i64 packs = channels / L, width = packs < thread_count() ? packs : thread_count(), step = thread_count() / width;
  i64 t = thread_index(), first = t / width, all = samples * rows;
  if (first >= step) return;  // of the threads that are no whole row
  i64 apart = samples == 1 ? step : 1, start = samples == 1 ? first : first * AHEAD;
  for (i64 p = t % width; p < packs; p += width) {
    i64 c = p * L, end = 0;  // of the rows of the sample that was loaded
    for (i64 row = start; row < all; row += AHEAD * step) {
      Pack<T, L> packs_of[AHEAD][N];
#pragma unroll
      for (int u = 0; u < AHEAD; ++u)
#pragma unroll
        for (int a = 0; a < N; ++a)
          if (row + u * apart < all) load_pack(packs_of[u][a], from[a] + (row + u * apart) * channels + c, true, L);
#pragma unroll
      for (int u = 0; u < AHEAD; ++u) {
        i64 at = row + u * apart;
        if (at >= all) continue;
        if (at >= end) {
          i64 sample = samples == 1 ? 0 : at / rows;
          load(sample, c);
          end = (sample + 1) * rows;
        }
        Pack<T, L> out;
#pragma unroll
        for (int l = 0; l < L; ++l) {
          W v[N];
#pragma unroll
          for (int a = 0; a < N; ++a) v[a] = static_cast<W>(packs_of[u][a].item[l]);
          out.item[l] = static_cast<T>(f(v, l));
        }
        store_pack(to + at * channels + c, out, true, L);
      }
    }
  }
}

// Means of spans, and behind them their sums of squared deviations: x is read once. Deviations are taken from a value of the span,
// so that a mean that is large beside the spread costs no digits, and an outlier no more than those of its own span.
template <typename T, int L>
__device__ void span_moments(const T* x, typename Wide<T>::type* part, i64 samples, i64 rows, i64 channels, i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span, packs = channels / L, total = samples * spans * channels;
  const T* const arrays[1] = {x};
  for (i64 k = thread_index(); k < samples * spans * packs; k += thread_count()) {
    i64 job = k / packs, c = k % packs * L, row = job % spans * span;
    i64 n = row + span < rows ? span : rows - row, start = (job / spans * rows + row) * channels + c;
    W pivot[L], s[L], d[L];
#pragma unroll
    for (int l = 0; l < L; ++l) {
      pivot[l] = static_cast<W>(x[start + l]);
      s[l] = d[l] = 0;
    }
    each_row<T, L, 8>(arrays, start, channels, n, [&](const W(&v)[1], int l) {
      W e = v[0] - pivot[l];
      s[l] += e;
      d[l] += e * e;
    });
#pragma unroll
    for (int l = 0; l < L; ++l) {
      W m = s[l] / (W)n, left = d[l] - s[l] * m;
      part[job * channels + c + l] = pivot[l] + m;
      part[total + job * channels + c + l] = left < W(0) ? W(0) : left;
    }
  }
}
template <typename T>
__global__ void channel_moments(const T* x, typename Wide<T>::type* part, i64 samples, i64 rows, i64 channels, i64 span) {
  if (by_packs(channels, x, x)) span_moments<T, Lanes<T>::most>(x, part, samples, rows, channels, span);
  else span_moments<T, 1>(x, part, samples, rows, channels, span);
}

// Mean, variance and 1 / sqrt(variance + eps) of each group from those of the spans (Chan et al. 1979). `var` may be null.
template <typename T, int TEAM>
__global__ void group_moment(const typename Wide<T>::type* part, typename Wide<T>::type* mean, typename Wide<T>::type* var,
                             typename Wide<T>::type* rstd, i64 samples, i64 rows, i64 channels, i64 groups, i64 span, double eps) {
  typedef typename Wide<T>::type W;
  i64 size = channels / groups, spans = (rows + span - 1) / span, total = samples * spans * channels;
  for (i64 q = first_row<TEAM>(); q < samples * groups; q += row_step<TEAM>()) {
    const W* first = part + q / groups * spans * channels + q % groups * size;
    W pivot = first[0], m = 0, v = 0;
    for (i64 j = first_column<TEAM>(); j < spans * size; j += TEAM) {
      i64 i = j / size;
      W n = (W)(i * span + span < rows ? span : rows - i * span);
      m += n * (first[i * channels + j % size] - pivot);
    }
    m = pivot + team_reduce<TEAM>(m, Plus()) / (W)(rows * size);
    for (i64 j = first_column<TEAM>(); j < spans * size; j += TEAM) {
      i64 i = j / size, at = i * channels + j % size;
      W n = (W)(i * span + span < rows ? span : rows - i * span), d = first[at] - m;
      v += first[total + at] + n * d * d;
    }
    v = team_reduce<TEAM>(v, Plus()) / (W)(rows * size);
    if (first_column<TEAM>() == 0) {
      mean[q] = m;
      if (var) var[q] = v;
      rstd[q] = W(1) / sqrt(v + (W)eps);
    }
  }
}

// y = (x - mean) * rstd * weight + bias
template <typename T, int L>
__device__ void normalise(const T* x, const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd,
                          const typename Wide<T>::type* weight, const typename Wide<T>::type* bias, T* y, i64 samples, i64 rows,
                          i64 channels, i64 groups) {
  typedef typename Wide<T>::type W;
  const T* const arrays[1] = {x};
  W m[L], r[L], w[L], b[L];
  i64 size = channels / groups;
  auto load = [&](i64 sample, i64 c) {
    i64 q[L];
    groups_of(q, sample, c, groups, size);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      m[l] = mean[q[l]];
      r[l] = rstd[q[l]];
      w[l] = weight ? weight[c + l] : W(1);
      b[l] = bias ? bias[c + l] : W(0);
    }
  };
  each_place<T, L, 4>(arrays, y, samples, rows, channels, load, [&](const W(&v)[1], int l) {
    W h = (v[0] - m[l]) * r[l];
    if (weight) h = h * w[l];
    return bias ? h + b[l] : h;
  });
}
template <typename T>
__global__ void group_norm(const T* x, const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd,
                           const typename Wide<T>::type* weight, const typename Wide<T>::type* bias, T* y, i64 samples, i64 rows,
                           i64 channels, i64 groups) {
  if (by_packs(channels, x, y)) normalise<T, Lanes<T>::most>(x, mean, rstd, weight, bias, y, samples, rows, channels, groups);
  else normalise<T, 1>(x, mean, rstd, weight, bias, y, samples, rows, channels, groups);
}

// Sums of dy over spans, and behind them those of dy * xhat with xhat = (x - mean) * rstd.
template <typename T, int L>
__device__ void span_slopes(const T* dy, const T* x, const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd,
                            typename Wide<T>::type* part, i64 samples, i64 rows, i64 channels, i64 groups, i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span, packs = channels / L, total = samples * spans * channels, size = channels / groups;
  const T* const arrays[2] = {dy, x};
  for (i64 k = thread_index(); k < samples * spans * packs; k += thread_count()) {
    i64 job = k / packs, c = k % packs * L, row = job % spans * span, sample = job / spans;
    i64 n = row + span < rows ? span : rows - row, start = (sample * rows + row) * channels + c;
    W m[L], r[L], a[L], b[L];
    i64 q[L];
    groups_of(q, sample, c, groups, size);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      m[l] = mean[q[l]];
      r[l] = rstd[q[l]];
      a[l] = b[l] = 0;
    }
    each_row<T, L, 4>(arrays, start, channels, n, [&](const W(&v)[2], int l) {
      a[l] += v[0];
      b[l] += v[0] * ((v[1] - m[l]) * r[l]);
    });
#pragma unroll
    for (int l = 0; l < L; ++l) {
      part[job * channels + c + l] = a[l];
      part[total + job * channels + c + l] = b[l];
    }
  }
}
template <typename T>
__global__ void channel_slopes(const T* dy, const T* x, const typename Wide<T>::type* mean,
                               const typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 samples, i64 rows,
                               i64 channels, i64 groups, i64 span) {
  if (by_packs(channels, dy, x)) span_slopes<T, Lanes<T>::most>(dy, x, mean, rstd, part, samples, rows, channels, groups, span);
  else span_slopes<T, 1>(dy, x, mean, rstd, part, samples, rows, channels, groups, span);
}

// Sums over the middle axis of (outer, spans, channels).
template <typename T, int TEAM>
__global__ void span_sum(const typename Wide<T>::type* part, typename Wide<T>::type* out, i64 outer, i64 spans, i64 channels) {
  typedef typename Wide<T>::type W;
  for (i64 q = first_row<TEAM>(); q < outer * channels; q += row_step<TEAM>()) {
    W s = 0;
    for (i64 j = first_column<TEAM>(); j < spans; j += TEAM) s += part[(q / channels * spans + j) * channels + q % channels];
    s = team_reduce<TEAM>(s, Plus());
    if (first_column<TEAM>() == 0) out[q] = s;
  }
}

// What dx needs of each group, out of `sums` (2, samples, channels) of dy and dy * xhat: mean(g) and mean(g * xhat) with
// g = dy * weight. Cotangents of the moments themselves, where given, are added to them; then groups == channels.
template <typename T, int TEAM>
__global__ void group_slopes(const typename Wide<T>::type* sums, const typename Wide<T>::type* weight,
                             const typename Wide<T>::type* rstd, const typename Wide<T>::type* dmean, const typename Wide<T>::type* dvar,
                             typename Wide<T>::type* offset, typename Wide<T>::type* slope, i64 samples, i64 channels,
                             i64 groups, i64 count) {
  typedef typename Wide<T>::type W;
  i64 size = channels / groups;
  for (i64 q = first_row<TEAM>(); q < samples * groups; q += row_step<TEAM>()) {
    W a = 0, b = 0;
    for (i64 j = first_column<TEAM>(); j < size; j += TEAM) {
      i64 c = q % groups * size + j, k = q / groups * channels + c;
      W w = weight ? weight[c] : W(1);
      a += w * sums[k];
      b += w * sums[samples * channels + k];
    }
    a = team_reduce<TEAM>(a, Plus()) / (W)count;
    b = team_reduce<TEAM>(b, Plus()) / (W)count;
    if (first_column<TEAM>() == 0) {
      W r = rstd[q];
      offset[q] = dmean ? a - dmean[q % groups] / ((W)count * r) : a;
      slope[q] = dvar ? b - W(2) * dvar[q % groups] / ((W)count * r * r) : b;
    }
  }
}

// dx = rstd * (g - offset - xhat * slope) with g = dy * weight
template <typename T, int L>
__device__ void normalise_backward(const T* dy, const T* x, const typename Wide<T>::type* weight, const typename Wide<T>::type* mean,
                                   const typename Wide<T>::type* rstd, const typename Wide<T>::type* offset,
                                   const typename Wide<T>::type* slope, T* dx, i64 samples, i64 rows, i64 channels, i64 groups) {
  typedef typename Wide<T>::type W;
  const T* const arrays[2] = {dy, x};
  W m[L], r[L], w[L], o[L], s[L];
  i64 size = channels / groups;
  auto load = [&](i64 sample, i64 c) {
    i64 q[L];
    groups_of(q, sample, c, groups, size);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      m[l] = mean[q[l]];
      r[l] = rstd[q[l]];
      o[l] = offset[q[l]];
      s[l] = slope[q[l]];
      w[l] = weight ? weight[c + l] : W(1);
    }
  };
  each_place<T, L, 2>(arrays, dx, samples, rows, channels, load, [&](const W(&v)[2], int l) {
    W h = (v[1] - m[l]) * r[l], g = weight ? v[0] * w[l] : v[0];
    return r[l] * (g - (o[l] + h * s[l]));
  });
}
template <typename T>
__global__ void group_norm_backward(const T* dy, const T* x, const typename Wide<T>::type* weight,
                                    const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd,
                                    const typename Wide<T>::type* offset, const typename Wide<T>::type* slope, T* dx, i64 samples,
                                    i64 rows, i64 channels, i64 groups) {
  if (by_packs(channels, dy, x) && aligned(dx))
    normalise_backward<T, Lanes<T>::most>(dy, x, weight, mean, rstd, offset, slope, dx, samples, rows, channels, groups);
  else normalise_backward<T, 1>(dy, x, weight, mean, rstd, offset, slope, dx, samples, rows, channels, groups);
}

// y = x * scale + shift with a number of each kind for each channel; `shift` may be null.
template <typename T, int L>
__device__ void scale_and_shift(const T* x, const typename Wide<T>::type* scale, const typename Wide<T>::type* shift, T* y, i64 rows,
                                i64 channels) {
  typedef typename Wide<T>::type W;
  const T* const arrays[1] = {x};
  W w[L], b[L];
  auto load = [&](i64, i64 c) {
#pragma unroll
    for (int l = 0; l < L; ++l) {
      w[l] = scale[c + l];
      b[l] = shift ? shift[c + l] : W(0);
    }
  };
  each_place<T, L, 4>(arrays, y, 1, rows, channels, load, [&](const W(&v)[1], int l) {
    W h = v[0] * w[l];
    return shift ? h + b[l] : h;
  });
}
template <typename T>
__global__ void scale_shift(const T* x, const typename Wide<T>::type* scale, const typename Wide<T>::type* shift, T* y, i64 rows,
                            i64 channels) {
  if (by_packs(channels, x, y)) scale_and_shift<T, Lanes<T>::most>(x, scale, shift, y, rows, channels);
  else scale_and_shift<T, 1>(x, scale, shift, y, rows, channels);
}
