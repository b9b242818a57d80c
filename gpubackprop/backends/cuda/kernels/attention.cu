// Attention in tiles (Dao et al. 2022, "FlashAttention"; the division of work among warps is that of Dao 2023, "FlashAttention-2"): no
// array of all weights is ever written. A block works on ROWS rows of one head, 16 for each warp, and walks over the other side in
// tiles of DEPTH rows. Sums over a row run in the order of the tiles; keys' and values' cotangents have a kernel of their own that
// walks over the queries, so that nothing is added by two blocks.
//
// Arrays are (batches, heads, length, features), with steps of their own between batches, heads and rows, so that heads which lie side
// by side in memory need not be copied apart; `groups` heads of keys serve heads / groups heads of queries each. FEATURES is what
// there is room for: features beyond those of the arrays are zeros in shared memory.

// Rows of a block, and of a tile forwards and backwards: what fits in 48 KiB of shared memory.
template <int BYTES> struct Tiles {
  static constexpr int ROWS = 64, FORWARD = BYTES <= 128 ? 64 : 32, BACKWARD = BYTES <= 128 ? 32 : 16;
  static constexpr bool EARLY = true;  // whether the next tile waits in registers while this one is multiplied
};
template <> struct Tiles<512> {
  static constexpr int ROWS = 32, FORWARD = 16, BACKWARD = 8;
  static constexpr bool EARLY = false;
};

// A call: written out wherever a weight may be dropped it would be most of a kernel.
__device__ __noinline__ Block called_philox(u64 counter, u32 stream, u64 seed) { return philox(counter, stream, seed); }

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

  // Whether queries from i on may attend to all keys before j.
  __device__ bool all(i64 i, i64 j) const { return !seen && !bias && j <= keys && (!causal || j <= i + past + 1); }
  // The score of query i and key j, whose product is `dot`; -infinity where i may not attend to j.
  __device__ W score(W dot, i64 b, i64 h, i64 i, i64 j) const {
    W nowhere = log(W(0)), s = dot * (W)scale;
    if (i >= queries || j >= keys || (causal && j > i + past)) return nowhere;
    i64 at = b * step_b + h * step_h + i * step_i + j * step_j;
    if (seen && !seen[at]) return nowhere;
    return bias ? s + static_cast<W>(bias[at]) : s;
  }
  // What the weights of the keys j / 2 * 2 and the one behind it are multiplied by: 0 where they are dropped.
  __device__ void factors(W (&factor)[2], i64 b, i64 h, i64 i, i64 j) const {
    Block block = words(b, h, i, j);
    factor[0] = (j & 2 ? block.word[2] : block.word[0]) < threshold ? (W)weight : W(0);
    factor[1] = (j & 2 ? block.word[3] : block.word[1]) < threshold ? (W)weight : W(0);
  }
  __device__ W factor(i64 b, i64 h, i64 i, i64 j) const {
    W both[2];
    factors(both, b, h, i, j);
    return j & 1 ? both[1] : both[0];
  }
  __device__ bool drops() const { return weight >= 0.0; }

 private:
  // The random words of four keys, of which j is one.
  __device__ Block words(i64 b, i64 h, i64 i, i64 j) const {
    i64 width = (keys + 3) / 4;
    return called_philox(offset + (u64)(((b * heads + h) * queries + i) * width + j / 4), stream, seed);
  }
};

