// Matrix products of panels: the only loops that floating-point throughput depends on.
//
// A matrix `[R, C]` in panel form is `ceil(C / 32)` panels of `[R, 32]`, one behind the other,
// columns past C being zero. One copy of gathered rows then serves as left factor, as transposed
// left factor and as right factor.
#pragma once

namespace moejax {

constexpr int kPanel = 32;

// Columns rounded up to whole panels.
inline long padded(long columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// C[R, 32] = A[R, K] B[K, 32], or added to C.
//   a: panels of A, `a_stride` floats apart; K is a multiple of 32.
//   b: one panel `[K, 32]`.
//   c: rows `ldc` floats apart.
void multiply(const float* a, long a_stride, const float* b, int rows, int depth, float* c,
              long ldc, bool add);

// C[M, N] = A^T[M, R] B[R, N], or added to C; M and N are at most 32.
//   a, b: one panel each, of R rows.
void multiply_transposed(const float* a, const float* b, int rows, int m, int n, float* c, long ldc,
                         bool add);

}  // namespace moejax
