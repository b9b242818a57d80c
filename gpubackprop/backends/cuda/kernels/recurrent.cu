// One step of a recurrent layer: all that is done to each element beside the matrix product, forwards and backwards. The formulas
// are those of backends/recurrent.py.
//
// Rules that these kernels share: a thread takes an element (n, j) of the state (batch, size); `lengths` holds each sequence's
// number of steps, or is null where all have step `t`; from its end on a sequence keeps its state and has no cotangents of gates.
//
// Backwards, the cotangent of the state after a step comes in three parts: `dy` of the output, `through` by the next step's matrix
// product, and `carry` past that product (null where there is nothing: no lengths, and no gate that lets the state through).
// Each kernel leaves in `carry` what goes past its own step's product.

template <typename T> __device__ __forceinline__ T squash(T x) { return T(0.5) * tanh(T(0.5) * x) + T(0.5); }

__device__ __forceinline__ bool runs(const i64* lengths, i64 n, i64 t) { return !lengths || lengths[n] > t; }

// `after` holds the product of weight and state, and takes the new state.
template <typename T>
__global__ void rnn_step(const T* projected, const i64* lengths, const T* before, T* after, i64 t, i64 batch, i64 size,
                         int relu) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    if (!runs(lengths, k / size, t)) {
      after[k] = before[k];
      continue;
    }
    W a = static_cast<W>(after[k]) + static_cast<W>(projected[k]);
    // Where a is not a number, neither is the result: no comparison with it holds.
    after[k] = static_cast<T>(relu ? (a < W(0) ? W(0) : a) : tanh(a));
  }
}

template <typename T>
__global__ void rnn_step_backward(const T* dy, const T* after, const i64* lengths, const T* through, T* carry, T* d, i64 t,
                                  i64 batch, i64 size, int relu) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    W dh = static_cast<W>(through[k]), y = static_cast<W>(after[k]);
    if (carry) dh += static_cast<W>(carry[k]);
    bool running = runs(lengths, k / size, t);
    if (carry) carry[k] = static_cast<T>(running ? W(0) : dh);
    dh += static_cast<W>(dy[k]);
    if (!running)
      dh = W(0);
    else if (relu)
      dh = y > W(0) ? dh : W(0);
    else
      dh = dh * (W(1) - y * y);
    d[k] = static_cast<T>(dh);
  }
}

// `gates` holds the product of weight and state, and takes the values of i, f, g, o.
template <typename T>
__global__ void lstm_step(const T* projected, const i64* lengths, const T* h_before, const T* c_before, T* gates, T* h_after,
                          T* c_after, i64 t, i64 batch, i64 size) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    i64 n = k / size, at = n * 4 * size + k % size;
    W i = squash(static_cast<W>(gates[at]) + static_cast<W>(projected[at]));
    W f = squash(static_cast<W>(gates[at + size]) + static_cast<W>(projected[at + size]));
    W g = tanh(static_cast<W>(gates[at + 2 * size]) + static_cast<W>(projected[at + 2 * size]));
    W o = squash(static_cast<W>(gates[at + 3 * size]) + static_cast<W>(projected[at + 3 * size]));
    gates[at] = static_cast<T>(i);
    gates[at + size] = static_cast<T>(f);
    gates[at + 2 * size] = static_cast<T>(g);
    gates[at + 3 * size] = static_cast<T>(o);
    bool running = runs(lengths, n, t);
    W c = f * static_cast<W>(c_before[k]) + i * g;
    c_after[k] = running ? static_cast<T>(c) : c_before[k];
    h_after[k] = running ? static_cast<T>(o * tanh(c)) : h_before[k];
  }
}