template <typename T, int FEATURES, int TENSOR>
__global__ void attention(const T* q, const T* k, const T* v, const bool* seen, const T* bias, T* y,
                          typename Wide<T>::type* lse, i64 batches, i64 heads, i64 groups, i64 queries, i64 keys, int d, int dv,
                          i64 q_b, i64 q_h, i64 q_i, i64 k_b, i64 k_h, i64 k_i, i64 v_b, i64 v_h, i64 v_i, i64 y_b, i64 y_h, i64 y_i,
                          i64 step_b, i64 step_h, i64 step_i, i64 step_j, int causal, i64 past, double scale, u32 threshold,
                          double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  typedef typename Engine<T, TENSOR>::type E;
  typedef Tiles<FEATURES * sizeof(T)> Size;
  constexpr int ROWS = Size::ROWS, DEPTH = Size::FORWARD, N = DEPTH / 8, M = FEATURES / 8;
  constexpr int STRIDE = FEATURES + 16 / sizeof(T), THREADS = 2 * ROWS;
  alignas(16) __shared__ T rows[ROWS * STRIDE];
  alignas(16) __shared__ T key_tile[DEPTH * STRIDE];
  alignas(16) __shared__ T value_tile[DEPTH * STRIDE];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 * 16;
  i64 tiles = (queries + ROWS - 1) / ROWS;
  W nowhere = log(W(0));
  for (i64 work = blockIdx.x; work < batches * heads * tiles; work += gridDim.x) {
    // The last rows come first: under a causal mask they have the most to do.
    i64 head = work / tiles, first = (tiles - 1 - work % tiles) * ROWS, b = head / heads, h = head % heads, group = h / (heads / groups);
    i64 end = causal && first + ROWS + past < keys ? first + ROWS + past : keys, own = first + warp + lane / 4;
    W acc[M][4] = {}, top[2] = {nowhere, nowhere}, total[2] = {};
    __syncthreads();  // what is in shared memory has been read
    Incoming<E, T, 1, THREADS, ROWS, FEATURES, STRIDE, false>{{rows}, {q + b * q_b + h * q_h}, {q_i}, {d}, queries}.store(first);
    Incoming<E, T, 2, THREADS, DEPTH, FEATURES, STRIDE, Size::EARLY> tile = {
        {key_tile, value_tile}, {k + b * k_b + group * k_h, v + b * v_b + group * v_h}, {k_i, v_i}, {d, dv}, keys};
    tile.fetch(0);
    for (i64 j0 = 0; j0 < end; j0 += DEPTH) {
      __syncthreads();
      tile.store(j0);
      __syncthreads();
      if (j0 + DEPTH < end) tile.fetch(j0 + DEPTH);
      W s[N][4] = {}, larger[2] = {top[0], top[1]}, shift[2];
      E::template rows_by_rows<STRIDE, FEATURES>(s, rows + warp * STRIDE, key_tile, lane);
      bool all = rule.all(first + warp, j0 + DEPTH);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = all ? s[n][e] * (W)scale : rule.score(s[n][e], b, h, own + e / 2 * 8, j0 + 8 * n + lane % 4 * 2 + e % 2);
          larger[e / 2] = Larger()(s[n][e], larger[e / 2]);
        }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        larger[r] = row_reduce(larger[r], Larger());
        shift[r] = larger[r] == nowhere ? W(0) : larger[r];
        W shrink = E::power(top[r] - shift[r]);
        top[r] = larger[r];
        total[r] *= shrink;
#pragma unroll
        for (int m = 0; m < M; ++m) {
          acc[m][2 * r] *= shrink;
          acc[m][2 * r + 1] *= shrink;
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          W p[2] = {E::power(s[n][2 * r] - shift[r]), E::power(s[n][2 * r + 1] - shift[r])}, factor[2];
          total[r] += p[0] + p[1];
          if (rule.drops()) {
            rule.factors(factor, b, h, own + 8 * r, j0 + 8 * n + lane % 4 * 2);
            p[0] *= factor[0];
            p[1] *= factor[1];
          }
          s[n][2 * r] = p[0];
          s[n][2 * r + 1] = p[1];
        }
      E::template weights_by_rows<STRIDE>(acc, s, value_tile, lane);
    }
    W share[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] = row_reduce(total[r], Plus());
      bool nothing = total[r] == W(0);
      share[r] = nothing ? W(0) : W(1) / total[r];
      if (lane % 4 == 0 && own + 8 * r < queries) lse[head * queries + own + 8 * r] = nothing ? -nowhere : log(total[r]) + top[r];
    }
    store_rows<E>(y + b * y_b + h * y_h, y_i, first + warp, queries, dv, acc, share, lane);
  }
}

