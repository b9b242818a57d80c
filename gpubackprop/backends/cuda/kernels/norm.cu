// Layer normalisation (Ba, Kiros & Hinton 2016) over the rows of a (rows, cols) array: y = (x - mean) * rstd * weight + bias with
// rstd = 1 / sqrt(var + eps). `weight` and `bias` may be null. They and the moments are of the type that is computed in: half
// precision cannot hold a variance beyond 65504, and a rounded mean would cost the derivative its digits.
//
// T is the type of y and of its cotangent, X that of x and of its: the same, or float beside a half T, as where a residual sum in
// float32 is normalised for a product of halves.

template <typename T, typename X, int TEAM, int HELD, int PACKED>
__global__ void layer_norm(const X* x, const typename Wide<T>::type* weight, const typename Wide<T>::type* bias, T* y,
                           typename Wide<T>::type* mean,
                           typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 rows, i64 cols, double eps, i64 pieces,
                           int stage) {
  typedef typename Wide<T>::type W;
  W* squares = part + rows * pieces;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const X* const arrays[1] = {x};
    const W* const columns[2] = {weight, bias};
    Rows<X, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
    W m = 0, d = 0;
    if (stage < 2) {
      r.each([&](const W(&v)[1]) { m += v[0]; });
      m = team_reduce<TEAM>(m, Plus());
    } else {
      m = pieces_sum<TEAM>(part, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = m;
      continue;
    }
    m = m / (W)cols;
    // A second pass for the variance: a mean that is large beside the spread costs no digits.
    if (stage < 3) {
      r.each([&](const W(&v)[1]) { d += (v[0] - m) * (v[0] - m); });
      d = team_reduce<TEAM>(d, Plus());
    } else {
      d = pieces_sum<TEAM>(squares, r.at.row, pieces);
    }
    if (stage == 2) {
      if (leads<TEAM>()) squares[job] = d;
      continue;
    }
    W root = W(1) / sqrt(d / (W)cols + (W)eps);
    r.write(y, cols, columns, [&](const W(&v)[1], const W(&c)[2], i64) {
      W h = (v[0] - m) * root;
      if (weight) h = h * c[0];
      return bias ? h + c[1] : h;
    });
    if (leads<TEAM>() && r.at.first == 0) {
      mean[r.at.row] = m;
      rstd[r.at.row] = root;
    }
  }
}

