#include "packing.h"

#include <algorithm>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "gemm.h"

namespace moejax {
namespace {

// One row of `width` <= 32 numbers into a panel's row.
inline void copy_row(const float* from, long width, float* to) {
  if (width == kPanel) {  // a size that the compiler knows becomes a few moves
    std::memcpy(to, from, kPanel * sizeof(float));
    return;
  }
  std::memcpy(to, from, width * sizeof(float));
  std::memset(to + width, 0, (kPanel - width) * sizeof(float));
}

// to[j][i] = from[i][j] for i, j < 16.
#if defined(__AVX512F__)
inline void transpose16(const float* from, long stride, float* to, long to_stride) {
  __m512 r[16], t[16];
  const auto pd = [](__m512 v) { return _mm512_castps_pd(v); };
  const auto ps = [](__m512d v) { return _mm512_castpd_ps(v); };
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours
    r[i] = ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
    r[i + 1] = ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
    r[i + 2] = ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
    r[i + 3] = ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {  // quarters of vectors
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_ps(to + (i + 4) * to_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_ps(to + (i + 12) * to_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#else
inline void transpose16(const float* from, long stride, float* to, long to_stride) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) to[j * to_stride + i] = from[i * stride + j];
}
#endif

}  // namespace

void gather(const float* x, long dim, const int32_t* assignments, long slots, int rows,
            float* panels) {
  for (int row = 0; row < rows; row++) {
    const float* from = x + assignments[row] / slots * dim;
    float* to = panels + row * static_cast<long>(kPanel);
    for (long d = 0; d < dim; d += kPanel, to += static_cast<long>(rows) * kPanel) {
      copy_row(from + d, std::min<long>(kPanel, dim - d), to);
    }
  }
}

void pack(const float* w, int units, long dim, float* panels, int stride, int first) {
  const int rows = padded(units);
  for (int row = 0; row < rows; row++) {
    float* to = panels + static_cast<long>(first + row) * kPanel;
    for (long d = 0; d < dim; d += kPanel, to += static_cast<long>(stride) * kPanel) {
      copy_row(w + row * dim + d, row < units ? std::min<long>(kPanel, dim - d) : 0, to);
    }
  }
}

void pack_transposed(const float* w, int units, long dim, float* panels) {
  const long depth = padded(dim);
  for (long f = 0; f < padded(units); f += 16) {
    for (long d = 0; d < depth; d += 16) {
      float* to = panels + f / kPanel * depth * kPanel + d * kPanel + f % kPanel;
      const long rows = std::min<long>(16, units - f), columns = std::min<long>(16, dim - d);
      if (rows == 16 && columns == 16) {
        transpose16(w + f * dim + d, dim, to, kPanel);
        continue;
      }
      for (int j = 0; j < 16; j++)
        for (int i = 0; i < 16; i++)
          to[j * kPanel + i] = i < rows && j < columns ? w[(f + i) * dim + d + j] : 0.0f;
    }
  }
}

}  // namespace moejax