// The queries' cotangent, and `inner`, the sum of dy * y over each row, which the keys' needs too.
template <typename T, int FEATURES, int TENSOR>
__global__ void attention_queries(const T* dy, const T* q, const T* k, const T* v, const bool* seen, const T* bias, const T* y,
                                  const typename Wide<T>::type* lse, T* dq, typename Wide<T>::type* inner, i64 batches, i64 heads,
                                  i64 groups, i64 queries, i64 keys, int d, int dv, i64 g_b, i64 g_h, i64 g_i, i64 q_b, i64 q_h,
                                  i64 q_i, i64 k_b, i64 k_h, i64 k_i, i64 v_b, i64 v_h, i64 v_i, i64 y_b, i64 y_h, i64 y_i, i64 dq_b,
                                  i64 dq_h, i64 dq_i, i64 step_b, i64 step_h, i64 step_i, i64 step_j, int causal, i64 past,
                                  double scale, u32 threshold, double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  typedef typename Engine<T, TENSOR>::type E;
  typedef Tiles<FEATURES * sizeof(T)> Size;
  constexpr int ROWS = Size::ROWS, DEPTH = Size::BACKWARD, N = DEPTH / 8, M = FEATURES / 8;
  constexpr int STRIDE = FEATURES + 16 / sizeof(T), THREADS = 2 * ROWS;
  alignas(16) __shared__ T rows[ROWS * STRIDE];
  alignas(16) __shared__ T slope_rows[ROWS * STRIDE];
  alignas(16) __shared__ T key_tile[DEPTH * STRIDE];
  alignas(16) __shared__ T value_tile[DEPTH * STRIDE];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 * 16;
  i64 tiles = (queries + ROWS - 1) / ROWS;
  for (i64 work = blockIdx.x; work < batches * heads * tiles; work += gridDim.x) {
    i64 head = work / tiles, first = (tiles - 1 - work % tiles) * ROWS, b = head / heads, h = head % heads, group = h / (heads / groups);
    i64 end = causal && first + ROWS + past < keys ? first + ROWS + past : keys, own = first + warp + lane / 4;
    const T *dy_head = dy + b * g_b + h * g_h, *y_head = y + b * y_b + h * y_h;
    W acc[M][4] = {}, mean[2] = {}, sum[2];
    __syncthreads();
    Incoming<E, T, 2, THREADS, ROWS, FEATURES, STRIDE, false>{
        {rows, slope_rows}, {q + b * q_b + h * q_h, dy_head}, {q_i, g_i}, {d, dv}, queries}.store(first);
    Incoming<E, T, 2, THREADS, DEPTH, FEATURES, STRIDE, Size::EARLY> tile = {
        {key_tile, value_tile}, {k + b * k_b + group * k_h, v + b * v_b + group * v_h}, {k_i, v_i}, {d, dv}, keys};
    tile.fetch(0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      i64 i = own + 8 * r;
      bool there = i < queries;
      if (there)
        for (int f = lane % 4; f < dv; f += 4) mean[r] += static_cast<W>(dy_head[i * g_i + f]) * static_cast<W>(y_head[i * y_i + f]);
      mean[r] = row_reduce(mean[r], Plus());
      sum[r] = there ? lse[head * queries + i] : -log(W(0));
      if (there && lane % 4 == 0) inner[head * queries + i] = mean[r];
    }
    for (i64 j0 = 0; j0 < end; j0 += DEPTH) {
      __syncthreads();
      tile.store(j0);
      __syncthreads();
      if (j0 + DEPTH < end) tile.fetch(j0 + DEPTH);
      W s[N][4] = {}, dw[N][4] = {};
      E::template rows_by_rows<STRIDE, FEATURES>(s, rows + warp * STRIDE, key_tile, lane);
      E::template rows_by_rows<STRIDE, FEATURES>(dw, slope_rows + warp * STRIDE, value_tile, lane);
      bool all = rule.all(first + warp, j0 + DEPTH);
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          i64 i = own + 8 * r, j = j0 + 8 * n + lane % 4 * 2;
          W factor[2] = {W(1), W(1)};
          if (rule.drops()) rule.factors(factor, b, h, i, j);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            W score = s[n][2 * r + e];
            W p = E::power((all ? score * (W)scale : rule.score(score, b, h, i, j + e)) - sum[r]);
            s[n][2 * r + e] = p == W(0) ? W(0) : p * (dw[n][2 * r + e] * factor[e] - mean[r]);
          }
        }
      E::template weights_by_rows<STRIDE>(acc, s, key_tile, lane);
    }
    W scales[2] = {(W)scale, (W)scale};
    store_rows<E>(dq + b * dq_b + h * dq_h, dq_i, first + warp, queries, d, acc, scales, lane);
  }
}

