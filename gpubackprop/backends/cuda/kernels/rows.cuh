// How the kernels that reduce the rows of (rows, cols) arrays read them. The loader puts this text in front of their files.
//
// A thread moves packs of L neighbours: 16 bytes where `cols` is a multiple of as many elements (PACKED), else one element, but for
// rows that are not kept (uneven.cuh). The packs of a row are dealt out to the threads of its team in turn, so a sum's order follows
// from the shape alone. Rows of at most TEAM * HELD packs are read once and stay in registers; of longer ones (HELD = 0) a few packs
// at a time, for each pass anew.
//
// Few rows of very many columns are cut into `pieces`, each a job of its own, and the kernel runs in stages: the first ones leave in
// `part` what each piece adds up to, the last one writes. Stage 0 is all of them in one, of rows in one piece.

template <typename A, typename B> struct same_type { static constexpr bool value = false; };
template <typename A> struct same_type<A, A> { static constexpr bool value = true; };

// One job: a piece of a row, from pack `first` to before pack `last`.
template <int HELD, int L> struct Stretch {
  i64 row, first, last;
  __device__ Stretch(i64 job, i64 cols, i64 pieces) : row(HELD ? job : job / pieces), first(0), last(cols / L) {
    if (HELD == 0 && pieces > 1) {
      i64 span = (last + pieces - 1) / pieces, end = last;
      first = (job - row * pieces) * span;
      last = first + span < end ? first + span : end;
    }
  }
};

// The compiler takes a pack for another one from here on. It would keep what one pass computes of the elements for the next: more
// registers than there are, where the packs and sums beside them take most.
template <typename T, int L> __device__ __forceinline__ void forget(Pack<T, L>& pack) {
  if constexpr (sizeof(pack) % 4 == 0) {
    constexpr int WORDS = sizeof(pack) / 4;
    u32* bits = reinterpret_cast<u32*>(&pack);
#pragma unroll
    for (int q = 0; q < WORDS; ++q) asm volatile("" : "+r"(bits[q]));
  }
}
// L neighbours, as many instructions as that takes.
template <typename T, int L> __device__ __forceinline__ void load_neighbours(T (&to)[L], const T* x, bool whole) {
  constexpr int S = L * sizeof(T) > 16 ? 16 / (int)sizeof(T) : L;
#pragma unroll
  for (int q = 0; q < L; q += S) {
    Pack<T, S> pack;
    load_pack(pack, x + q, whole, S);
#pragma unroll
    for (int l = 0; l < S; ++l) to[q + l] = pack.item[l];
  }
}

// One more array of the same shape, whose elements may be of another type (G), no wider; none where G is void.
template <typename G, int L, int AHEAD> struct Beside {
  const G* from = nullptr;
  bool whole = false;
  Pack<G, L> kept[AHEAD];
  __device__ __forceinline__ void begin(const G* x, i64 start) {
    from = x + start;
    whole = L == 1 || aligned(x);
  }
  __device__ __forceinline__ void load(int k, i64 p) { load_pack(kept[k], from + p * L, whole, L); }
  __device__ __forceinline__ void drop(int k) { forget(kept[k]); }
  template <typename W> __device__ __forceinline__ W value(int k, int l) const { return static_cast<W>(kept[k].item[l]); }
};
template <int L, int AHEAD> struct Beside<void, L, AHEAD> {
  __device__ __forceinline__ void begin(const void*, i64) {}
  __device__ __forceinline__ void load(int, i64) {}
  __device__ __forceinline__ void drop(int) {}
};