// `dc` is the cotangent of the cells after the step, and takes that of the cells before it.
template <typename T>
__global__ void lstm_step_backward(const T* dy, const T* gates, const T* c_before, const T* c_after, const i64* lengths,
                                   const T* through, T* carry, T* dc, T* d, i64 t, i64 batch, i64 size) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    i64 n = k / size, at = n * 4 * size + k % size;
    W dh = static_cast<W>(through[k]);
    if (carry) dh += static_cast<W>(carry[k]);
    bool running = runs(lengths, n, t);
    if (carry) carry[k] = static_cast<T>(running ? W(0) : dh);
    if (!running) {
      for (int b = 0; b < 4; ++b) d[at + b * size] = static_cast<T>(W(0));
      continue;
    }
    dh += static_cast<W>(dy[k]);
    W i = static_cast<W>(gates[at]), f = static_cast<W>(gates[at + size]), g = static_cast<W>(gates[at + 2 * size]),
      o = static_cast<W>(gates[at + 3 * size]), s = tanh(static_cast<W>(c_after[k]));
    W inner = static_cast<W>(dc[k]) + dh * o * (W(1) - s * s);
    d[at] = static_cast<T>(inner * g * (i * (W(1) - i)));
    d[at + size] = static_cast<T>(inner * static_cast<W>(c_before[k]) * (f * (W(1) - f)));
    d[at + 2 * size] = static_cast<T>(inner * i * (W(1) - g * g));
    d[at + 3 * size] = static_cast<T>(dh * s * (o * (W(1) - o)));
    dc[k] = static_cast<T>(inner * f);
  }
}

// `product` is that of weight and state, (batch, 3 * size).
template <typename T>
__global__ void gru_step(const T* projected, const T* product, const T* bias, const i64* lengths, const T* before, T* gates,
                         T* inner, T* after, i64 t, i64 batch, i64 size) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    i64 n = k / size, j = k % size, at = n * 3 * size + j;
    W a = static_cast<W>(product[at]), b = static_cast<W>(product[at + size]), q = static_cast<W>(product[at + 2 * size]);
    if (bias) {
      a += static_cast<W>(bias[j]);
      b += static_cast<W>(bias[j + size]);
      q += static_cast<W>(bias[j + 2 * size]);
    }
    W r = squash(static_cast<W>(projected[at]) + a), z = squash(static_cast<W>(projected[at + size]) + b);
    W c = tanh(static_cast<W>(projected[at + 2 * size]) + r * q), h = static_cast<W>(before[k]);
    gates[at] = static_cast<T>(r);
    gates[at + size] = static_cast<T>(z);
    gates[at + 2 * size] = static_cast<T>(c);
    inner[k] = static_cast<T>(q);
    after[k] = runs(lengths, n, t) ? static_cast<T>(c + z * (h - c)) : before[k];
  }
}

// `d` is the cotangent of what the input gave, `dq` that of product plus bias: they differ in the third block. `carry` is not null.
template <typename T>
__global__ void gru_step_backward(const T* dy, const T* before, const T* gates, const T* inner, const i64* lengths,
                                  const T* through, T* carry, T* d, T* dq, i64 t, i64 batch, i64 size) {
  typedef typename Wide<T>::type W;
  for (i64 k = thread_index(); k < batch * size; k += thread_count()) {
    i64 n = k / size, at = n * 3 * size + k % size;
    W dh = static_cast<W>(through[k]) + static_cast<W>(carry[k]), r = static_cast<W>(gates[at]),
      z = static_cast<W>(gates[at + size]), c = static_cast<W>(gates[at + 2 * size]), dr = W(0), dz = W(0), dn = W(0);
    if (runs(lengths, n, t)) {
      dh += static_cast<W>(dy[k]);
      dn = dh * (W(1) - z) * (W(1) - c * c);
      dz = dh * (static_cast<W>(before[k]) - c) * (z * (W(1) - z));
      dr = dn * static_cast<W>(inner[k]) * (r * (W(1) - r));
      dh = dh * z;
    }
    carry[k] = static_cast<T>(dh);
    d[at] = dq[at] = static_cast<T>(dr);
    d[at + size] = dq[at + size] = static_cast<T>(dz);
    d[at + 2 * size] = static_cast<T>(dn);
    dq[at + 2 * size] = static_cast<T>(dn * r);
  }
}
