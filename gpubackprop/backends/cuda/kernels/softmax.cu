// Softmax, log-softmax and softmax cross-entropy over the rows of (rows, cols) arrays, and their derivatives. See rows.cuh for how
// rows are read, and for pieces and stages.
//
// The largest element of a row is taken out first, so that no exponential overflows.

// The largest of some elements, and the sum of the exponentials of what each falls short of it. NaNs are in the sum alone.
template <typename W> struct Spread {
  W top, sum;
  // In one pass: what was added up before is scaled where a larger element comes.
  template <int L> __device__ __forceinline__ void add(const W (&v)[L]) {
    W m = top;
#pragma unroll
    for (int l = 0; l < L; ++l) m = Larger()(v[l], m);
    if (m > top) {
      sum = sum * exp(top - m);
      top = m;
    }
    W from = top == log(W(0)) ? W(0) : top;  // after nothing but -infinity the sum is 0, not infinity from infinity
#pragma unroll
    for (int l = 0; l < L; ++l) sum += exp(v[l] - from);
  }
  __device__ __forceinline__ void add(const Spread& other) {
    W m = Larger()(other.top, top);
    sum = scaled(m) + other.scaled(m);
    top = m;
  }
  __device__ __forceinline__ W scaled(W m) const { return top == m ? sum : sum * exp(top - m); }
};
template <typename W> __device__ __forceinline__ Spread<W> no_spread() {
  Spread<W> s = {log(W(0)), W(0)};
  return s;
}

// The spread of a whole row, for every thread of its team; false where this stage ends with that of a piece.
template <int TEAM, int HELD, typename R, typename W>
__device__ __forceinline__ bool find_spread(R& r, W* part, i64 job, i64 cols, i64 pieces, int stage, Spread<W>& s) {
  s = no_spread<W>();
  if constexpr (HELD > 0) {
    r.each([&](const W(&v)[1]) { s.top = Larger()(v[0], s.top); });
    s.top = team_reduce<TEAM>(s.top, Larger());
    r.each([&](const W(&v)[1]) { s.sum += exp(v[0] - s.top); });
    s.sum = team_reduce<TEAM>(s.sum, Plus());
  } else {
    if (stage < 2) {
      r.packs([&](int k, i64 p) {
        W v[R::L];
#pragma unroll
        for (int l = 0; l < R::L; ++l) v[l] = static_cast<W>(r.kept[0][k].item[l]);
        if ((p + 1) * R::L > cols)  // behind the row's end there is nothing
#pragma unroll
          for (int l = 1; l < R::L; ++l)
            if (p * R::L + l >= cols) v[l] = log(W(0));
        s.add(v);
      });
    } else {
      for (i64 q = r.at.row * pieces + first_column<TEAM>(); q < (r.at.row + 1) * pieces; q += TEAM) {
        Spread<W> piece = {part[2 * q], part[2 * q + 1]};
        s.add(piece);
      }
    }
    W m = team_reduce<TEAM>(s.top, Larger());
    s.sum = team_reduce<TEAM>(s.scaled(m), Plus());
    s.top = m;
    if (stage == 1) {
      if (leads<TEAM>()) {
        part[2 * job] = s.top;
        part[2 * job + 1] = s.sum;
      }
      return false;
    }
  }
  if (!(s.top - s.top == W(0))) s.sum = s.top - s.top;  // infinity from infinity is no number, in every column
  return true;
}

template <typename T, int TEAM, int HELD, int PACKED>
__global__ void softmax(const T* x, T* y, typename Wide<T>::type* part, i64 rows, i64 cols, i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const T* const arrays[1] = {x};
    Rows<T, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
    Spread<W> s;
    if (!find_spread<TEAM, HELD>(r, part, job, cols, pieces, stage, s)) continue;
    W share = W(1) / s.sum;
    r.write(y, cols, [&](const W(&v)[1]) { return exp(v[0] - s.top) * share; });
  }
}

// dx = y * (dy - sum(dy * y))
template <typename T, int TEAM, int HELD, int PACKED>
__global__ void softmax_backward(const T* dy, const T* y, T* dx, typename Wide<T>::type* part, i64 rows, i64 cols, i64 pieces,
                                 int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const T* const arrays[2] = {dy, y};
    Rows<T, TEAM, HELD, PACKED, 2> r(arrays, job, cols, pieces);
    W s = 0;
    if (stage < 2) {
      r.each([&](const W(&v)[2]) { s += v[0] * v[1]; });
      s = team_reduce<TEAM>(s, Plus());
    } else {
      s = pieces_sum<TEAM>(part, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = s;
      continue;
    }
    r.write(dx, cols, [&](const W(&v)[2]) { return v[1] * (v[0] - s); });
  }
}

template <typename T, int TEAM, int HELD, int PACKED>
__global__ void log_softmax(const T* x, T* y, typename Wide<T>::type* part, i64 rows, i64 cols, i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const T* const arrays[1] = {x};
    Rows<T, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
    Spread<W> s;
    if (!find_spread<TEAM, HELD>(r, part, job, cols, pieces, stage, s)) continue;
    W total = log(s.sum);
    r.write(y, cols, [&](const W(&v)[1]) { return (v[0] - s.top) - total; });
  }
}