// The elements of a job in N arrays of one shape, and in one more of the type G where that is not void.
template <typename T, int TEAM, int HELD, int PACKED, int N, typename G = void> struct Rows {
  typedef typename Wide<T>::type W;
  static constexpr int L = PACKED ? 16 / (int)sizeof(T) : 1, AHEAD = HELD ? HELD : PACKED ? 4 : 8;
  static constexpr bool MORE = !same_type<G, void>::value;
  static constexpr int ALL = MORE ? N + 1 : N;
  const T* from[N];
  bool whole[N];
  Stretch<HELD, L> at;
  Pack<T, L> kept[N][AHEAD];
  Beside<G, L, AHEAD> beside;

  __device__ __forceinline__ Rows(const T* const (&arrays)[N], i64 job, i64 cols, i64 pieces, const G* more = nullptr)
      : at(job, cols, pieces) {
#pragma unroll
    for (int a = 0; a < N; ++a) {
      from[a] = arrays[a] + at.row * cols;
      whole[a] = L == 1 || aligned(arrays[a]);
    }
    beside.begin(more, at.row * cols);
    if (HELD) load(first_column<TEAM>());
  }
  __device__ __forceinline__ void load(i64 start) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      i64 p = start + k * TEAM;
      if (p < at.last) {
#pragma unroll
        for (int a = 0; a < N; ++a) load_pack(kept[a][k], from[a] + p * L, whole[a], L);
        beside.load(k, p);
      }
    }
  }
  // What a pass computes of the elements is not kept for the next, nor what stands in memory.
  __device__ __forceinline__ void drop() {
    asm volatile("" ::: "memory");
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
#pragma unroll
      for (int a = 0; a < N; ++a) forget(kept[a][k]);
      beside.drop(k);
    }
  }
  // f(k, p) for this thread's packs: pack p of the row is the k-th that is kept.
  template <typename F> __device__ __forceinline__ void packs(F f) {
    if constexpr (HELD > 0) {
#pragma unroll
      for (int k = 0; k < AHEAD; ++k)
        if (first_column<TEAM>() + k * TEAM < at.last) f(k, first_column<TEAM>() + k * TEAM);
    } else {
      for (i64 start = at.first + first_column<TEAM>(); start < at.last; start += AHEAD * TEAM) {
        load(start);
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
          if (start + k * TEAM < at.last) f(k, start + k * TEAM);
      }
    }
  }
  // f(v, c, j) for this thread's elements: v has the element of column j in each array, the one beside last, c what M arrays hold for
  // the column. Those may be null, and then c means nothing.
  template <int M, typename C, typename F> __device__ __forceinline__ void each(const C* const (&columns)[M], F f) {
    packs([&](int k, i64 p) {
      C by_column[M][L];
      load_columns(by_column, columns, p);
#pragma unroll
      for (int l = 0; l < L; ++l) {
        W v[ALL], c[M];
        element(v, c, by_column, k, l);
        f(v, c, p * L + l);
      }
    });
  }
  template <typename F> __device__ __forceinline__ void each(F f) {
    const T* const none[1] = {nullptr};
    each(none, [&](const W(&v)[ALL], const W(&)[1], i64) { f(v); });
  }
  // to[j] = f(v, c, j), of a type that is no wider
  template <typename To, int M, typename C, typename F>
  __device__ __forceinline__ void write(To* to, i64 cols, const C* const (&columns)[M], F f) {
    bool straight = L == 1 || aligned(to);
    packs([&](int k, i64 p) {
      C by_column[M][L];
      Pack<To, L> out;
      load_columns(by_column, columns, p);
#pragma unroll
      for (int l = 0; l < L; ++l) {
        W v[ALL], c[M];
        element(v, c, by_column, k, l);
        out.item[l] = static_cast<To>(f(v, c, p * L + l));
      }
      store_pack(to + at.row * cols + p * L, out, straight, L);
    });
  }
  template <typename To, typename F> __device__ __forceinline__ void write(To* to, i64 cols, F f) {
    const T* const none[1] = {nullptr};
    write(to, cols, none, [&](const W(&v)[ALL], const W(&)[1], i64) { return f(v); });
  }
  template <int M, typename C>
  __device__ __forceinline__ void load_columns(C (&values)[M][L], const C* const (&columns)[M], i64 p) {
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (columns[m]) load_neighbours(values[m], columns[m] + p * L, L == 1 || aligned(columns[m]));
  }
  template <int M, typename C>
  __device__ __forceinline__ void element(W (&v)[ALL], W (&c)[M], const C (&by_column)[M][L], int k, int l) {
#pragma unroll
    for (int a = 0; a < N; ++a) v[a] = static_cast<W>(kept[a][k].item[l]);
    if constexpr (MORE) v[N] = beside.template value<W>(k, l);
#pragma unroll
    for (int m = 0; m < M; ++m) c[m] = static_cast<W>(by_column[m][l]);
  }
};

template <int TEAM> __device__ __forceinline__ bool leads() { return first_column<TEAM>() == 0; }

// The sum of what earlier stages found for the pieces of a row, in the order of the pieces.
template <int TEAM, typename W> __device__ __forceinline__ W pieces_sum(const W* part, i64 row, i64 pieces) {
  W s = 0;
  for (i64 q = first_column<TEAM>(); q < pieces; q += TEAM) s += part[row * pieces + q];
  return team_reduce<TEAM>(s, Plus());
}
