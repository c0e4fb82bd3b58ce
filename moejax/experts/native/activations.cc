#include "activations.h"

#include "gemm.h"
#include "simd.h"

namespace moejax {
namespace {

// A function of one variable: its value, and with it its derivative.
struct Silu {
  static MOEJAX_INLINE Vec value(Vec x) { return x * sigmoid(x); }
  static MOEJAX_INLINE Vec both(Vec x, Vec& slope) {
    const Vec s = sigmoid(x);
    slope = s * (1.0f + x * (1.0f - s));
    return x * s;
  }
};

// The tanh approximation: x/2 (1 + tanh z) = x sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3).
struct Gelu {
  static constexpr float kScale = 1.5957691216057308f;  // 2 sqrt(2/pi)
  static constexpr float kCube = 0.044715f;
  static MOEJAX_INLINE Vec value(Vec x) { return x * sigmoid(kScale * (x + kCube * x * x * x)); }
  static MOEJAX_INLINE Vec both(Vec x, Vec& slope) {
    const Vec s = sigmoid(kScale * (x + kCube * x * x * x));
    slope = s + x * s * (1.0f - s) * kScale * (1.0f + 3 * kCube * x * x);
    return x * s;
  }
};

// Comparisons are "not positive" the wrong way round, so that a NaN is none of the zeros.
struct Relu {
  static MOEJAX_INLINE Vec value(Vec x) { return x <= 0.0f ? Vec{} : x; }
  static MOEJAX_INLINE Vec both(Vec x, Vec& slope) {
    slope = x <= 0.0f ? Vec{} : Vec{} + 1.0f;
    return value(x);
  }
};

struct Relu2 {
  static MOEJAX_INLINE Vec value(Vec x) { return Relu::value(x) * Relu::value(x); }
  static MOEJAX_INLINE Vec both(Vec x, Vec& slope) {
    slope = 2.0f * Relu::value(x);
    return value(x);
  }
};

template <class F, bool kGated>
void forward(const float* const* pre, int rows, float* hidden) {
  const long size = static_cast<long>(rows) * kPanel;
  for (long i = 0; i < size; i += kLanes) {
    const Vec value = F::value(load(pre[0] + i));
    if constexpr (kGated) {
      store(hidden + i, value * load(pre[1] + i));
    } else {
      store(hidden + i, value);
    }
  }
}

template <class F, bool kGated>
void backward(const float* const* pre, const float* dhidden, const float* weight, int rows,
              float* hidden, float* const* dpre, float* dweight) {
  for (int row = 0; row < rows; row++) {
    Vec dot = load(dweight + row * kLanes);
    for (long i = static_cast<long>(row) * kPanel; i < (row + 1L) * kPanel; i += kLanes) {
      Vec slope, value = F::both(load(pre[0] + i), slope), d = load(dhidden + i);
      if constexpr (kGated) {
        const Vec up = load(pre[1] + i), scaled = weight[row] * d;
        store(dpre[0] + i, scaled * up * slope);
        store(dpre[1] + i, scaled * value);
        value *= up;
      } else {
        store(dpre[0] + i, weight[row] * d * slope);
      }
      dot += value * d;
      store(hidden + i, weight[row] * value);
    }
    store(dweight + row * kLanes, dot);
  }
}

}  // namespace

void activate(Activation activation, const float* const* pre, int rows, float* hidden) {
  switch (activation) {
    case kSwiglu: return forward<Silu, true>(pre, rows, hidden);
    case kGeglu: return forward<Gelu, true>(pre, rows, hidden);
    case kGelu: return forward<Gelu, false>(pre, rows, hidden);
    case kRelu: return forward<Relu, false>(pre, rows, hidden);
    case kRelu2: return forward<Relu2, false>(pre, rows, hidden);
  }
}

void activate_backward(Activation activation, const float* const* pre, const float* dhidden,
                       const float* weight, int rows, float* hidden, float* const* dpre,
                       float* dweight) {
  const auto run = [&](auto pass) { pass(pre, dhidden, weight, rows, hidden, dpre, dweight); };
  switch (activation) {
    case kSwiglu: return run(backward<Silu, true>);
    case kGeglu: return run(backward<Gelu, true>);
    case kGelu: return run(backward<Gelu, false>);
    case kRelu: return run(backward<Relu, false>);
    case kRelu2: return run(backward<Relu2, false>);
  }
}

}  // namespace moejax
