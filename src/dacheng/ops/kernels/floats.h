// Products with float32 weights as they lie, row behind row: nothing is copied, nothing rounded. Made for few rows of x,
// where what counts is that the weights come by once.
#pragma once
#include "linear.h"

// GCC would read the rows of W from the cache again for each row of x: a third more loads than there is room for.
static inline void keep_in_register(f32x8& v) {
#if defined(__AVX2__)
  asm("" : "+x"(v));
#endif
}

// The sums of T rows of x with N rows of W, each in one register and in one order, so that a number comes out the same
// whatever T and N are. AHEAD: the N rows of W behind these are asked for meanwhile.
template <int T, int N, bool AHEAD>
static inline void dot_rows(const float* x, const float* w, int64_t in, f32x8* total) {
  for (int i = 0; i < T * N; i++) total[i] = splat(0);
  for (int64_t line = 0; line < in; line += 16) {
    if (AHEAD)
      for (int n = 0; n < N; n++) __builtin_prefetch(w + (N + n) * in + line);
    for (int64_t k = line; k < line + 16; k += 8) {
      f32x8 column[N];
      for (int n = 0; n < N; n++) column[n] = load(w + n * in + k), keep_in_register(column[n]);
      for (int t = 0; t < T; t++) {
        f32x8 row = load(x + t * in + k);
        keep_in_register(row);
        for (int n = 0; n < N; n++) total[t * N + n] = multiply_add(row, column[n], total[t * N + n]);
      }
    }
  }
}

template <int T, int N, bool AHEAD>
static inline void put_dots(const Product& to, const float* x, int64_t row, int64_t column) {
  const Linear& w = *to.w;
  f32x8 total[T * N + 7];
  for (int i = T * N; i < T * N + 7; i++) total[i] = splat(0);
  dot_rows<T, N, AHEAD>(x + row * w.in, reinterpret_cast<const float*>(w.panels) + column * w.in, w.in, total);
  float out[(T * N + 7) / 8 * 8];
  for (int i = 0; i < T * N; i += 8) store(out + i, sums(total + i));
  for (int t = 0; t < T; t++) {
    float* y = to.y + (row + t) * to.stride + column;
    for (int n = 0; n < N; n++) y[n] = (to.add ? y[n] : 0) + (out[t * N + n] + (w.bias ? w.bias[column + n] : 0));
  }
}

// T rows times columns [begin, end) of y.
template <int T, int N>
static inline void put_columns(const Product& to, const float* x, int64_t row, int64_t begin, int64_t end, bool first) {
  int64_t c = begin;
  for (; c + N <= end; c += N) first ? put_dots<T, N, true>(to, x, row, c) : put_dots<T, N, false>(to, x, row, c);
  for (; c < end; c++) put_dots<T, 1, false>(to, x, row, c);
}

// Rows [row, stop) times columns [begin, end): a few columns' weights stay in the first cache while the rows go by.
static inline void multiply_floats(const Product& to, const Rows& x, int64_t begin, int64_t end, int64_t row, int64_t stop) {
  const int64_t COLUMNS = 12;
  for (int64_t c = begin; c < end; c += COLUMNS) {
    int64_t last = c + COLUMNS < end ? c + COLUMNS : end, r = row;
    for (; r + 4 <= stop; r += 4) put_columns<4, 3>(to, x.f, r, c, last, r == row);
    if (stop - r >= 2) put_columns<2, 4>(to, x.f, r, c, last, r == row), r += 2;
    if (stop > r) put_columns<1, 6>(to, x.f, r, c, last, r == row);
  }
}
