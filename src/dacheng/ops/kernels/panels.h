// Weights in panels: eight rows of W side by side, so that eight outputs are summed in one register and no sum is ever
// taken across a register. A panel is a row of blocks; a block holds 32 columns of the eight rows:
//   scales (8 x float16 or float32), minima (the same, where the format has them),
//   codes: group g of 4 columns, row r at byte 32 g + 4 r + column; nibbles hold column c low and column c + 16 high.
// A value is scale * code + minimum. What the GGUF formats hold is kept exactly: only the order changes.
#pragma once
#include "linear.h"

enum Minimum { NONE, STORED, MINUS_EIGHT_SCALES };

template <int BITS, bool WIDE, Minimum MINIMUM, int PARTS = 1>
struct Panel {
  static const int bits = BITS;
  static const bool wide = WIDE;  // scales are float32
  static const Minimum minimum = MINIMUM;
  static const int parts = PARTS;  // of a block, each with a scale of its own
  static const int64_t scale_bytes = WIDE ? 32 : 16;
  static const int64_t header = scale_bytes * (MINIMUM == STORED ? 2 : PARTS);
  static const int64_t bytes = header + 8 * 4 * BITS;
  static f32x8 scales(const uint8_t* p) {
    if (!WIDE) return load_halves(p);
    f32x8 v;
    memcpy(&v, p, sizeof v);
    return v;
  }
};

typedef Panel<4, false, MINUS_EIGHT_SCALES> PanelQ4_0;
typedef Panel<4, false, STORED> PanelQ4_1;
typedef Panel<8, false, NONE> PanelQ8_0;    // Q5_0 and IQ4_NL too: their codes are whole numbers
typedef Panel<8, false, STORED> PanelQ5_1;
typedef Panel<4, true, STORED> PanelQ4_K;
typedef Panel<8, true, STORED> PanelQ5_K;
typedef Panel<8, true, NONE, 2> PanelQ6_K;

// Calls `use` with the panel type of a format; false for one that has none.
template <class Use>
static inline bool with_panel(int64_t format, Use use) {
  switch (format) {
    case Q4_0: use(PanelQ4_0()); return true;
    case Q4_1: use(PanelQ4_1()); return true;
    case Q5_0: case IQ4_NL: case Q8_0: use(PanelQ8_0()); return true;
    case Q5_1: use(PanelQ5_1()); return true;
    case Q4_K: use(PanelQ4_K()); return true;
    case Q5_K: use(PanelQ5_K()); return true;
    case Q6_K: use(PanelQ6_K()); return true;
  }
  return false;
}

// sums[t][r] = sum over a block's columns (of its part) of code(row r) * x(t): whole numbers, so exact.
#if defined(__AVX2__)
#if defined(__AVXVNNI__)
#define DOT_U8_S8(sum, u, s) _mm256_dpbusd_avx_epi32(sum, u, s)
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DOT_U8_S8(sum, u, s) _mm256_dpbusd_epi32(sum, u, s)
#endif

static inline __m256i broadcast4(const int8_t* x) {
  int32_t word;
  memcpy(&word, x, 4);
  return _mm256_set1_epi32(word);
}

template <int BITS, int PARTS, int T>
static inline void dots(const uint8_t* codes, const int8_t* x, int64_t stride, f32x8 sums[T]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[T];
  for (int t = 0; t < T; t++) total[t] = _mm256_setzero_si256();
  if (BITS == 4) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int g = 0; g < 4; g++) {
      __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * g));
      __m256i low = _mm256_and_si256(both, mask), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
      for (int t = 0; t < T; t++) {
        const int8_t* at = x + t * stride + 4 * g;
#ifdef DOT_U8_S8
        total[t] = DOT_U8_S8(total[t], low, broadcast4(at));
        total[t] = DOT_U8_S8(total[t], high, broadcast4(at + 16));
#else  // 16 bits hold eight sums of two: 8 * 2 * 15 * 127 = 30480
        __m256i pair = _mm256_add_epi16(_mm256_maddubs_epi16(low, broadcast4(at)),
                                        _mm256_maddubs_epi16(high, broadcast4(at + 16)));
        total[t] = _mm256_add_epi16(total[t], pair);
        asm("" : "+x"(total[t]));  // GCC would put off the sums, and run out of registers: a fifth slower
#endif
      }
    }
  } else {
    for (int g = 0; g < 8 / PARTS; g++) {  // |w| * (x with the sign of w), since one factor must have no sign
      __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * g)), size = _mm256_abs_epi8(w);
      for (int t = 0; t < T; t++) {
        __m256i signed_x = _mm256_sign_epi8(broadcast4(x + t * stride + 4 * g), w);
#ifdef DOT_U8_S8
        total[t] = DOT_U8_S8(total[t], size, signed_x);
#else  // 16 bits hold one sum of two: 2 * 128 * 127 = 32512
        total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_x), ones));
#endif
      }
    }
  }
  for (int t = 0; t < T; t++) {
#ifndef DOT_U8_S8
    if (BITS == 4) total[t] = _mm256_madd_epi16(total[t], ones);
#endif
    sums[t] = (f32x8)_mm256_cvtepi32_ps(total[t]);
  }
}
#else
template <int BITS, int PARTS, int T>
static inline void dots(const uint8_t* codes, const int8_t* x, int64_t stride, f32x8 sums[T]) {
  for (int t = 0; t < T; t++) {
    const int8_t* at = x + t * stride;
    i32x8 total = {};
    for (int g = 0; g < BITS / PARTS; g++)
      for (int r = 0; r < 8; r++)
        for (int c = 0; c < 4; c++) {
          uint8_t code = codes[32 * g + 4 * r + c];
          total[r] += BITS == 8 ? int8_t(code) * at[4 * g + c]
                                : (code & 15) * at[4 * g + c] + (code >> 4) * at[4 * g + c + 16];
        }
    sums[t] = __builtin_convertvector(total, f32x8);
  }
}
#endif

static const int64_t AHEAD = 2048;  // bytes to ask memory for in advance: a fifth faster where one row reads all weights

// One panel times T rows of x: out[t] holds the eight outputs of row `first + t`.
template <class P, int T>
static inline void panel_rows(const uint8_t* panel, const Rows& x, int64_t first, f32x8 out[T]) {
  int64_t blocks = x.blocks();
  const int8_t* q = x.q + first * x.width;
  const float *d = x.d + first * blocks, *s = x.s + first * blocks;
  f32x8 total[T];
  for (int t = 0; t < T; t++) total[t] = splat(0);
  for (int64_t b = 0; b < blocks; b++, panel += P::bytes) {
    if (T == 1)
      for (int64_t ahead = 0; ahead < P::bytes; ahead += 64) __builtin_prefetch(panel + AHEAD + ahead);
    for (int part = 0; part < P::parts; part++) {
      const int columns = BLOCK / P::parts;
      f32x8 sums[T], scale = P::scales(panel + part * P::scale_bytes);
      f32x8 minimum = P::minimum == STORED ? P::scales(panel + P::scale_bytes) : scale * -8.0f;
      dots<P::bits, P::parts, T>(panel + P::header + part * 8 * columns, q + b * BLOCK + part * columns, x.width, sums);
      for (int t = 0; t < T; t++) {
        total[t] = multiply_add(sums[t], scale * d[t * blocks + b], total[t]);
        if (P::minimum != NONE) total[t] = multiply_add(minimum, splat(s[t * blocks + b]), total[t]);
      }
    }
  }
  for (int t = 0; t < T; t++) out[t] = total[t];
}
