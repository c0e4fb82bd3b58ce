// The two passes of a layer of experts.
#pragma once
#include "layout.h"
#include "parallel.h"

namespace moejax {

// y[t] = sum over k of weight[t, k] * E_expert[t, k](x[t]).
//   saved: `capacity` numbers; what the experts computed before their activations, opaque to
//     everyone but `backward`, for as many experts as there is room for.
//   y: [T, D].
void forward(const Problem& problem, long capacity, const Pool& pool, float* saved, float* y);

// The vector-Jacobian product of `forward`.
//   saved: what `forward` made of the same problem and capacity.
//   dy, dx: [T, D].
//   dweight: [T, K]; 0 where a slot is empty.
//   dweights: in the shape of `problem.weights`.
void backward(const Problem& problem, long capacity, const Pool& pool, const float* saved,
              const float* dy, float* dx, float* dweight, float* const* dweights);

}  // namespace moejax

// The most parts that `backward` ever made of one expert; more than one only with threads to share.
extern "C" int32_t moejax_native_most_parts();
