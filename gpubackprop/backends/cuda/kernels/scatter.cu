// Taking elements by index, and the transpose: adding them back, in a fixed order.
//
// An index may be negative and then counts from the end. One that is out of range cannot raise here: what is taken is NaN, and
// what is added back goes nowhere.

// out[o, k, t] = x[o, indices[k], t], L neighbouring t at once.
template <int L, typename T, typename I>
__device__ __forceinline__ void take_packs(const T* x, const I* indices, T* out, i64 outer, i64 size, i64 count, i64 tail) {
  typedef typename Wide<T>::type W;
  i64 packs = tail / L;
  for (i64 e = thread_index(); e < outer * count * packs; e += thread_count()) {
    i64 row = e / packs, p = e - row * packs, o = row / count;
    i64 i = (i64)indices[row - o * count];
    if (i < 0) i += size;
    Pack<T, L> pack;
    if (i >= 0 && i < size) {
      load_pack(pack, x + (o * size + i) * tail + p * L, true, L);
    } else {
#pragma unroll
      for (int l = 0; l < L; ++l) pack.item[l] = static_cast<T>((W)nanf(""));
    }
    store_pack(out + e * L, pack, true, L);
  }
}
template <typename T, typename I>
__global__ void take(const T* x, const I* indices, T* out, i64 outer, i64 size, i64 count, i64 tail) {
  constexpr int L = Pack<T>::lanes;
  if (tail % L == 0 && aligned(x) && aligned(out)) take_packs<L>(x, indices, out, outer, size, count, tail);
  else take_packs<1>(x, indices, out, outer, size, count, tail);
}

// out[o, k, t] = x[o, indices[o, k, t], t]
template <typename T, typename I>
__global__ void take_along(const T* x, const I* indices, T* out, i64 outer, i64 size, i64 count, i64 tail) {
  typedef typename Wide<T>::type W;
  for (i64 e = thread_index(); e < outer * count * tail; e += thread_count()) {
    i64 t = e % tail, o = e / tail / count;
    i64 i = (i64)indices[e];
    if (i < 0) i += size;
    out[e] = i >= 0 && i < size ? x[(o * size + i) * tail + t] : static_cast<T>((W)nanf(""));
  }
}

// keys[o, k, t] = the place of x[o, indices[o, k, t], t] in x, or -1.
template <typename I>
__global__ void along_keys(const I* indices, i64* keys, i64 outer, i64 size, i64 count, i64 tail) {
  for (i64 e = thread_index(); e < outer * count * tail; e += thread_count()) {
    i64 t = e % tail, o = e / tail / count;
    i64 i = (i64)indices[e];
    if (i < 0) i += size;
    keys[e] = i >= 0 && i < size ? (o * size + i) * tail + t : -1;
  }
}

// keys[k] = indices[k], counted from the front, or -1.
template <typename I> __global__ void take_keys(const I* indices, i64* keys, i64 size, i64 count) {
  for (i64 k = thread_index(); k < count; k += thread_count()) {
    i64 i = (i64)indices[k];
    if (i < 0) i += size;
    keys[k] = i >= 0 && i < size ? i : -1;
  }
}

// ranks[p, k] = how many of the keys of part p come before key k: the smaller ones, and the equal ones ahead of it.
//
// The sums over the parts are the places of the keys in a stable order, found by comparing each key with every other. For some ten
// thousand keys that takes less time than a library's sort, which also waits for the device and so cannot be captured into a graph.
// Keys lie within 32 bits.
template <int BLOCK> __global__ void rank_keys(const i64* keys, int* ranks, i64 count, int parts) {
  __shared__ int tile[BLOCK];
  i64 blocks = (count + BLOCK - 1) / BLOCK, span = (blocks + parts - 1) / parts * BLOCK;
  for (i64 job = blockIdx.x; job < blocks * parts; job += gridDim.x) {
    i64 first = job / parts * BLOCK, k = first + threadIdx.x, from = job % parts * span;
    i64 to = from + span < count ? from + span : count;
    int key = k < count ? (int)keys[k] : 0, rank = 0;
    for (i64 start = from; start < to; start += BLOCK) {
      __syncthreads();  // the tile before this one has been read
      if (start + threadIdx.x < to) tile[threadIdx.x] = (int)keys[start + threadIdx.x];
      __syncthreads();
      int n = to - start < BLOCK ? (int)(to - start) : BLOCK;
      if (start < first)  // the whole tile lies ahead of the block's keys
        for (int j = 0; j < n; ++j) rank += tile[j] <= key;
      else if (start > first)
        for (int j = 0; j < n; ++j) rank += tile[j] < key;
      else
        for (int j = 0; j < n; ++j) rank += tile[j] < key || (tile[j] == key && j < (int)threadIdx.x);
    }
    if (k < count) ranks[job % parts * count + k] = rank;
  }
}

// order[the place of key k] = k.
__global__ void order_keys(const int* ranks, i64* order, i64 count, int parts) {
  for (i64 k = thread_index(); k < count; k += thread_count()) {
    i64 place = 0;
    for (int p = 0; p < parts; ++p) place += ranks[p * count + k];
    order[place] = k;
  }
}

// A radix sort of keys, from the lowest digit on. A pass of three kernels puts the keys, in the order of the passes before
// (`order`, or their own where that is null), in the order of one digit: 8 bits of the key + 1, from bit `shift` on. Each block has a
// stretch of `span` keys, a multiple of BLOCK, and each of its threads one value of the digit. Nothing is added in an order that
// could change, and equal digits stay in their order.
__device__ __forceinline__ int digit_of(const i64* keys, const i64* order, i64 k, int shift) {
  return (int)((unsigned long long)(keys[order ? order[k] : k] + 1) >> shift & 255);
}

