// Optimizer steps over flat buffers: the formulas of gpubackprop/backends/updates.py, operation by operation in the same order and
// precision, in one pass over memory.
//
// `lr`, `step` and `scale` are given by value, or by their place on the device so that a captured graph replays with other ones.
// What depends on them alone is computed in double by one thread of each block. `scale` multiplies the gradient. Where `skip`
// points to true nothing is written, and the host need not know.
//
// float16 is computed with as NumPy does, each operation's result rounded; bfloat16, for whose operations beside a Python number
// NumPy has no rule of its own, in float, and only what is stored is rounded.

template <typename T> struct Rounded {
  float value;
  Rounded() = default;
  __device__ explicit Rounded(double x) : value(static_cast<float>(static_cast<T>(x))) {}
  __device__ explicit Rounded(T x) : value(static_cast<float>(x)) {}
  __device__ explicit operator T() const { return static_cast<T>(value); }
  // The float that an operation on halves gives, rounded: the same as rounding its exact result, since a float has more than twice
  // the digits (Figueroa 1995).
  static __device__ Rounded of(float x) { return Rounded(static_cast<T>(x)); }
};
template <typename T> __device__ __forceinline__ Rounded<T> operator+(Rounded<T> a, Rounded<T> b) { return Rounded<T>::of(a.value + b.value); }
template <typename T> __device__ __forceinline__ Rounded<T> operator-(Rounded<T> a, Rounded<T> b) { return Rounded<T>::of(a.value - b.value); }
template <typename T> __device__ __forceinline__ Rounded<T> operator*(Rounded<T> a, Rounded<T> b) { return Rounded<T>::of(a.value * b.value); }
template <typename T> __device__ __forceinline__ Rounded<T> operator/(Rounded<T> a, Rounded<T> b) { return Rounded<T>::of(a.value / b.value); }
template <typename T> __device__ __forceinline__ bool operator<(Rounded<T> a, Rounded<T> b) { return a.value < b.value; }
template <typename T> __device__ __forceinline__ Rounded<T> sqrt(Rounded<T> a) { return Rounded<T>::of(sqrt(a.value)); }

// What elements of an array are computed with.
template <typename T> struct Real { typedef typename Wide<T>::type type; };
#ifdef GPUBACKPROP_HALF
template <> struct Real<__half> { typedef Rounded<__half> type; };
#endif

// The factor of the gradient: a number of the array's own type.
template <typename T> __device__ __forceinline__ typename Real<T>::type factor_of(const T* place, double value) {
  return static_cast<typename Real<T>::type>(given(place, static_cast<T>(value)));
}

// Whether a number is not zero, by its bits: the compiler asks anew for each element, and at comparing doubles most GPUs are slow.
__device__ __forceinline__ bool nonzero(double x) {
  u64 bits;
  memcpy(&bits, &x, 8);
  return bits << 1 != 0;
}

// step(p, g, s) for every element of param and grad and of N arrays of state, any of which may be null; then s is not read, and
// what becomes of it is not kept.
//
// 16 bytes of each array are read at once, those of all arrays before anything is computed. Arrays that begin in the middle of 16
// bytes, as a stretch of an arena does, lie alike: what is before the first boundary is taken element by element, like the end.
template <typename T, int N, typename F>
__device__ __forceinline__ void each_parameter(T* param, const T* grad, T* const (&state)[N], i64 n, F step) {
  typedef typename Real<T>::type R;
  constexpr int L = Pack<T>::lanes, AHEAD = N == 1 ? 2 : 1;
  i64 head = (i64)((16 - (u64)param % 16) % 16 / sizeof(T));
  if (head > n) head = n;
  bool whole = aligned(param + head) && aligned(grad + head);
#pragma unroll
  for (int a = 0; a < N; ++a) whole = whole && (!state[a] || aligned(state[a] + head));
  i64 packs = whole ? (n - head) / L : 0;
  for (i64 first = thread_index(); first < packs; first += thread_count() * AHEAD) {
    Pack<T> p[AHEAD], g[AHEAD], s[AHEAD][N];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      i64 i = first + u * thread_count(), at = head + i * L;
      if (i >= packs) break;
      load_pack(p[u], param + at, true, L);
      load_pack(g[u], grad + at, true, L);
#pragma unroll
      for (int a = 0; a < N; ++a)
        if (state[a]) load_pack(s[u][a], state[a] + at, true, L);
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      i64 i = first + u * thread_count(), at = head + i * L;
      if (i >= packs) break;
#pragma unroll
      for (int k = 0; k < L; ++k) {
        R x = static_cast<R>(p[u].item[k]), own[N];
#pragma unroll
        for (int a = 0; a < N; ++a) own[a] = state[a] ? static_cast<R>(s[u][a].item[k]) : R(0.0);
        step(x, static_cast<R>(g[u].item[k]), own);
        p[u].item[k] = static_cast<T>(x);
#pragma unroll
        for (int a = 0; a < N; ++a) s[u][a].item[k] = static_cast<T>(own[a]);
      }
      store_pack(param + at, p[u], true, L);
#pragma unroll
      for (int a = 0; a < N; ++a)
        if (state[a]) store_pack(state[a] + at, s[u][a], true, L);
    }
  }
  for (i64 j = thread_index(); j < n - packs * L; j += thread_count()) {
    i64 i = j < head ? j : j + packs * L;
    R x = static_cast<R>(param[i]), own[N];
#pragma unroll
    for (int a = 0; a < N; ++a) own[a] = state[a] ? static_cast<R>(state[a][i]) : R(0.0);
    step(x, static_cast<R>(grad[i]), own);
    param[i] = static_cast<T>(x);
#pragma unroll
    for (int a = 0; a < N; ++a)
      if (state[a]) state[a][i] = static_cast<T>(own[a]);
  }
}