// dx = dy - exp(y) * sum(dy)
template <typename T, int TEAM, int HELD, int PACKED>
__global__ void log_softmax_backward(const T* dy, const T* y, T* dx, typename Wide<T>::type* part, i64 rows, i64 cols, i64 pieces,
                                     int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const T* const arrays[2] = {dy, y};
    Rows<T, TEAM, HELD, PACKED, 2> r(arrays, job, cols, pieces);
    W s = 0;
    if (stage < 2) {
      r.each([&](const W(&v)[2]) { s += v[0]; });
      s = team_reduce<TEAM>(s, Plus());
    } else {
      s = pieces_sum<TEAM>(part, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = s;
      continue;
    }
    r.write(dx, cols, [&](const W(&v)[2]) { return v[0] - exp(v[1]) * s; });
  }
}

// The probability that a row's target gives to class j: (1 - smoothing) * [j == target] + smoothing / cols, times the class's
// weight.
template <typename W, typename I> struct Target {
  i64 label, cols;
  const W* weight;
  W hit, miss;

  __device__ Target(const I* target, i64 row, i64 cols, const W* weight, double smoothing)
      : label((i64)target[row]), cols(cols), weight(weight) {
    miss = (W)(smoothing / (double)cols);
    hit = (W)(1.0 - smoothing) + miss;
  }
  __device__ bool is_class() const { return label >= 0 && label < cols; }
  __device__ W operator()(i64 j) const {
    W q = j == label ? hit : miss;
    return weight && q != W(0) ? q * weight[j] : q;
  }
};

// loss[i] = -sum_j q[i, j] * log(softmax(x)[i, j]). A row whose target is `ignore` costs 0; one whose target is no class costs NaN,
// since a kernel cannot raise. What the derivative needs beside x is each row's spread: its largest element and the sum of the
// exponentials of what the others fall short of it. So logits of half precision are read once and nothing of their size is written.
// With smoothing the costs of pieces are behind their spreads in `part`, and a third stage adds them up.
template <typename T, typename I, int TEAM, int HELD, int PACKED>
__global__ void cross_entropy(const T* x, const I* target, const typename Wide<T>::type* weight, typename Wide<T>::type* loss,
                              typename Wide<T>::type* top, typename Wide<T>::type* total, typename Wide<T>::type* part, i64 rows, i64 cols,
                              i64 ignore, double smoothing, i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  W* costs = part + 2 * rows * pieces;
  bool smooth = smoothing != 0.0;
  for (i64 job = first_row<TEAM>(); job < rows * (stage == 3 ? 1 : pieces); job += row_step<TEAM>()) {
    i64 row = HELD || stage == 3 ? job : job / pieces;
    Target<W, I> q(target, row, cols, weight, smoothing);
    bool counts = q.label != ignore && q.is_class();
    W cost = 0;
    if (stage < 3) {
      const T* const arrays[1] = {x}, * const none[1] = {nullptr};
      Rows<T, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
      if (stage == 2 && !smooth && r.at.first) continue;  // the first piece does it
      Spread<W> s;
      if (!find_spread<TEAM, HELD>(r, part, job, cols, pieces, stage, s)) continue;
      W rest = log(s.sum);
      // A class without a share costs nothing, even at a logit of -infinity.
      if (counts && smooth) {
        r.each(none, [&](const W(&v)[1], const W(&)[1], i64 j) {
          W share = q(j);
          if (share != W(0)) cost -= share * ((v[0] - s.top) - rest);
        });
        cost = team_reduce<TEAM>(cost, Plus());
      } else if (counts) {
        W share = q(q.label);
        if (share != W(0)) cost = -share * ((static_cast<W>(x[row * cols + q.label]) - s.top) - rest);
      }
      if (leads<TEAM>() && r.at.first == 0) {
        top[row] = s.top;
        total[row] = s.sum;
      }
      if (stage == 2 && smooth) {
        if (leads<TEAM>()) costs[job] = cost;
        continue;
      }
    } else {
      cost = pieces_sum<TEAM>(costs, row, pieces);
    }
    if (leads<TEAM>()) loss[row] = q.label != ignore && !counts ? (W)nanf("") : cost;
  }
}

// dx = dy * (exp(x - top) / total * sum(q) - q). Only weighted and smoothed targets have a sum that takes a pass over the columns.
template <typename T, typename I, int TEAM, int HELD, int PACKED>
__global__ void cross_entropy_backward(const typename Wide<T>::type* dy, const T* x, const typename Wide<T>::type* top,
                                       const typename Wide<T>::type* total, const I* target, const typename Wide<T>::type* weight, T* dx,
                                       typename Wide<T>::type* part, i64 rows, i64 cols, i64 ignore, double smoothing, i64 pieces,
                                       int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const T* const arrays[1] = {x}, * const none[1] = {nullptr};
    Rows<T, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
    i64 row = r.at.row;
    Target<W, I> q(target, row, cols, weight, smoothing);
    W sum = 1;
    if (smoothing == 0.0) {
      if (weight && q.is_class()) sum = q(q.label);
    } else if (weight && stage < 2) {
      i64 end = r.at.last * r.L < cols ? r.at.last * r.L : cols;
      sum = 0;
      for (i64 j = r.at.first * r.L + first_column<TEAM>(); j < end; j += TEAM) sum += q(j);
      sum = team_reduce<TEAM>(sum, Plus());
    } else if (weight) {
      sum = pieces_sum<TEAM>(part, row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = sum;
      continue;
    }
    W slope = dy[row], most = top[row], share = sum / total[row];
    bool ignored = q.label == ignore;
    if (!ignored && !q.is_class()) slope = (W)nanf("");
    r.write(dx, cols, none, [&](const W(&v)[1], const W(&)[1], i64 j) {
      return ignored ? W(0) : slope * (exp(v[0] - most) * share - q(j));
    });
  }
}
