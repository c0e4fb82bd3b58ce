// Vectors of floats and the few functions of them that the kernel needs.
//
// GCC and Clang vector extensions: one source for every instruction set, chosen by the compiler's
// flags (build.py). Anything narrower than AVX2 with FMA is not built: there `tiles` is faster.
#pragma once
#include <cstdint>

#if !defined(__AVX2__) || !defined(__FMA__)
#error "the native expert kernel needs at least AVX2 and FMA"
#endif

#define MOEJAX_INLINE __attribute__((always_inline)) inline

namespace moejax {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // 12 x 2 accumulators, 2 vectors of B, broadcasts from memory: of 32
#else
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 6 x 2 accumulators, 2 vectors of B, 1 broadcast: 15 of 16 registers
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(kLanes * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), may_alias, aligned(4)));

MOEJAX_INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
MOEJAX_INLINE void store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }

// e**x to about 2 ulp (Cephes' polynomial); arguments beyond +-88 count as +-88, a NaN stays one.
MOEJAX_INLINE Vec exp(Vec x) {
  const Vec low = Vec{} - 88.0f, high = Vec{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec round = Vec{} + 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer
  const Vec n = (x * 1.44269504088896341f + round) - round;
  // x = n log 2 + r, with log 2 in two parts, the first of few bits.
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = Vec{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Times 2**n through the exponent bits: n + 127 is 0 to 254, and 0 makes 0 of what would be a
  // subnormal number.
  const VecInt exponent = (__builtin_convertvector(n, VecInt) + 127) << 23;
  return p * reinterpret_cast<Vec>(exponent);
}

MOEJAX_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

MOEJAX_INLINE float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; i++) total += v[i];
  return total;
}

}  // namespace moejax