// The parameters' cotangents along with dx, where rows stay in registers: each team adds up the products dy * xhat of its rows for each
// column in shared memory, in places of each thread's own, and dy itself (with BIAS) in registers; the block leaves the teams' sums in
// row blockIdx.x of (blocks, cols) or, with BIAS, of (blocks, 2, cols). Halves of many columns would need more shared memory than a
// block has without asking.
template <typename X, int TEAM, int HELD, int PACKED, bool BIAS> struct ColumnSums {
  typedef typename Wide<X>::type W;
  static constexpr int L = PACKED ? 16 / (int)sizeof(X) : 1, OWN = TEAM * HELD * L, TEAMS = 256 / TEAM;
  static constexpr bool FIT = HELD > 0 && HELD * L <= 32;
  static constexpr int BLOCKS = HELD * L > 32 ? 1 : 2;  // of a multiprocessor at least: no more registers than those allow
  W* sums;
  W plain[FIT && BIAS ? HELD * L : 1];

  __device__ __forceinline__ W* own() { return sums + threadIdx.x / TEAM * OWN + threadIdx.x % TEAM; }  // neighbours in neighbouring banks
  __device__ __forceinline__ void clear() {
    for (int k = threadIdx.x; k < TEAMS * OWN; k += 256) sums[k] = 0;
    if constexpr (BIAS)
#pragma unroll
      for (int k = 0; k < HELD * L; ++k) plain[k] = 0;
    __syncthreads();
  }
  template <typename R> __device__ __forceinline__ void add(R& r, W mean, W root) {
    r.packs([&](int k, i64) {
#pragma unroll
      for (int l = 0; l < L; ++l) {
        W dy = r.beside.template value<W>(k, l);
        own()[(k * L + l) * TEAM] += dy * ((static_cast<W>(r.kept[0][k].item[l]) - mean) * root);
        if constexpr (BIAS) plain[k * L + l] += dy;
      }
    });
  }
  __device__ __forceinline__ void fold(W* out, i64 cols) {
    out += blockIdx.x * cols * (BIAS ? 2 : 1);
    leave(out, cols);
    if constexpr (BIAS) {
      __syncthreads();  // those sums have been read
#pragma unroll
      for (int k = 0; k < HELD * L; ++k) own()[k * TEAM] = plain[k];
      leave(out + cols, cols);
    }
  }
  __device__ __forceinline__ void leave(W* out, i64 cols) {
    __syncthreads();
    for (i64 j = threadIdx.x; j < cols; j += 256) {
      int p = (int)j / L, place = (p / TEAM * L + (int)j % L) * TEAM + p % TEAM;
      W s = sums[place];
      for (int t = 1; t < TEAMS; ++t) s += sums[t * OWN + place];
      out[j] = s;
    }
  }
};

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight and xhat = (x - mean) * rstd
template <typename T, typename X, int TEAM, int HELD, int PACKED>
__global__ void __launch_bounds__(256, ColumnSums<X, TEAM, HELD, PACKED, true>::BLOCKS) layer_norm_backward(const T* dy, const X* x, const typename Wide<T>::type* weight, const typename Wide<T>::type* mean,
                                    const typename Wide<T>::type* rstd, X* dx, typename Wide<T>::type* by_block, typename Wide<T>::type* part, i64 rows, i64 cols,
                                    i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  W* slopes = part + rows * pieces;
  typedef ColumnSums<X, TEAM, HELD, PACKED, true> Sums;
  __shared__ W shared[Sums::FIT ? Sums::TEAMS * Sums::OWN : 1];
  Sums sums = {shared};
  if constexpr (Sums::FIT)
    if (by_block) sums.clear();
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const X* const arrays[1] = {x};
    const W* const columns[1] = {weight};
    Rows<X, TEAM, HELD, PACKED, 1, T> r(arrays, job, cols, pieces, dy);
    W m = mean[r.at.row], root = rstd[r.at.row], a = 0, b = 0;
    if (stage < 2) {
      r.each(columns, [&](const W(&v)[2], const W(&c)[1], i64) {
        W g = weight ? v[1] * c[0] : v[1];
        a += g;
        b += g * ((v[0] - m) * root);
      });
      a = team_reduce<TEAM>(a, Plus());
      b = team_reduce<TEAM>(b, Plus());
    } else {
      a = pieces_sum<TEAM>(part, r.at.row, pieces);
      b = pieces_sum<TEAM>(slopes, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) {
        part[job] = a;
        slopes[job] = b;
      }
      continue;
    }
    a = a / (W)cols;
    b = b / (W)cols;
    if constexpr (Sums::FIT) r.drop();
    r.write(dx, cols, columns, [&](const W(&v)[2], const W(&c)[1], i64) {
      W h = (v[0] - m) * root, g = weight ? v[1] * c[0] : v[1];
      return root * (g - (a + h * b));
    });
    if constexpr (Sums::FIT) {
      r.drop();
      if (by_block) sums.add(r, m, root);
    }
  }
  if constexpr (Sums::FIT)
    if (by_block) sums.fold(by_block, cols);
}

// The parameters' cotangents in two steps, so that a sum over the rows has one order: each thread sums one column over `span` rows,
// then the sums of the spans are added. `part` is (spans, 2, cols): of the products with xhat, and of dy alone. Without a mean, as
// where rows are only scaled, xhat = x * rstd, and `part` is (spans, cols).
template <typename T, typename X>
__global__ void layer_norm_weight(const T* dy, const X* x, const typename Wide<T>::type* mean,
                                  const typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 rows, i64 cols,
                                  i64 span) {
  typedef typename Wide<T>::type W;
  i64 spans = (rows + span - 1) / span;
  for (i64 k = thread_index(); k < spans * cols; k += thread_count()) {
    i64 j = k % cols, i = k / cols * span, end = i + span < rows ? i + span : rows;
    W* to = part + (mean ? 2 : 1) * (k - j) + j;
    W s = 0, plain = 0;
    for (; i < end; ++i) {
      W d = static_cast<W>(x[i * cols + j]), out = static_cast<W>(dy[i * cols + j]);
      if (mean) d = d - mean[i];
      s += out * (d * rstd[i]);
      plain += out;
    }
    to[0] = s;
    if (mean) to[cols] = plain;
  }
}

