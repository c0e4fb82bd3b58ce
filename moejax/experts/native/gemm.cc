#include "gemm.h"

#include "simd.h"

namespace moejax {
namespace {

constexpr int kTileColumns = 2 * kLanes;

// One register tile: M rows, two vectors of columns. The accumulators never leave the registers.
template <int M>
void tile(const float* a, long a_stride, const float* b, int depth, float* c, long ldc, bool add) {
  Vec acc[M][2];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    acc[i][0] = add ? load(c + i * ldc) : Vec{};
    acc[i][1] = add ? load(c + i * ldc + kLanes) : Vec{};
  }
  for (int k = 0; k < depth; k += kPanel, a += a_stride) {
#pragma GCC unroll 4
    for (int kk = 0; kk < kPanel; kk++, b += kPanel) {
      const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) {
        const float s = a[i * kPanel + kk];
        acc[i][0] += s * b0;
        acc[i][1] += s * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    store(c + i * ldc, acc[i][0]);
    store(c + i * ldc + kLanes, acc[i][1]);
  }
}

// The same with A transposed: M columns of its panel.
template <int M>
void tile_transposed(const float* a, const float* b, int rows, float* c, long ldc, bool add) {
  Vec acc[M][2];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    acc[i][0] = add ? load(c + i * ldc) : Vec{};
    acc[i][1] = add ? load(c + i * ldc + kLanes) : Vec{};
  }
#pragma GCC unroll 4
  for (int k = 0; k < rows; k++, a += kPanel, b += kPanel) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      acc[i][0] += a[i] * b0;
      acc[i][1] += a[i] * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    store(c + i * ldc, acc[i][0]);
    store(c + i * ldc + kLanes, acc[i][1]);
  }
}

// Calls `run<M>(first row)` on blocks of rows: whole tiles, then what is left in one smaller tile.
template <int M, class Run>
MOEJAX_INLINE void rest(int left, int row, const Run& run) {
  if constexpr (M > 0) {
    if (left == M) {
      run.template operator()<M>(row);
    } else {
      rest<M - 1>(left, row, run);
    }
  }
}

template <class Run>
MOEJAX_INLINE void by_tiles(int rows, const Run& run) {
  int row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) run.template operator()<kTileRows>(row);
  rest<kTileRows - 1>(rows - row, row, run);
}

}  // namespace

void multiply(const float* a, long a_stride, const float* b, int rows, int depth, float* c,
              long ldc, bool add) {
  for (int column = 0; column < kPanel; column += kTileColumns) {
    by_tiles(rows, [&]<int M>(int row) {
      tile<M>(a + row * kPanel, a_stride, b + column, depth, c + row * ldc + column, ldc, add);
    });
  }
}

void multiply_transposed(const float* a, const float* b, int rows, int m, int n, float* c, long ldc,
                         bool add) {
  // Columns past N are not ours to write, so a narrow C is made in a tile of its own first.
  alignas(64) float narrow[kPanel * kPanel];
  float* out = n == kPanel ? c : narrow;
  const long ldo = n == kPanel ? ldc : kPanel;
  for (int column = 0; column < kPanel; column += kTileColumns) {
    by_tiles(m, [&]<int M>(int row) {
      tile_transposed<M>(a + row, b + column, rows, out + row * ldo + column, ldo,
                         add && n == kPanel);
    });
  }
  if (n == kPanel) return;
  for (int i = 0; i < m; i++) {
    for (int j = 0; j < n; j++) {
      c[i * ldc + j] = narrow[i * kPanel + j] + (add ? c[i * ldc + j] : 0.0f);
    }
  }
}

}  // namespace moejax
