// Layer normalisation (Ba, Kiros & Hinton 2016) over the rows of a (rows, cols) array: y = (x - mean) * rstd * weight + bias with
// rstd = 1 / sqrt(var + eps). `weight` and `bias` may be null. Moments are of the type that is computed in: half precision cannot
// hold a variance beyond 65504, and a rounded mean would cost the derivative its digits.

template <typename T, int TEAM>
__global__ void layer_norm(const T* x, const T* weight, const T* bias, T* y, typename Wide<T>::type* mean,
                           typename Wide<T>::type* rstd, i64 rows, i64 cols, double eps) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T* row = x + i * cols;
    W m = 0, v = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) m += static_cast<W>(row[j]);
    m = team_reduce<TEAM>(m, Plus()) / (W)cols;
    // A second pass for the variance: a mean that is large beside the spread costs no digits.
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W d = static_cast<W>(row[j]) - m;
      v += d * d;
    }
    v = team_reduce<TEAM>(v, Plus()) / (W)cols;
    W r = W(1) / sqrt(v + (W)eps);
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W h = (static_cast<W>(row[j]) - m) * r;
      if (weight) h = h * static_cast<W>(weight[j]);
      if (bias) h = h + static_cast<W>(bias[j]);
      y[i * cols + j] = static_cast<T>(h);
    }
    if (first_column<TEAM>() == 0) {
      mean[i] = m;
      rstd[i] = r;
    }
  }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight and xhat = (x - mean) * rstd
template <typename T, int TEAM>
__global__ void layer_norm_backward(const T* dy, const T* x, const T* weight, const typename Wide<T>::type* mean,
                                    const typename Wide<T>::type* rstd, T* dx, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T *row = x + i * cols, *out = dy + i * cols;
    W m = mean[i], r = rstd[i], a = 0, b = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W h = (static_cast<W>(row[j]) - m) * r, g = static_cast<W>(out[j]);
      if (weight) g = g * static_cast<W>(weight[j]);
      a += g;
      b += g * h;
    }
    a = team_reduce<TEAM>(a, Plus()) / (W)cols;
    b = team_reduce<TEAM>(b, Plus()) / (W)cols;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W h = (static_cast<W>(row[j]) - m) * r, g = static_cast<W>(out[j]);
      if (weight) g = g * static_cast<W>(weight[j]);
      dx[i * cols + j] = static_cast<T>(r * (g - (a + h * b)));
    }
  }
}

// dweight in two steps, so that its sum over the rows has one order: each thread sums one column over `span` rows, then the sums
// of the spans are added. `part` is (spans, cols). Without a mean, as where rows are only scaled, xhat = x * rstd.
template <typename T>
__global__ void layer_norm_weight(const T* dy, const T* x, const typename Wide<T>::type* mean,
                                  const typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 rows, i64 cols,
                                  i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span;
  for (i64 k = thread_index(); k < spans * cols; k += thread_count()) {
    i64 j = k % cols, i = k / cols * span, end = i + span < rows ? i + span : rows;
    W s = 0;
    for (; i < end; ++i) {
      W d = static_cast<W>(x[i * cols + j]);
      if (mean) d = d - mean[i];
      W h = d * rstd[i];
      s += static_cast<W>(dy[i * cols + j]) * h;
    }
    part[k] = s;
  }
}

template <typename T> __global__ void column_sum(const typename Wide<T>::type* part, T* out, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 j = thread_index(); j < cols; j += thread_count()) {
    W s = 0;
    for (i64 i = 0; i < rows; ++i) s += part[i * cols + j];
    out[j] = static_cast<T>(s);
  }
}

// Normalisation by the root mean square (Zhang & Sennrich 2019): y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps).
template <typename T, int TEAM>
__global__ void rms_norm(const T* x, const T* weight, T* y, typename Wide<T>::type* rstd, i64 rows, i64 cols, double eps) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T* row = x + i * cols;
    W v = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) v += static_cast<W>(row[j]) * static_cast<W>(row[j]);
    W r = W(1) / sqrt(team_reduce<TEAM>(v, Plus()) / (W)cols + (W)eps);
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W h = static_cast<W>(row[j]) * r;
      y[i * cols + j] = static_cast<T>(weight ? h * static_cast<W>(weight[j]) : h);
    }
    if (first_column<TEAM>() == 0) rstd[i] = r;
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * weight and xhat = x * rstd
template <typename T, int TEAM>
__global__ void rms_norm_backward(const T* dy, const T* x, const T* weight, const typename Wide<T>::type* rstd, T* dx,
                                  i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T *row = x + i * cols, *out = dy + i * cols;
    W r = rstd[i], b = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W g = static_cast<W>(out[j]);
      if (weight) g = g * static_cast<W>(weight[j]);
      b += g * (static_cast<W>(row[j]) * r);
    }
    b = team_reduce<TEAM>(b, Plus()) / (W)cols;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W g = static_cast<W>(out[j]);
      if (weight) g = g * static_cast<W>(weight[j]);
      dx[i * cols + j] = static_cast<T>(r * (g - static_cast<W>(row[j]) * r * b));
    }
  }
}
