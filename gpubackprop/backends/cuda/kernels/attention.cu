// Attention in tiles (Dao et al. 2022, "FlashAttention"): no array of all weights is ever written. A block works on ROWS rows of one
// head, a few for each warp, and walks over the other side in tiles of 32, one for each lane. Sums over a row run in the order of the
// tiles; keys' and values' cotangents have a kernel of their own that walks over the queries, so that nothing is added by two blocks.
//
// Arrays are (batches, heads, length, features); `groups` heads of keys serve heads / groups heads of queries each.

// What decides over a weight beside its score.
template <typename T> struct Rule {
  typedef typename Wide<T>::type W;
  const bool* seen;
  const T* bias;
  i64 step_b, step_h, step_i, step_j, heads, queries, keys, past;
  int causal;
  u32 threshold, stream;
  u64 seed, offset;
  double scale, weight;  // of a score, and of a weight that is kept

  // The score of query i and key j, whose product is `dot`; -infinity where i may not attend to j.
  __device__ W score(W dot, i64 b, i64 h, i64 i, i64 j) const {
    W nowhere = log(W(0)), s = dot * (W)scale;
    if (i >= queries || j >= keys || (causal && j > i + past)) return nowhere;
    i64 at = b * step_b + h * step_h + i * step_i + j * step_j;
    if (seen && !seen[at]) return nowhere;
    return bias ? s + static_cast<W>(bias[at]) : s;
  }
  // What a weight is multiplied by: 0 where it is dropped.
  __device__ W factor(i64 b, i64 h, i64 i, i64 j) const {
    if (weight < 0.0) return W(1);
    i64 width = (keys + 3) / 4 * 4;
    u64 number = (u64)(((b * heads + h) * queries + i) * width + j);
    Block block = philox(offset + (number >> 2), stream, seed);
    return block.word[number & 3] < threshold ? (W)weight : W(0);
  }
};

// Rows `first` to `first + COUNT` of a (rows, features) array into shared memory, zeros beyond its end. All threads of the block.
template <int COUNT, int WIDTH, typename W, typename T>
__device__ void load_rows(W (&to)[COUNT][WIDTH], const T* from, i64 first, i64 rows, int features) {
  for (int k = threadIdx.x; k < COUNT * features; k += blockDim.x) {
    int r = k / features, f = k % features;
    to[r][f] = first + r < rows ? static_cast<W>(from[(first + r) * features + f]) : W(0);
  }
}

template <typename W> __device__ __forceinline__ W product(const W* a, const W* b, int features) {
  W s = 0;
  for (int f = 0; f < features; ++f) s += a[f] * b[f];
  return s;
}

// The most features, and rows of a warp: what fits in 48 KiB of shared memory.
template <typename W> struct Limit { static constexpr int FEATURES = 128, FORWARD = 4, BACKWARD = 2; };
template <> struct Limit<double> { static constexpr int FEATURES = 64, FORWARD = 2, BACKWARD = 1; };

template <typename T>
__global__ void attention(const T* q, const T* k, const T* v, const bool* seen, const T* bias, T* y,
                          typename Wide<T>::type* lse, i64 batches, i64 heads, i64 groups, i64 queries, i64 keys, int d, int dv,
                          i64 step_b, i64 step_h, i64 step_i, i64 step_j, int causal, i64 past, double scale, u32 threshold,
                          double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  constexpr int FEATURES = Limit<W>::FEATURES, COUNT = Limit<W>::FORWARD, ROWS = 8 * COUNT, PIECES = FEATURES / 32;
  __shared__ W rows[ROWS][FEATURES];
  __shared__ W tile[32][FEATURES + 1];  // one more, so that lanes do not meet in a bank
  __shared__ W weights[ROWS][32];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, own = threadIdx.x / 32 * COUNT;
  i64 tiles = (queries + ROWS - 1) / ROWS;
  W nowhere = log(W(0));
  for (i64 t = blockIdx.x; t < batches * heads * tiles; t += gridDim.x) {
    i64 head = t / tiles, first = t % tiles * ROWS, b = head / heads, h = head % heads;
    i64 shared = b * groups + h / (heads / groups);
    i64 end = causal && first + ROWS + past < keys ? first + ROWS + past : keys;
    W acc[COUNT][PIECES], top[COUNT], total[COUNT];
    for (int r = 0; r < COUNT; ++r) {
      top[r] = nowhere;
      total[r] = 0;
      for (int c = 0; c < PIECES; ++c) acc[r][c] = 0;
    }
    __syncthreads();
    load_rows(rows, q + head * queries * d, first, queries, d);
    for (i64 j0 = 0; j0 < end; j0 += 32) {
      __syncthreads();
      load_rows(tile, k + shared * keys * d, j0, keys, d);
      __syncthreads();
      for (int r = 0; r < COUNT; ++r) {
        i64 i = first + own + r;
        W s = rule.score(product(rows[own + r], tile[lane], d), b, h, i, j0 + lane);
        W larger = Larger()(team_reduce<32>(s, Larger()), top[r]);
        W shift = larger == nowhere ? W(0) : larger;
        W p = exp(s - shift), shrink = exp(top[r] - shift);
        total[r] = total[r] * shrink + team_reduce<32>(p, Plus());
        top[r] = larger;
        for (int c = 0; c < PIECES; ++c) acc[r][c] *= shrink;
        weights[own + r][lane] = p == W(0) ? W(0) : p * rule.factor(b, h, i, j0 + lane);
      }
      __syncthreads();
      load_rows(tile, v + shared * keys * dv, j0, keys, dv);
      __syncthreads();
      for (int r = 0; r < COUNT; ++r)
        for (int c = 0; c < PIECES; ++c)
          if (lane + 32 * c < dv)
            for (int j = 0; j < 32; ++j) acc[r][c] += weights[own + r][j] * tile[j][lane + 32 * c];
    }
    for (int r = 0; r < COUNT; ++r) {
      i64 i = first + own + r;
      if (i >= queries) continue;
      bool nothing = total[r] == W(0);
      for (int c = 0; c < PIECES; ++c)
        if (lane + 32 * c < dv)
          y[(head * queries + i) * dv + lane + 32 * c] = static_cast<T>(nothing ? W(0) : acc[r][c] / total[r]);
      if (lane == 0) lse[head * queries + i] = nothing ? -nowhere : log(total[r]) + top[r];
    }
  }
}

