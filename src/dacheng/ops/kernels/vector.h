// Eight floats at a time, in the vector extension of GCC and Clang: every instruction set, one source.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));

static inline f32x8 load(const float* p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline f32x8 splat(float x) { return f32x8{x, x, x, x, x, x, x, x}; }

// a * b + c, where it matters that the compiler does not choose how often that is rounded: a row must come out the same
// whatever rows are beside it.
static inline f32x8 multiply_add(f32x8 a, f32x8 b, f32x8 c) {
#if defined(__FMA__) && defined(__AVX2__)
  return (f32x8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static inline f32x8 larger(f32x8 a, f32x8 b) { return a > b ? a : b; }

// bfloat16: the upper half of a float32.
static inline f32x8 load(const uint16_t* p) {
#if defined(__AVX2__)
  __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
#else
  uint32_t bits[8];
  for (int i = 0; i < 8; i++) bits[i] = uint32_t(p[i]) << 16;
  f32x8 v;
  memcpy(&v, bits, sizeof v);
  return v;
#endif
}

static inline void copy(const float* from, int64_t n, float* to) { memcpy(to, from, n * sizeof *to); }
static inline void copy(const float* from, int64_t n, uint16_t* to) {  // to nearest, ties to even; NaN stays NaN
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, from + i, sizeof bits);
    to[i] = from[i] == from[i] ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
  }
}

static inline float sum(f32x8 v) {
  f32x4 low, high;
  memcpy(&low, &v, 16);
  memcpy(&high, reinterpret_cast<char*>(&v) + 16, 16);
  low += high;
  return (low[0] + low[2]) + (low[1] + low[3]);
}

// Of each of eight.
static inline f32x8 sums(const f32x8 v[8]) {
#if defined(__AVX2__)
  __m256 pairs[4], fours[2];
  for (int i = 0; i < 4; i++) pairs[i] = _mm256_hadd_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
  for (int i = 0; i < 2; i++) fours[i] = _mm256_hadd_ps(pairs[2 * i], pairs[2 * i + 1]);
  __m256 low = _mm256_permute2f128_ps(fours[0], fours[1], 0x20), high = _mm256_permute2f128_ps(fours[0], fours[1], 0x31);
  return (f32x8)_mm256_add_ps(low, high);
#else
  f32x8 out;
  for (int i = 0; i < 8; i++) out[i] = sum(v[i]);
  return out;
#endif
}

static inline float largest(f32x8 v) {
  f32x4 low, high;
  memcpy(&low, &v, 16);
  memcpy(&high, reinterpret_cast<char*>(&v) + 16, 16);
  low = low > high ? low : high;
  float a = low[0] > low[2] ? low[0] : low[2], b = low[1] > low[3] ? low[1] : low[3];
  return a > b ? a : b;
}

// To the nearest whole number, for |x| < 2^22: the sum has no bits left for a fraction.
static inline f32x8 rounded(f32x8 x) { return (x + 12582912.0f) - 12582912.0f; }

// e^x within 2e-7 of itself (Cephes' polynomial); NaN stays NaN.
static inline f32x8 exponential(f32x8 x) {
  x = x < splat(-87.3f) ? splat(-87.3f) : x;
  x = x > splat(88.3f) ? splat(88.3f) : x;
  f32x8 n = rounded(x * 1.44269504088896341f);
  f32x8 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f32x8 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  i32x8 bits = (__builtin_convertvector(n, i32x8) + 127) << 23;
  f32x8 scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

static inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  float value = exponent == 0    ? std::ldexp(float(fraction), -24)
                : exponent == 31 ? (fraction ? NAN : INFINITY)
                                 : std::ldexp(float(1024 + fraction), int(exponent) - 25);
  return sign ? -value : value;
#endif
}

// Eight float16.
static inline f32x8 load_halves(const uint8_t* p) {
#if defined(__F16C__) && defined(__AVX2__)
  __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  f32x8 out;
  memcpy(&out, &v, sizeof out);
  return out;
#else
  f32x8 out;
  for (int i = 0; i < 8; i++) {
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    out[i] = half_to_float(h);
  }
  return out;
#endif
}