template <typename T>
__global__ void sgd(T* param, const T* grad, T* velocity, i64 n, const T* scale_place, double scale, const bool* skip,
                    const double* lr_place, double lr, const double* step_place, double step, double momentum, double dampening,
                    int nesterov, double weight_decay) {
  typedef typename Real<T>::type R;
  if (skip && *skip) return;
  R factor = factor_of(scale_place, scale), rate = R(given(lr_place, lr));
  R keep = R(momentum), take = R(1.0 - dampening), decay = R(weight_decay);
  // Steps are whole numbers.
  bool first = static_cast<float>(given(step_place, step)) <= 1.0f, moving = velocity && nonzero(momentum), decays = nonzero(weight_decay);
  T* const state[1] = {moving ? velocity : nullptr};
  each_parameter(param, grad, state, n, [=](R& p, R g, R(&s)[1]) {
    g = g * factor;
    if (decays) g = g + p * decay;
    if (moving) {
      s[0] = first ? g : s[0] * keep + g * take;
      g = nesterov ? g + s[0] * keep : s[0];
    }
    p = p - g * rate;
  });
}

template <typename T>
__global__ void adagrad(T* param, const T* grad, T* total, i64 n, const T* scale_place, double scale, const bool* skip,
                        const double* lr_place, double lr, const double* step_place, double step, double lr_decay, double eps,
                        double weight_decay) {
  typedef typename Real<T>::type R;
  if (skip && *skip) return;
  R factor = factor_of(scale_place, scale), decay = R(weight_decay), small = R(eps);
  R rate = R(given(lr_place, lr) / (1.0 + (given(step_place, step) - 1.0) * lr_decay));
  bool decays = nonzero(weight_decay);
  T* const state[1] = {total};
  each_parameter(param, grad, state, n, [=](R& p, R g, R(&s)[1]) {
    g = g * factor;
    if (decays) g = g + p * decay;
    s[0] = s[0] + g * g;
    p = p - g / (sqrt(s[0]) + small) * rate;
  });
}

template <typename T>
__global__ void rmsprop(T* param, const T* grad, T* mean_square, T* mean_grad, T* velocity, i64 n, const T* scale_place,
                        double scale, const bool* skip, const double* lr_place, double lr, double alpha, double eps,
                        double weight_decay, double momentum) {
  typedef typename Real<T>::type R;
  if (skip && *skip) return;
  R factor = factor_of(scale_place, scale), rate = R(given(lr_place, lr)), small = R(eps), carry = R(momentum);
  R keep = R(alpha), take = R(1.0 - alpha), decay = R(weight_decay);
  bool moving = velocity && nonzero(momentum), decays = nonzero(weight_decay), centred = mean_grad;
  T* const state[3] = {mean_square, mean_grad, moving ? velocity : nullptr};
  each_parameter(param, grad, state, n, [=](R& p, R g, R(&s)[3]) {
    g = g * factor;
    if (decays) g = g + p * decay;
    s[0] = s[0] * keep + g * g * take;
    R spread = s[0];
    if (centred) {
      s[1] = s[1] * keep + g * take;
      spread = spread - s[1] * s[1];
      if (spread < R(0.0)) spread = R(0.0);  // by rounding, where the gradient is constant; a NaN stays
    }
    R q = g / (sqrt(spread) + small);
    if (moving) {
      q = s[2] * carry + q;
      s[2] = q;
    }
    p = p - q * rate;
  });
}

template <typename T>
__global__ void adam(T* param, const T* grad, T* mean, T* mean_square, i64 n, const T* scale_place, double scale, const bool* skip,
                     const double* lr_place, double lr, const double* step_place, double step, double beta1, double beta2,
                     double eps, double weight_decay, int decoupled) {
  typedef typename Real<T>::type R;
  if (skip && *skip) return;  // the whole grid or none of it: no thread is left at the barrier
  // Powers in double are slow on most GPUs: one thread takes each of the two.
  __shared__ double shared[2];
  double base_rate = given(lr_place, lr);
  if (threadIdx.x == 0) shared[0] = base_rate / (1.0 - pow(beta1, given(step_place, step)));
  if (threadIdx.x == blockDim.x - 32) shared[1] = pow(1.0 - pow(beta2, given(step_place, step)), -0.5);
  __syncthreads();
  R factor = factor_of(scale_place, scale), rate = R(shared[0]), spread = R(shared[1]), small = R(eps);
  R shrink = R(1.0 - base_rate * weight_decay), decay = R(weight_decay);
  R keep1 = R(beta1), take1 = R(1.0 - beta1), keep2 = R(beta2), take2 = R(1.0 - beta2);
  bool apart = nonzero(weight_decay) && decoupled, decays = nonzero(weight_decay) && !decoupled;
  T* const state[2] = {mean, mean_square};
  each_parameter(param, grad, state, n, [=](R& p, R g, R(&s)[2]) {
    g = g * factor;
    if (apart) p = p * shrink;
    if (decays) g = g + p * decay;
    s[0] = s[0] * keep1 + g * take1;
    s[1] = s[1] * keep2 + g * g * take2;
    p = p - s[0] / (sqrt(s[1]) * spread + small) * rate;
  });
}
