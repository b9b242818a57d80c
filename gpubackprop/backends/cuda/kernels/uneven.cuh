// Rows that are read anew for each pass and are no whole number of packs (HELD = 0, PACKED = 0), such as those of 50,257 classes: each
// begins anywhere between two boundaries, and is moved in whole packs all the same. The loader puts this text behind rows.cuh.
//
// For sums, pack p of a row has the columns from p * L on wherever the row lies, and is put together of the two words of memory that it
// lies across; so a sum's order still follows from the shape alone. What is written has no order: there, packs begin at the boundaries
// of the result, and the few elements before the first and behind the last are moved one by one.

// L elements from x on; those behind `last`, the row's last one, mean nothing. A word is read only if one of its bytes is the row's:
// what lies beside that in it is memory too.
template <typename T, int L> __device__ __forceinline__ void load_across(Pack<T, L>& pack, const T* x, const T* last) {
  constexpr int BYTES = L * (int)sizeof(T), WORDS = BYTES / 4;
  u32 behind = (u32)(u64)x % BYTES;
  // Offsets, not addresses made of numbers: the compiler sees that this is global memory.
  const char* low = reinterpret_cast<const char*>(x) - behind;
  const char* end = reinterpret_cast<const char*>(last) - (u32)(u64)last % BYTES;
  const char* high = behind && low < end ? low + BYTES : low;
  Pack<u32, WORDS> part[2];
  load_pack(part[0], reinterpret_cast<const u32*>(low), true, WORDS);
  load_pack(part[1], reinterpret_cast<const u32*>(high), true, WORDS);
  u32 bits[2 * WORDS];
#pragma unroll
  for (int i = 0; i < 2 * WORDS; ++i) bits[i] = part[i / WORDS].item[i % WORDS];
#pragma unroll
  for (int skip = WORDS / 2; skip; skip /= 2)
    if (behind & (4 * skip))
#pragma unroll
      for (int i = 0; i < 2 * WORDS - skip; ++i) bits[i] = bits[i + skip];
  if (sizeof(T) == 2 && behind & 2)
#pragma unroll
    for (int i = 0; i < WORDS; ++i) bits[i] = (u32)(((u64)bits[i + 1] << 32 | bits[i]) >> 16);
  memcpy(&pack, bits, BYTES);
}

template <typename T, int TEAM, int N, typename G> struct Rows<T, TEAM, 0, 0, N, G> {
  typedef typename Wide<T>::type W;
  static constexpr bool MORE = !same_type<G, void>::value;
  static constexpr int L = 16 / (int)sizeof(T), ALL = MORE ? N + 1 : N, AHEAD = ALL == 1 ? 4 : 2;
  const T* from[N];
  i64 cols;
  Stretch<0, L> at;
  Pack<T, L> kept[N][AHEAD];
  Beside<G, L, AHEAD> beside;

  __device__ __forceinline__ Rows(const T* const (&arrays)[N], i64 job, i64 cols, i64 pieces, const G* more = nullptr)
      : cols(cols), at(job, cols + L - 1, pieces) {
#pragma unroll
    for (int a = 0; a < N; ++a) from[a] = arrays[a] + at.row * cols;
    beside.begin(more, at.row * cols);
  }
  // Packs q, q + TEAM, ... before pack `end`, where pack 0 begins at column j. All are loaded before the first is computed with; in
  // place of those that are not there, the last one is.
  __device__ __forceinline__ void load(i64 j, i64 q, i64 end) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      i64 p = q + k * TEAM;
      i64 first = j + (p < end ? p : end - 1) * L;
#pragma unroll
      for (int a = 0; a < N; ++a) load_across(kept[a][k], from[a] + first, from[a] + cols - 1);
      if constexpr (MORE) load_across(beside.kept[k], beside.from + first, beside.from + cols - 1);
    }
  }
  template <typename F> __device__ __forceinline__ void packs(F f) {
    for (i64 q = at.first + first_column<TEAM>(); q < at.last; q += AHEAD * TEAM) {
      load(0, q, at.last);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k)
        if (q + k * TEAM < at.last) f(k, q + k * TEAM);
    }
  }
  template <int M, typename C, typename F> __device__ __forceinline__ void each(const C* const (&columns)[M], F f) {
    packs([&](int k, i64 p) {
      i64 there = cols - p * L;
#pragma unroll
      for (int l = 0; l < L; ++l)
        if (l < there) {
          W v[ALL], c[M];
          element(v, k, l);
          by_column(c, columns, p * L + l);
          f(v, c, p * L + l);
        }
    });
  }
  template <typename F> __device__ __forceinline__ void each(F f) {
    const T* const none[1] = {nullptr};
    each(none, [&](const W(&v)[ALL], const W(&)[1], i64) { f(v); });
  }
  template <typename To, int M, typename C, typename F>
  __device__ __forceinline__ void write(To* to, i64, const C* const (&columns)[M], F f) {
    constexpr int BYTES = L * (int)sizeof(To);
    i64 begin = at.first * L, length = (at.last * L < cols ? at.last * L : cols) - begin;
    if (length <= 0) return;  // a piece of nothing
    to += at.row * cols;
    i64 head = (i64)((0 - (u64)(to + begin)) % BYTES / sizeof(To));
    if (head > length) head = length;
    i64 whole = (length - head) / L, alone = length - whole * L;
    if (first_column<TEAM>() < alone) {
      i64 j = begin + first_column<TEAM>() + (first_column<TEAM>() < head ? 0 : whole * L);
      W v[ALL], c[M];
#pragma unroll
      for (int a = 0; a < N; ++a) v[a] = static_cast<W>(from[a][j]);
      if constexpr (MORE) v[N] = static_cast<W>(beside.from[j]);
      by_column(c, columns, j);
      to[j] = static_cast<To>(f(v, c, j));
    }
    begin += head;
    for (i64 q = first_column<TEAM>(); q < whole; q += AHEAD * TEAM) {
      load(begin, q, whole);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k)
        if (q + k * TEAM < whole) {
          i64 j = begin + (q + k * TEAM) * L;
          Pack<To, L> out;
#pragma unroll
          for (int l = 0; l < L; ++l) {
            W v[ALL], c[M];
            element(v, k, l);
            by_column(c, columns, j + l);
            out.item[l] = static_cast<To>(f(v, c, j + l));
          }
          store_pack(to + j, out, true, L);
        }
    }
  }
  template <typename To, typename F> __device__ __forceinline__ void write(To* to, i64 cols, F f) {
    const T* const none[1] = {nullptr};
    write(to, cols, none, [&](const W(&v)[ALL], const W(&)[1], i64) { return f(v); });
  }
  __device__ __forceinline__ void element(W (&v)[ALL], int k, int l) {
#pragma unroll
    for (int a = 0; a < N; ++a) v[a] = static_cast<W>(kept[a][k].item[l]);
    if constexpr (MORE) v[N] = beside.template value<W>(k, l);
  }
  template <int M, typename C> __device__ __forceinline__ void by_column(W (&c)[M], const C* const (&columns)[M], i64 j) {
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (columns[m]) c[m] = static_cast<W>(columns[m][j]);
  }
};
