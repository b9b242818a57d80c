// Normalisation of images (samples, rows, channels), rows being places: over each sample's rows and over channels / groups
// neighbouring channels. Group normalisation (Wu & He 2018) as it is; instance normalisation with a group for each channel; batch
// normalisation (Ioffe & Szegedy 2015) with the whole batch as one sample and a group for each channel.
//
// Sums over the rows go in two steps, so that they have one order: each thread sums one channel over `span` rows, then a team adds
// up the sums of the spans. `part` is (samples, spans, channels). Moments are (samples, groups), of the type that is computed in: half
// precision cannot hold a variance beyond 65504. `weight` and `bias` are of that type too, as parameters of mixed precision are; they
// may be null.

// Where the moments of a channel of a sample are.
__device__ __forceinline__ i64 group_of(i64 sample, i64 channel, i64 channels, i64 groups) {
  return sample * groups + channel / (channels / groups);
}

// Sums of x, or, where a mean is given, of its squared deviations: a mean that is large beside the spread costs no digits.
template <typename T>
__global__ void channel_sum(const T* x, const typename Wide<T>::type* mean, typename Wide<T>::type* part, i64 samples, i64 rows,
                            i64 channels, i64 groups, i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span;
  for (i64 k = thread_index(); k < samples * spans * channels; k += thread_count()) {
    i64 c = k % channels, sample = k / channels / spans, i = k / channels % spans * span;
    i64 end = i + span < rows ? i + span : rows;
    const T* column = x + sample * rows * channels + c;
    W s = 0, m = mean ? mean[group_of(sample, c, channels, groups)] : W(0);
    for (; i < end; ++i) {
      W d = static_cast<W>(column[i * channels]) - m;
      s += mean ? d * d : d;
    }
    part[k] = s;
  }
}

// The mean of a group's `count` values from the sums over spans. Where `rstd` is given the mean is that of the squared deviations,
// and 1 / sqrt(it + eps) goes to `rstd`. `out` may be null.
template <typename T, int TEAM>
__global__ void group_moment(const typename Wide<T>::type* part, typename Wide<T>::type* out, typename Wide<T>::type* rstd,
                             i64 samples, i64 spans, i64 channels, i64 groups, i64 count, double eps) {
  typedef typename Wide<T>::type W;
  i64 size = channels / groups;
  for (i64 q = first_row<TEAM>(); q < samples * groups; q += row_step<TEAM>()) {
    const W* first = part + q / groups * spans * channels + q % groups * size;
    W v = 0;
    for (i64 j = first_column<TEAM>(); j < spans * size; j += TEAM) v += first[j / size * channels + j % size];
    v = team_reduce<TEAM>(v, Plus()) / (W)count;
    if (first_column<TEAM>() == 0) {
      if (out) out[q] = v;
      if (rstd) rstd[q] = W(1) / sqrt(v + (W)eps);
    }
  }
}

// y = (x - mean) * rstd * weight + bias
template <typename T>
__global__ void group_norm(const T* x, const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd,
                           const typename Wide<T>::type* weight, const typename Wide<T>::type* bias, T* y, i64 samples, i64 rows,
                           i64 channels, i64 groups) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < samples * rows * channels; k += thread_count()) {
    i64 c = k % channels, q = group_of(k / channels / rows, c, channels, groups);
    W h = (static_cast<W>(x[k]) - mean[q]) * rstd[q];
    if (weight) h = h * weight[c];
    if (bias) h = h + bias[c];
    y[k] = static_cast<T>(h);
  }
}

// Sums of dy, and behind them those of dy * xhat with xhat = (x - mean) * rstd: `part` is (2, samples, spans, channels).
template <typename T>
__global__ void channel_slopes(const T* dy, const T* x, const typename Wide<T>::type* mean,
                               const typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 samples, i64 rows,
                               i64 channels, i64 groups, i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span, total = samples * spans * channels;
  for (i64 k = thread_index(); k < total; k += thread_count()) {
    i64 c = k % channels, sample = k / channels / spans, i = k / channels % spans * span;
    i64 end = i + span < rows ? i + span : rows, start = sample * rows * channels + c;
    i64 q = group_of(sample, c, channels, groups);
    W m = mean[q], r = rstd[q], a = 0, b = 0;
    for (; i < end; ++i) {
      W g = static_cast<W>(dy[start + i * channels]);
      a += g;
      b += g * ((static_cast<W>(x[start + i * channels]) - m) * r);
    }
    part[k] = a;
    part[total + k] = b;
  }
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
template <typename T>
__global__ void group_norm_backward(const T* dy, const T* x, const typename Wide<T>::type* weight,
                                    const typename Wide<T>::type* mean, const typename Wide<T>::type* rstd, const typename Wide<T>::type* offset,
                                    const typename Wide<T>::type* slope, T* dx, i64 samples, i64 rows, i64 channels, i64 groups) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < samples * rows * channels; k += thread_count()) {
    i64 c = k % channels, q = group_of(k / channels / rows, c, channels, groups);
    W r = rstd[q], h = (static_cast<W>(x[k]) - mean[q]) * r, g = static_cast<W>(dy[k]);
    if (weight) g = g * weight[c];
    dx[k] = static_cast<T>(r * (g - (offset[q] + h * slope[q])));
  }
}

// y = x * scale + shift with a number of each kind for each channel; `shift` may be null.
template <typename T>
__global__ void scale_shift(const T* x, const typename Wide<T>::type* scale, const typename Wide<T>::type* shift, T* y, i64 n,
                            i64 channels) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < n; k += thread_count()) {
    i64 c = k % channels;
    W h = static_cast<W>(x[k]) * scale[c];
    y[k] = static_cast<T>(shift ? h + shift[c] : h);
  }
}