// The cotangents of keys and values, over all queries of all heads that share them. Rows are keys here, and columns queries.
template <typename T, int FEATURES, int TENSOR>
__global__ void attention_keys(const T* dy, const T* q, const T* k, const T* v, const bool* seen, const T* bias,
                               const typename Wide<T>::type* lse, const typename Wide<T>::type* inner, T* dk, T* dv_out, i64 batches,
                               i64 heads, i64 groups, i64 queries, i64 keys, int d, int dv, i64 g_b, i64 g_h, i64 g_i, i64 q_b,
                               i64 q_h, i64 q_i, i64 k_b, i64 k_h, i64 k_i, i64 v_b, i64 v_h, i64 v_i, i64 dk_b, i64 dk_h, i64 dk_i,
                               i64 dv_b, i64 dv_h, i64 dv_i, i64 step_b, i64 step_h, i64 step_i, i64 step_j, int causal, i64 past,
                               double scale, u32 threshold, double weight, u64 seed, u32 stream, const u64* place, u64 offset) {
  typedef typename Wide<T>::type W;
  typedef typename Engine<T, TENSOR>::type E;
  typedef Tiles<FEATURES * sizeof(T)> Size;
  constexpr int ROWS = Size::ROWS, DEPTH = Size::BACKWARD, N = DEPTH / 8, M = FEATURES / 8;
  constexpr int STRIDE = FEATURES + 16 / sizeof(T), THREADS = 2 * ROWS;
  alignas(16) __shared__ T key_rows[ROWS * STRIDE];
  alignas(16) __shared__ T value_rows[ROWS * STRIDE];
  alignas(16) __shared__ T query_tile[DEPTH * STRIDE];
  alignas(16) __shared__ T slope_tile[DEPTH * STRIDE];
  __shared__ W sums[DEPTH], means[DEPTH];
  Rule<T> rule = {seen, bias, step_b, step_h, step_i, step_j, heads, queries, keys, past, causal, threshold, stream, seed,
                  given(place, offset), scale, weight};
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 * 16;
  i64 tiles = (keys + ROWS - 1) / ROWS, share = heads / groups;
  for (i64 work = blockIdx.x; work < batches * groups * tiles; work += gridDim.x) {
    i64 shared = work / tiles, first = work % tiles * ROWS, b = shared / groups, group = shared % groups;
    i64 own = first + warp + lane / 4, last = first + warp + 16;
    W keys_acc[M][4] = {}, values_acc[M][4] = {};
    __syncthreads();
    Incoming<E, T, 2, THREADS, ROWS, FEATURES, STRIDE, false>{
        {key_rows, value_rows}, {k + b * k_b + group * k_h, v + b * v_b + group * v_h}, {k_i, v_i}, {d, dv}, keys}.store(first);
    // The first query that may attend to one of these keys.
    i64 start = causal && first > past ? (first - past) / DEPTH * DEPTH : 0;
    for (i64 h = group * share; h < (group + 1) * share; ++h) {
      // Not EARLY: two results leave no registers for it.
      Incoming<E, T, 2, THREADS, DEPTH, FEATURES, STRIDE, false> tile = {
          {query_tile, slope_tile}, {q + b * q_b + h * q_h, dy + b * g_b + h * g_h}, {q_i, g_i}, {d, dv}, queries};
      for (i64 i0 = start; i0 < queries; i0 += DEPTH) {
        __syncthreads();
        tile.store(i0);
        for (int c = threadIdx.x; c < DEPTH; c += THREADS) {
          i64 i = i0 + c, at = (b * heads + h) * queries + i;
          sums[c] = i < queries ? lse[at] : -log(W(0));  // no weight beyond the last query
          means[c] = i < queries ? inner[at] : W(0);
        }
        __syncthreads();
        W s[N][4] = {}, dw[N][4] = {};
        E::template rows_by_rows<STRIDE, FEATURES>(s, key_rows + warp * STRIDE, query_tile, lane);
        E::template rows_by_rows<STRIDE, FEATURES>(dw, value_rows + warp * STRIDE, slope_tile, lane);
        bool all = i0 + DEPTH <= queries && rule.all(i0, last);  // no query beyond the last has a product that counts
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int c = 8 * n + lane % 4 * 2 + e % 2;
            i64 i = i0 + c, j = own + e / 2 * 8;
            W p = E::power((all ? s[n][e] * (W)scale : rule.score(s[n][e], b, h, i, j)) - sums[c]);
            W factor = rule.drops() ? rule.factor(b, h, i, j) : W(1);
            dw[n][e] = p == W(0) ? W(0) : p * (dw[n][e] * factor - means[c]);
            s[n][e] = p * factor;
          }
        E::template weights_by_rows<STRIDE>(values_acc, s, slope_tile, lane);
        E::template weights_by_rows<STRIDE>(keys_acc, dw, query_tile, lane);
      }
    }
    W scales[2] = {(W)scale, (W)scale}, ones[2] = {W(1), W(1)};
    store_rows<E>(dk + b * dk_b + group * dk_h, dk_i, first + warp, keys, d, keys_acc, scales, lane);
    store_rows<E>(dv_out + b * dv_b + group * dv_h, dv_i, first + warp, keys, dv, values_acc, ones, lane);
  }
}
