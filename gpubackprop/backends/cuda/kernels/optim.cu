// Optimizer steps over flat buffers: the formulas of gpubackprop/backends/updates.py, operation by operation in the same order and
// precision, in one pass over memory.
//
// `lr`, `step` and `scale` are given by value, or by their place on the device so that a captured graph replays with other ones.
// What depends on them alone is computed in double by one thread of each block. `scale` multiplies the gradient. Where `skip`
// points to true nothing is written, and the host need not know.

template <typename T>
__global__ void sgd(T* param, const T* grad, T* velocity, i64 n, const T* scale_place, double scale, const bool* skip,
                    const double* lr_place, double lr, const double* step_place, double step, double momentum, double dampening,
                    int nesterov, double weight_decay) {
  if (skip && *skip) return;
  T factor = given(scale_place, (T)scale), rate = (T)given(lr_place, lr);
  T keep = (T)momentum, take = (T)(1.0 - dampening), decay = (T)weight_decay;
  bool first = given(step_place, step) <= 1.0;
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    T p = param[i], g = grad[i] * factor;
    if (weight_decay != 0.0) g = g + p * decay;
    if (velocity && momentum != 0.0) {
      T v = first ? g : velocity[i] * keep + g * take;
      velocity[i] = v;
      g = nesterov ? g + v * keep : v;
    }
    param[i] = p - g * rate;
  }
}

template <typename T>
__global__ void adagrad(T* param, const T* grad, T* total, i64 n, const T* scale_place, double scale, const bool* skip,
                        const double* lr_place, double lr, const double* step_place, double step, double lr_decay, double eps,
                        double weight_decay) {
  if (skip && *skip) return;
  T factor = given(scale_place, (T)scale), decay = (T)weight_decay;
  T rate = (T)(given(lr_place, lr) / (1.0 + (given(step_place, step) - 1.0) * lr_decay));
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    T p = param[i], g = grad[i] * factor;
    if (weight_decay != 0.0) g = g + p * decay;
    T t = total[i] + g * g;
    total[i] = t;
    param[i] = p - g / (sqrt(t) + (T)eps) * rate;
  }
}

template <typename T>
__global__ void rmsprop(T* param, const T* grad, T* mean_square, T* mean_grad, T* velocity, i64 n, const T* scale_place,
                        double scale, const bool* skip, const double* lr_place, double lr, double alpha, double eps,
                        double weight_decay, double momentum) {
  if (skip && *skip) return;
  T factor = given(scale_place, (T)scale), rate = (T)given(lr_place, lr);
  T keep = (T)alpha, take = (T)(1.0 - alpha), decay = (T)weight_decay;
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    T p = param[i], g = grad[i] * factor;
    if (weight_decay != 0.0) g = g + p * decay;
    T s = mean_square[i] * keep + g * g * take;
    mean_square[i] = s;
    if (mean_grad) {
      T m = mean_grad[i] * keep + g * take;
      mean_grad[i] = m;
      s = s - m * m;
      if (s < T(0)) s = T(0);  // by rounding, where the gradient is constant; a NaN stays
    }
    T q = g / (sqrt(s) + (T)eps);
    if (velocity && momentum != 0.0) {
      q = velocity[i] * (T)momentum + q;
      velocity[i] = q;
    }
    param[i] = p - q * rate;
  }
}

template <typename T>
__global__ void adam(T* param, const T* grad, T* mean, T* mean_square, i64 n, const T* scale_place, double scale, const bool* skip,
                     const double* lr_place, double lr, const double* step_place, double step, double beta1, double beta2,
                     double eps, double weight_decay, int decoupled) {
  if (skip && *skip) return;  // the whole grid or none of it: no thread is left at the barrier
  // Powers in double are slow on most GPUs: one thread takes them.
  __shared__ double shared[3];
  if (threadIdx.x == 0) {
    double rate = given(lr_place, lr), t = given(step_place, step);
    shared[0] = rate / (1.0 - pow(beta1, t));
    shared[1] = pow(1.0 - pow(beta2, t), -0.5);
    shared[2] = 1.0 - rate * weight_decay;
  }
  __syncthreads();
  T factor = given(scale_place, (T)scale), rate = (T)shared[0], spread = (T)shared[1], shrink = (T)shared[2];
  T keep1 = (T)beta1, take1 = (T)(1.0 - beta1), keep2 = (T)beta2, take2 = (T)(1.0 - beta2), decay = (T)weight_decay;
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    T p = param[i], g = grad[i] * factor;
    if (weight_decay != 0.0) {
      if (decoupled)
        p = p * shrink;
      else
        g = g + p * decay;
    }
    T m = mean[i] * keep1 + g * take1, v = mean_square[i] * keep2 + g * g * take2;
    mean[i] = m;
    mean_square[i] = v;
    param[i] = p - m / (sqrt(v) * spread + (T)eps) * rate;
  }
}