// The sum of the values of the threads before this one; part[BLOCK - 1] is that of all.
template <int BLOCK> __device__ i64 sum_before(i64 value, i64* part) {
  part[threadIdx.x] = value;
  for (int reach = 1; reach < BLOCK; reach *= 2) {
    __syncthreads();
    i64 more = (int)threadIdx.x >= reach ? part[threadIdx.x - reach] : 0;
    __syncthreads();
    part[threadIdx.x] += more;
  }
  __syncthreads();
  return part[threadIdx.x] - value;
}

// counts[d, b] = how many keys of stretch b have the digit d.
template <int BLOCK>
__global__ void count_digits(const i64* keys, const i64* order, i64* counts, i64 count, i64 span, int shift) {
  __shared__ int tile[BLOCK];
  i64 from = blockIdx.x * span, to = from + span < count ? from + span : count, found = 0;
  for (i64 start = from; start < to; start += BLOCK) {
    i64 k = start + threadIdx.x;
    __syncthreads();  // the tile before this one has been read
    tile[threadIdx.x] = k < to ? digit_of(keys, order, k, shift) : -1;
    __syncthreads();
    int n = 0;
    for (int j = 0; j < BLOCK; ++j) n += tile[j] == (int)threadIdx.x;
    found += n;
  }
  counts[(i64)threadIdx.x * gridDim.x + blockIdx.x] = found;
}

// For each digit, one a block: its count in the stretches ahead of each, in the place of its counts, and in all of them.
template <int BLOCK> __global__ void scan_digits(i64* counts, i64* totals, int blocks) {
  __shared__ i64 part[BLOCK];
  i64* mine = counts + (i64)blockIdx.x * blocks + threadIdx.x;
  bool inside = (int)threadIdx.x < blocks;
  i64 before = sum_before<BLOCK>(inside ? *mine : 0, part);
  if (inside) *mine = before;
  if (threadIdx.x == BLOCK - 1) totals[blockIdx.x] = part[BLOCK - 1];
}

// sorted[the place of key k by this digit] = the number of that key.
template <int BLOCK>
__global__ void place_digits(const i64* keys, const i64* order, i64* sorted, const i64* counts, const i64* totals, i64 count, i64 span,
                             int shift) {
  __shared__ i64 next[BLOCK];
  __shared__ int tile[BLOCK];
  i64 smaller = sum_before<BLOCK>(totals[threadIdx.x], next);
  next[threadIdx.x] = smaller + counts[(i64)threadIdx.x * gridDim.x + blockIdx.x];
  i64 from = blockIdx.x * span, to = from + span < count ? from + span : count;
  for (i64 start = from; start < to; start += BLOCK) {
    i64 k = start + threadIdx.x;
    int digit = k < to ? digit_of(keys, order, k, shift) : -1, ahead = 0, n = 0;
    tile[threadIdx.x] = digit;
    __syncthreads();
    for (int j = 0; j < BLOCK; ++j) {
      n += tile[j] == (int)threadIdx.x;
      ahead += tile[j] == digit && j < (int)threadIdx.x;
    }
    if (k < to) sorted[next[digit] + ahead] = order ? order[k] : k;
    __syncthreads();  // tile and places have been read
    next[threadIdx.x] += n;
  }
}

// bounds[r] = how many of the `count` sorted keys are below r, for r = 0 ... size; key k is keys[order[k]].
__global__ void segment_bounds(const i64* keys, const i64* order, i64* bounds, i64 count, i64 size) {
  for (i64 r = thread_index(); r <= size; r += thread_count()) {
    i64 low = 0, high = count;
    while (low < high) {
      i64 middle = low + (high - low) / 2;
      if (keys[order[middle]] < r)
        low = middle + 1;
      else
        high = middle;
    }
    bounds[r] = low;
  }
}

// out[o, r, t] = sum of dy[o, order[k], t] over bounds[r] <= k < bounds[r + 1].
//
// A block holds BLOCK threads: `width` of them for neighbouring t, `depth` of them sharing the sum of one element, the rest for
// further elements. Lane d of a sum takes every depth-th term from the d-th on; the lanes are then added in their order.
template <typename T, int BLOCK>
__global__ void segment_sum(const T* dy, const i64* order, const i64* bounds, T* out, i64 outer, i64 count, i64 size, i64 tail,
                            int width, int depth) {
  typedef typename Wide<T>::type W;
  __shared__ W part[BLOCK];
  int lane_t = threadIdx.x % width, lane_d = threadIdx.x / width % depth, lane_r = threadIdx.x / (width * depth);
  int height = BLOCK / (width * depth);
  i64 tiles_t = (tail + width - 1) / width, tiles_r = (size + height - 1) / height;
  for (i64 tile = blockIdx.x; tile < outer * tiles_r * tiles_t; tile += gridDim.x) {
    i64 t = tile % tiles_t * width + lane_t, r = tile / tiles_t % tiles_r * height + lane_r, o = tile / tiles_t / tiles_r;
    bool inside = t < tail && r < size;
    W s = 0;
    if (inside)
      for (i64 k = bounds[r] + lane_d; k < bounds[r + 1]; k += depth) s += static_cast<W>(dy[(o * count + order[k]) * tail + t]);
    __syncthreads();  // the sums of the tile before this one have been read
    part[threadIdx.x] = s;
    __syncthreads();
    if (inside && lane_d == 0) {
      for (int d = 1; d < depth; ++d) s += part[threadIdx.x + d * width];
      out[(o * size + r) * tail + t] = static_cast<T>(s);
    }
  }
}
