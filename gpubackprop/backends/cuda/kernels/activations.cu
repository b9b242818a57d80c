// Activations and their slopes, one pass over memory each: the formulas of gpubackprop/backends/composites.py in the same order.
// Each is a struct with value(x, a) or slope(dy, x, a), where `a` is the activation's parameter.

struct Erf {
  template <typename W> static __device__ W value(W x, W) { return erf(x); }
};

struct Sigmoid {
  template <typename W> static __device__ W value(W x, W) { return (tanh(x * W(0.5)) + W(1)) * W(0.5); }
  template <typename W> static __device__ W slope(W dy, W y, W) { return dy * (y * (W(1) - y)); }
};

struct Tanh {
  template <typename W> static __device__ W slope(W dy, W y, W) { return dy * (W(1) - y * y); }
};

struct Relu {
  template <typename W> static __device__ W slope(W dy, W y, W) { return y > W(0) ? dy : W(0); }
};

struct LeakyRelu {
  template <typename W> static __device__ W value(W x, W a) { return x > W(0) ? x : x * a; }
  template <typename W> static __device__ W slope(W dy, W x, W a) { return x > W(0) ? dy : dy * a; }
};

struct Elu {
  template <typename W> static __device__ W value(W x, W a) { return x > W(0) ? x : expm1(x) * a; }
  template <typename W> static __device__ W slope(W dy, W x, W a) { return x > W(0) ? dy : dy * (exp(x) * a); }
};

struct Gelu {
  template <typename W> static __device__ W value(W x, W) {
    return x * W(0.5) * (erf(x * W(0.70710678118654752440)) + W(1));
  }
  template <typename W> static __device__ W slope(W dy, W x, W) {
    W cdf = (erf(x * W(0.70710678118654752440)) + W(1)) * W(0.5);
    W pdf = exp(x * x * W(-0.5)) * W(0.39894228040143267794);
    return dy * (cdf + x * pdf);
  }
};

struct GeluTanh {
  template <typename W> static __device__ W inner(W x) { return (x + x * x * x * W(0.044715)) * W(0.79788456080286535588); }
  template <typename W> static __device__ W value(W x, W) { return x * W(0.5) * (tanh(inner(x)) + W(1)); }
  template <typename W> static __device__ W slope(W dy, W x, W) {
    W t = tanh(inner(x));
    W near = x * (W(1) - t * t);
    W rest = (near + near * x * x * W(3 * 0.044715)) * W(0.79788456080286535588);
    return dy * ((t + W(1) + rest) * W(0.5));
  }
};

struct Silu {
  template <typename W> static __device__ W value(W x, W a) { return x * Sigmoid::value(x, a); }
  template <typename W> static __device__ W slope(W dy, W x, W a) {
    W s = Sigmoid::value(x, a);
    return dy * (s * (x * (W(1) - s) + W(1)));
  }
};

struct Softplus {
  // The comparison keeps a NaN.
  template <typename W> static __device__ W value(W x, W) { return (x < W(0) ? W(0) : x) + log1p(exp(-fabs(x))); }
};

template <typename T, typename F> __global__ void activation(const T* x, T* y, i64 n, double a) {
  typedef typename Wide<T>::type W;
  const T* const arrays[1] = {x};
  each_element(arrays, y, n, [=](const W(&v)[1]) { return F::value(v[0], (W)a); });
}

template <typename T, typename F> __global__ void activation_backward(const T* dy, const T* x, T* dx, i64 n, double a) {
  typedef typename Wide<T>::type W;
  const T* const arrays[2] = {dy, x};
  each_element(arrays, dx, n, [=](const W(&v)[2]) { return F::slope(v[0], v[1], (W)a); });
}
