// Softmax, log-softmax and softmax cross-entropy over the rows of (rows, cols) arrays, and their derivatives.
//
// The largest element of a row is taken out first, so that no exponential overflows. Sums run over strided columns within a
// thread, then across the team.

template <int TEAM, typename W, typename T> __device__ W row_max(const T* row, i64 cols) {
  W m = static_cast<W>(row[0]);
  for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) m = Larger()(static_cast<W>(row[j]), m);
  return team_reduce<TEAM>(m, Larger());
}

template <int TEAM, typename W, typename T> __device__ W row_exp_sum(const T* row, i64 cols, W m) {
  W s = 0;
  for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) s += exp(static_cast<W>(row[j]) - m);
  return team_reduce<TEAM>(s, Plus());
}

template <typename T, int TEAM> __global__ void softmax(const T* x, T* y, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T* row = x + i * cols;
    W m = row_max<TEAM, W>(row, cols), s = row_exp_sum<TEAM, W>(row, cols, m);
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM)
      y[i * cols + j] = static_cast<T>(exp(static_cast<W>(row[j]) - m) / s);
  }
}

// dx = y * (dy - sum(dy * y))
template <typename T, int TEAM>
__global__ void softmax_backward(const T* dy, const T* y, T* dx, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T *g = dy + i * cols, *p = y + i * cols;
    W s = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) s += static_cast<W>(g[j]) * static_cast<W>(p[j]);
    s = team_reduce<TEAM>(s, Plus());
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM)
      dx[i * cols + j] = static_cast<T>(static_cast<W>(p[j]) * (static_cast<W>(g[j]) - s));
  }
}

template <typename T, int TEAM> __global__ void log_softmax(const T* x, T* y, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T* row = x + i * cols;
    W m = row_max<TEAM, W>(row, cols), s = log(row_exp_sum<TEAM, W>(row, cols, m));
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM)
      y[i * cols + j] = static_cast<T>((static_cast<W>(row[j]) - m) - s);
  }
}

// dx = dy - exp(y) * sum(dy)
template <typename T, int TEAM>
__global__ void log_softmax_backward(const T* dy, const T* y, T* dx, i64 rows, i64 cols) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T *g = dy + i * cols, *l = y + i * cols;
    W s = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) s += static_cast<W>(g[j]);
    s = team_reduce<TEAM>(s, Plus());
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM)
      dx[i * cols + j] = static_cast<T>(static_cast<W>(g[j]) - exp(static_cast<W>(l[j])) * s);
  }
}

// The probability that a row's target gives to class j: (1 - smoothing) * [j == target] + smoothing / cols, times the class's
// weight.
template <typename W, typename T, typename I> struct Target {
  i64 label, cols;
  const T* weight;
  W hit, miss;

  __device__ Target(const I* target, i64 row, i64 cols, const T* weight, double smoothing)
      : label((i64)target[row]), cols(cols), weight(weight) {
    miss = (W)(smoothing / (double)cols);
    hit = (W)(1.0 - smoothing) + miss;
  }
  __device__ bool is_class() const { return label >= 0 && label < cols; }
  __device__ W operator()(i64 j) const {
    W q = j == label ? hit : miss;
    return weight ? q * static_cast<W>(weight[j]) : q;
  }
};

// loss[i] = -sum_j q[i, j] * logp[i, j]. A row whose target is `ignore` costs 0; one whose target is no class costs NaN, since a
// kernel cannot raise.
template <typename T, typename I, int TEAM>
__global__ void cross_entropy(const T* x, const I* target, const T* weight, T* loss, T* logp, i64 rows, i64 cols, i64 ignore,
                              double smoothing) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    const T* row = x + i * cols;
    Target<W, T, I> q(target, i, cols, weight, smoothing);
    bool counts = q.label != ignore && q.is_class();
    W m = row_max<TEAM, W>(row, cols), s = log(row_exp_sum<TEAM, W>(row, cols, m)), cost = 0;
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W l = (static_cast<W>(row[j]) - m) - s;
      logp[i * cols + j] = static_cast<T>(l);
      // A class without a share costs nothing, even at a logit of -infinity.
      W share = counts && (smoothing != 0.0 || j == q.label) ? q(j) : W(0);
      if (share != W(0)) cost -= share * l;
    }
    cost = team_reduce<TEAM>(cost, Plus());
    if (first_column<TEAM>() == 0) {
      if (q.label != ignore && !q.is_class()) cost = (W)nanf("");
      loss[i] = static_cast<T>(cost);
    }
  }
}

// dx = dy * (exp(logp) * sum(q) - q)
template <typename T, typename I, int TEAM>
__global__ void cross_entropy_backward(const T* dy, const T* logp, const I* target, const T* weight, T* dx, i64 rows,
                                       i64 cols, i64 ignore, double smoothing) {
  typedef typename Wide<T>::type W;
  for (i64 i = first_row<TEAM>(); i < rows; i += row_step<TEAM>()) {
    Target<W, T, I> q(target, i, cols, weight, smoothing);
    W slope = static_cast<W>(dy[i]), total = 0;
    if (q.label == ignore) {
      slope = 0;
    } else if (!q.is_class()) {
      slope = (W)nanf("");
    } else if (smoothing == 0.0) {
      total = q(q.label);
    } else {
      for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) total += q(j);
      total = team_reduce<TEAM>(total, Plus());
    }
    for (i64 j = first_column<TEAM>(); j < cols; j += TEAM) {
      W p = exp(static_cast<W>(logp[i * cols + j]));
      W d = q.label == ignore ? W(0) : slope * (p * total - q(j));
      dx[i * cols + j] = static_cast<T>(d);
    }
  }
}