// The queries' cotangent, and `inner`, the sum of dy * y over each row, which the keys' needs too.
template <typename T>
__global__ void attention_queries(const T* dy, const T* q, const T* k, const T* v, const bool* seen, const T* bias, const T* y,
                                  const typename Wide<T>::type* lse, T* dq, typename Wide<T>::type* inner, i64 batches, i64 heads,
                                  i64 groups, i64 queries, i64 keys, int d, int dv, i64 step_b, i64 step_h, i64 step_i, i64 step_j,
                                  int causal, i64 past, double scale, u32 threshold, double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  constexpr int FEATURES = Limit<W>::FEATURES, COUNT = Limit<W>::BACKWARD, ROWS = 8 * COUNT, PIECES = FEATURES / 32;
  __shared__ W rows[ROWS][FEATURES];
  __shared__ W out[ROWS][FEATURES];
  __shared__ W tile[32][FEATURES + 1];
  __shared__ W slopes[ROWS][32];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, own = threadIdx.x / 32 * COUNT;
  i64 tiles = (queries + ROWS - 1) / ROWS;
  for (i64 t = blockIdx.x; t < batches * heads * tiles; t += gridDim.x) {
    i64 head = t / tiles, first = t % tiles * ROWS, b = head / heads, h = head % heads;
    i64 shared = b * groups + h / (heads / groups);
    i64 end = causal && first + ROWS + past < keys ? first + ROWS + past : keys;
    W acc[COUNT][PIECES], mean[COUNT], dw[COUNT];
    __syncthreads();
    load_rows(rows, q + head * queries * d, first, queries, d);
    load_rows(out, dy + head * queries * dv, first, queries, dv);
    __syncthreads();
    for (int r = 0; r < COUNT; ++r) {
      i64 i = first + own + r;
      W s = 0;
      if (i < queries)
        for (int f = lane; f < dv; f += 32) s += out[own + r][f] * static_cast<W>(y[(head * queries + i) * dv + f]);
      mean[r] = team_reduce<32>(s, Plus());
      if (i < queries && lane == 0) inner[head * queries + i] = mean[r];
      for (int c = 0; c < PIECES; ++c) acc[r][c] = 0;
    }
    for (i64 j0 = 0; j0 < end; j0 += 32) {
      __syncthreads();
      load_rows(tile, v + shared * keys * dv, j0, keys, dv);
      __syncthreads();
      for (int r = 0; r < COUNT; ++r) dw[r] = product(out[own + r], tile[lane], dv);
      __syncthreads();
      load_rows(tile, k + shared * keys * d, j0, keys, d);
      __syncthreads();
      for (int r = 0; r < COUNT; ++r) {
        i64 i = first + own + r, j = j0 + lane;
        W p = 0;
        if (i < queries) p = exp(rule.score(product(rows[own + r], tile[lane], d), b, h, i, j) - lse[head * queries + i]);
        slopes[own + r][lane] = p == W(0) ? W(0) : p * (dw[r] * rule.factor(b, h, i, j) - mean[r]);
      }
      __syncthreads();
      for (int r = 0; r < COUNT; ++r)
        for (int c = 0; c < PIECES; ++c)
          if (lane + 32 * c < d)
            for (int j = 0; j < 32; ++j) acc[r][c] += slopes[own + r][j] * tile[j][lane + 32 * c];
    }
    for (int r = 0; r < COUNT; ++r)
      for (int c = 0; c < PIECES; ++c)
        if (first + own + r < queries && lane + 32 * c < d)
          dq[(head * queries + first + own + r) * d + lane + 32 * c] = static_cast<T>(acc[r][c] * (W)scale);
  }
}

