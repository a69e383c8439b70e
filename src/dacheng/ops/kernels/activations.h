// The rows that a matrix is multiplied with: rounded to eight bits in blocks of 32, x ~ d * q, q in -127..127, or, where
// the weights are float32, as they are.
#pragma once
#include "vector.h"

static const int64_t BLOCK = 32;

struct Rows {
  int64_t rows, width;
  int8_t* q;  // (rows, width)
  float* d;   // (rows, width / 32)
  float* s;   // d times the sum of a block's q: what a block's minimum is multiplied with
  float* f;   // (rows, width): not rounded; null where they are
  int64_t blocks() const { return width / BLOCK; }
};

// 32 floats. A NaN or an infinity makes the block's scale NaN, and with it all that comes of the row.
static inline void quantize_block(const float* x, int8_t* q, float* d, float* s) {
  f32x8 v[4], size = splat(0), zero = splat(0);
  for (int i = 0; i < 4; i++) {
    v[i] = load(x + 8 * i);
    size = larger(size, larger(v[i], -v[i]));
    zero += v[i] * 0.0f;
  }
  float scale = largest(size) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
  i32x8 n[4], total = {};
  for (int i = 0; i < 4; i++) {
    n[i] = __builtin_convertvector(rounded(v[i] * inverse), i32x8);
    total += n[i];
  }
#if defined(__AVX2__)
  __m256i low = _mm256_packs_epi32((__m256i)n[0], (__m256i)n[1]), high = _mm256_packs_epi32((__m256i)n[2], (__m256i)n[3]);
  __m256i bytes = _mm256_packs_epi16(low, high);
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
#else
  for (int i = 0; i < 32; i++) q[i] = int8_t(n[i / 8][i % 8]);
#endif
  *d = scale + sum(zero);
  *s = *d * sum(__builtin_convertvector(total, f32x8));
}

static inline void quantize_row(const float* x, const Rows& to, int64_t row) {
  int64_t blocks = to.blocks();
  for (int64_t b = 0; b < blocks; b++)
    quantize_block(x + b * BLOCK, to.q + row * to.width + b * BLOCK, to.d + row * blocks + b, to.s + row * blocks + b);
}

static inline void put_row(const float* x, const Rows& to, int64_t row) {
  if (!to.f)
    quantize_row(x, to, row);
  else if (x != to.f + row * to.width)
    memcpy(to.f + row * to.width, x, to.width * sizeof *x);
}
