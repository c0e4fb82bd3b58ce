// Copies of rows and weights into panel form (gemm.h), padded with zeros.
#pragma once
#include <cstdint>

namespace moejax {

// Panels `[ceil(D / 32)][R][32]` of some rows of `x[T, D]`: those of `assignments` (t*K + k).
void gather(const float* x, long dim, const int32_t* assignments, long slots, int rows,
            float* panels);

// Panels over D of weight rows `w[F, D]`: `[ceil(D / 32)][stride][32]`, of which rows
// `first : first + padded(F)` are written.
void pack(const float* w, int units, long dim, float* panels, int stride, int first);

// Panels over F of the transpose of `w[F, D]`: `[ceil(F / 32)][padded(D)][32]`.
void pack_transposed(const float* w, int units, long dim, float* panels);

}  // namespace moejax