// The cotangents of keys and values, over all queries of all heads that share them.
template <typename T>
__global__ void attention_keys(const T* dy, const T* q, const T* k, const T* v, const bool* seen, const T* bias,
                               const typename Wide<T>::type* lse, const typename Wide<T>::type* inner, T* dk, T* dv_out,
                               i64 batches, i64 heads, i64 groups, i64 queries, i64 keys, int d, int dv, i64 step_b, i64 step_h,
                               i64 step_i, i64 step_j, int causal, i64 past, double scale, u32 threshold, double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  constexpr int FEATURES = Limit<W>::FEATURES, COUNT = Limit<W>::BACKWARD, ROWS = 8 * COUNT, PIECES = FEATURES / 32;
  __shared__ W rows[ROWS][FEATURES];
  __shared__ W values[ROWS][FEATURES];
  __shared__ W tile[32][FEATURES + 1];
  __shared__ W weights[ROWS][32];
  __shared__ W slopes[ROWS][32];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, own = threadIdx.x / 32 * COUNT;
  i64 tiles = (keys + ROWS - 1) / ROWS, share = heads / groups;
  for (i64 t = blockIdx.x; t < batches * groups * tiles; t += gridDim.x) {
    i64 shared = t / tiles, first = t % tiles * ROWS, b = shared / groups;
    W keys_acc[COUNT][PIECES], values_acc[COUNT][PIECES], p[COUNT];
    for (int r = 0; r < COUNT; ++r)
      for (int c = 0; c < PIECES; ++c) keys_acc[r][c] = values_acc[r][c] = 0;
    __syncthreads();
    load_rows(rows, k + shared * keys * d, first, keys, d);
    load_rows(values, v + shared * keys * dv, first, keys, dv);
    // The first query that may attend to one of these keys.
    i64 start = causal && first > past ? (first - past) / 32 * 32 : 0;
    for (i64 g = 0; g < share; ++g) {
      i64 h = shared % groups * share + g, head = b * heads + h;
      for (i64 i0 = start; i0 < queries; i0 += 32) {
        i64 i = i0 + lane;
        __syncthreads();
        load_rows(tile, q + head * queries * d, i0, queries, d);
        __syncthreads();
        for (int r = 0; r < COUNT; ++r) {
          i64 j = first + own + r;
          p[r] = i < queries && j < keys
                     ? exp(rule.score(product(rows[own + r], tile[lane], d), b, h, i, j) - lse[head * queries + i])
                     : W(0);
        }
        __syncthreads();
        load_rows(tile, dy + head * queries * dv, i0, queries, dv);
        __syncthreads();
        for (int r = 0; r < COUNT; ++r) {
          i64 j = first + own + r;
          W factor = p[r] == W(0) ? W(0) : rule.factor(b, h, i, j), dw = product(values[own + r], tile[lane], dv);
          weights[own + r][lane] = p[r] * factor;
          slopes[own + r][lane] = p[r] == W(0) ? W(0) : p[r] * (dw * factor - inner[head * queries + i]);
        }
        __syncthreads();
        for (int r = 0; r < COUNT; ++r)
          for (int c = 0; c < PIECES; ++c)
            if (lane + 32 * c < dv)
              for (int n = 0; n < 32; ++n) values_acc[r][c] += weights[own + r][n] * tile[n][lane + 32 * c];
        __syncthreads();
        load_rows(tile, q + head * queries * d, i0, queries, d);
        __syncthreads();
        for (int r = 0; r < COUNT; ++r)
          for (int c = 0; c < PIECES; ++c)
            if (lane + 32 * c < d)
              for (int n = 0; n < 32; ++n) keys_acc[r][c] += slopes[own + r][n] * tile[n][lane + 32 * c];
      }
    }
    for (int r = 0; r < COUNT; ++r) {
      i64 j = first + own + r;
      if (j >= keys) continue;
      for (int c = 0; c < PIECES; ++c) {
        int f = lane + 32 * c;
        if (f < d) dk[(shared * keys + j) * d + f] = static_cast<T>(keys_acc[r][c] * (W)scale);
        if (f < dv) dv_out[(shared * keys + j) * dv + f] = static_cast<T>(values_acc[r][c]);
      }
    }
  }
}
