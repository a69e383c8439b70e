// Blocks as GGUF stores them -> panels. Layouts of the blocks: ggml-common.h of llama.cpp.
#pragma once
#include "panels.h"

// 32 values of a row: value = scale * code + minimum. The scales as float32, or as the 16 bits that the file has.
struct Codes {
  int8_t codes[32];
  uint16_t half_scale, half_minimum;
  float scale, minimum;  // `minimum`: the scale of the second half, where a block has two
};

static inline uint16_t read_half(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return h;
}

static inline int64_t row_bytes(int64_t format, int64_t in) {
  switch (format) {
    case Q4_0: case IQ4_NL: return in / 32 * 18;
    case Q4_1: return in / 32 * 20;
    case Q5_0: return in / 32 * 22;
    case Q5_1: return in / 32 * 24;
    case Q8_0: return in / 32 * 34;
    case Q4_K: return in / 256 * 144;
    case Q5_K: return in / 256 * 176;
    case Q6_K: return in / 256 * 210;
  }
  return 0;
}

static inline void read_nibbles(const uint8_t* p, int8_t* codes) {
  for (int i = 0; i < 16; i++) codes[i] = p[i] & 15, codes[i + 16] = p[i] >> 4;
}

static inline void add_fifth_bits(const uint8_t* p, int8_t* codes) {
  uint32_t bits;
  memcpy(&bits, p, 4);
  for (int i = 0; i < 32; i++) codes[i] |= ((bits >> i) & 1) << 4;
}

// Part `part` (of eight) of a super-block of 256 values: get_scale_min_k4 and dequantize_row_q4_K, q5_K.
static inline void read_k(const uint8_t* p, int part, bool fifth, Codes& to) {
  const uint8_t *s = p + 4, *high = p + 16, *low = p + (fifth ? 48 : 16) + 32 * (part / 2);
  int scale = part < 4 ? s[part] & 63 : (s[part + 4] & 15) | ((s[part - 4] >> 6) << 4);
  int minimum = part < 4 ? s[part + 4] & 63 : (s[part + 4] >> 4) | ((s[part] >> 6) << 4);
  to.scale = half_to_float(read_half(p)) * scale;
  to.minimum = -(half_to_float(read_half(p + 2)) * minimum);
  for (int i = 0; i < 32; i++) {
    to.codes[i] = part % 2 ? low[i] >> 4 : low[i] & 15;
    if (fifth) to.codes[i] |= ((high[i] >> part) & 1) << 4;
  }
}

// dequantize_row_q6_K: 16 values share a scale.
static inline void read_q6_k(const uint8_t* p, int part, Codes& to) {
  const uint8_t *low = p + 64 * (part / 4) + 32 * (part % 2), *high = p + 128 + 32 * (part / 4);
  const int8_t* scales = reinterpret_cast<const int8_t*>(p + 192) + 2 * part;
  float scale = half_to_float(read_half(p + 208));
  to.scale = scale * scales[0], to.minimum = scale * scales[1];
  for (int i = 0; i < 32; i++) {
    int nibble = part % 4 < 2 ? low[i] & 15 : low[i] >> 4, top = (high[i] >> (2 * (part % 4))) & 3;
    to.codes[i] = (nibble | top << 4) - 32;
  }
}

// Values 32 b to 32 b + 31 of the row at `row`.
static inline Codes read_block(int64_t format, const uint8_t* row, int64_t b) {
  static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  const uint8_t* p = row + row_bytes(format, b * BLOCK);
  Codes to = {};
  to.half_scale = read_half(p);
  switch (format) {
    case Q4_0: read_nibbles(p + 2, to.codes); break;
    case Q4_1: read_nibbles(p + 4, to.codes), to.half_minimum = read_half(p + 2); break;
    case Q5_0:
      read_nibbles(p + 6, to.codes), add_fifth_bits(p + 2, to.codes);
      for (int8_t& code : to.codes) code -= 16;
      break;
    case Q5_1: read_nibbles(p + 8, to.codes), add_fifth_bits(p + 4, to.codes), to.half_minimum = read_half(p + 2); break;
    case Q8_0: memcpy(to.codes, p + 2, 32); break;
    case IQ4_NL:
      read_nibbles(p + 2, to.codes);
      for (int8_t& code : to.codes) code = levels[code];
      break;
    case Q4_K: read_k(p, b % 8, false, to); break;
    case Q5_K: read_k(p, b % 8, true, to); break;
    case Q6_K: read_q6_k(p, b % 8, to); break;
  }
  return to;
}

template <class P>
static inline void write_block(const Codes& from, int r, uint8_t* block) {
  if (P::wide) {
    memcpy(block + 4 * r, &from.scale, 4);
    if (P::header > P::scale_bytes) memcpy(block + P::scale_bytes + 4 * r, &from.minimum, 4);
  } else {
    memcpy(block + 2 * r, &from.half_scale, 2);
    if (P::minimum == STORED) memcpy(block + P::scale_bytes + 2 * r, &from.half_minimum, 2);
  }
  uint8_t* codes = block + P::header;
  for (int c = 0; c < 4 * P::bits; c++) {
    uint8_t code = uint8_t(from.codes[c]);
    if (P::bits == 4) code |= uint8_t(from.codes[c + 16]) << 4;
    codes[32 * (c / 4) + 4 * r + c % 4] = code;
  }
}

// Panels [first, last) of a matrix (out, in); rows past the last are zeros.
static inline void pack(int64_t format, const uint8_t* rows, int64_t out, int64_t in, int64_t first, int64_t last, uint8_t* to) {
  int64_t blocks = in / BLOCK, stride = row_bytes(format, in);
  with_panel(format, [&](auto kind) {
    typedef decltype(kind) P;
    for (int64_t p = first; p < last; p++)
      for (int r = 0; r < 8; r++)
        for (int64_t b = 0; b < blocks; b++) {
          int64_t row = 8 * p + r;
          Codes codes = row < out ? read_block(format, rows + row * stride, b) : Codes();
          write_block<P>(codes, r, to + (p * blocks + b) * P::bytes);
        }
  });
}