// out[j] = the sum of part[i, j] over the rows; those of the columns from `split` on go to `more`. A block takes 8 columns at a time,
// 32 threads each.
template <typename T>
__global__ void column_sum(const typename Wide<T>::type* part, T* out, T* more, i64 rows, i64 cols, i64 split) {
  typedef typename Wide<T>::type W;
  __shared__ W sums[256];
  int x = threadIdx.x % 8, y = threadIdx.x / 8;
  for (i64 first = (i64)blockIdx.x * 8; first < cols; first += (i64)gridDim.x * 8) {
    i64 j = first + x;
    W s = 0;
    if (j < cols)
      for (i64 i = y; i < rows; i += 32) s += part[i * cols + j];
    __syncthreads();  // the sums of the columns before these have been read
    sums[threadIdx.x] = s;
    __syncthreads();
    if (y == 0 && j < cols) {
      for (int t = 1; t < 32; ++t) s += sums[t * 8 + x];
      (j < split ? out + j : more + (j - split))[0] = static_cast<T>(s);
    }
  }
}

// Normalisation by the root mean square (Zhang & Sennrich 2019): y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps).
template <typename T, typename X, int TEAM, int HELD, int PACKED>
__global__ void rms_norm(const X* x, const typename Wide<T>::type* weight, T* y, typename Wide<T>::type* rstd, typename Wide<T>::type* part, i64 rows,
                         i64 cols, double eps, i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const X* const arrays[1] = {x};
    const W* const columns[1] = {weight};
    Rows<X, TEAM, HELD, PACKED, 1> r(arrays, job, cols, pieces);
    W s = 0;
    if (stage < 2) {
      r.each([&](const W(&v)[1]) { s += v[0] * v[0]; });
      s = team_reduce<TEAM>(s, Plus());
    } else {
      s = pieces_sum<TEAM>(part, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = s;
      continue;
    }
    W root = W(1) / sqrt(s / (W)cols + (W)eps);
    r.write(y, cols, columns, [&](const W(&v)[1], const W(&c)[1], i64) { return weight ? v[0] * root * c[0] : v[0] * root; });
    if (leads<TEAM>() && r.at.first == 0) rstd[r.at.row] = root;
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * weight and xhat = x * rstd
template <typename T, typename X, int TEAM, int HELD, int PACKED>
__global__ void __launch_bounds__(256, ColumnSums<X, TEAM, HELD, PACKED, false>::BLOCKS) rms_norm_backward(const T* dy, const X* x, const typename Wide<T>::type* weight, const typename Wide<T>::type* rstd, X* dx,
                                  typename Wide<T>::type* by_block, typename Wide<T>::type* part, i64 rows, i64 cols, i64 pieces, int stage) {
  typedef typename Wide<T>::type W;
  typedef ColumnSums<X, TEAM, HELD, PACKED, false> Sums;
  __shared__ W shared[Sums::FIT ? Sums::TEAMS * Sums::OWN : 1];
  Sums sums = {shared};
  if constexpr (Sums::FIT)
    if (by_block) sums.clear();
  for (i64 job = first_row<TEAM>(); job < rows * pieces; job += row_step<TEAM>()) {
    const X* const arrays[1] = {x};
    const W* const columns[1] = {weight};
    Rows<X, TEAM, HELD, PACKED, 1, T> r(arrays, job, cols, pieces, dy);
    W root = rstd[r.at.row], b = 0;
    if (stage < 2) {
      r.each(columns, [&](const W(&v)[2], const W(&c)[1], i64) { b += (weight ? v[1] * c[0] : v[1]) * (v[0] * root); });
      b = team_reduce<TEAM>(b, Plus());
    } else {
      b = pieces_sum<TEAM>(part, r.at.row, pieces);
    }
    if (stage == 1) {
      if (leads<TEAM>()) part[job] = b;
      continue;
    }
    b = b / (W)cols;
    if constexpr (Sums::FIT) r.drop();
    r.write(dx, cols, columns, [&](const W(&v)[2], const W(&c)[1], i64) {
      return root * ((weight ? v[1] * c[0] : v[1]) - v[0] * root * b);
    });
    if constexpr (Sums::FIT) {
      r.drop();
      if (by_block) sums.add(r, W(0), root);
    }
  }
  if constexpr (Sums::FIT)
    if (by_block) sums.fold(by_block, cols);
}
