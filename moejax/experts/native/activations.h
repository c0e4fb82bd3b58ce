// Activations and their derivatives on panels `[R, 32]` (the table in moejax/experts/spec.py).
#pragma once
#include <cstdint>

namespace moejax {

// The number of an activation; native/__init__.py has the same table.
enum Activation : int64_t { kSwiglu = 0, kGeglu = 1, kGelu = 2, kRelu = 3, kRelu2 = 4 };

// Projections into the hidden units: gate and up, or up alone.
inline int projections(Activation activation) { return activation <= kGeglu ? 2 : 1; }

// hidden = act(pre[0], pre[1]), or act(pre[0]) without a gate.
void activate(Activation activation, const float* const* pre, int rows, float* hidden);

// What the backward pass needs of one panel of hidden units.
//   pre: as above.
//   dhidden: gradient of the hidden units, not yet scaled with the rows' combine weights.
//   weight: combine weight of each row.
//   hidden: becomes `weight * act(...)`.
//   dpre: becomes the gradient of each `pre`, scaled with the weights.
//   dweight: `[R, lanes]`, to which `act(...) * dhidden` is added: its sum over lanes and panels is
//     the gradient of the combine weight.
void activate_backward(Activation activation, const float* const* pre, const float* dhidden,
                       const float* weight, int rows, float* hidden, float* const* dpre,
                       float* dweight);

}  // namespace moejax
