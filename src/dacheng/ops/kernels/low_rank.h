// What an adapter adds to a product: y += B (A x), for rows that go through the same one.
#pragma once
#include "vector.h"

static const int64_t MOST_RANK = 1024;
static const int64_t ROWS_OF_PRODUCT = 4;  // rows that share a reading of A and B

struct LowRank {
  const float *a, *b;  // (rank, in); (rank, out), with the scale in it
  int64_t rank;        // 0: the adapter leaves this map alone
};

// low (T, rank) = x Aᵀ, rows [j, j + J) of A. Each sum has one order, whatever T and J: a row comes out the same in every
// batch.
template <int T, int J>
inline void project(const LowRank& w, int64_t j, int64_t in, const float* x, float* low) {
  f32x8 total[T][J];
  for (int t = 0; t < T; t++)
    for (int k = 0; k < J; k++) total[t][k] = splat(0);
  for (int64_t i = 0; i < in; i += 8) {
    f32x8 row[T];
    for (int t = 0; t < T; t++) row[t] = load(x + t * in + i);
    for (int k = 0; k < J; k++) {
      f32x8 a = load(w.a + (j + k) * in + i);
      for (int t = 0; t < T; t++) total[t][k] = multiply_add(row[t], a, total[t][k]);
    }
  }
  for (int t = 0; t < T; t++)
    for (int k = 0; k < J; k++) low[t * w.rank + j + k] = sum(total[t][k]);
}

// y (T, out) += low (T, rank) B, columns [o, o + 8 V).
template <int T, int V>
inline void expand(const LowRank& w, int64_t o, int64_t out, const float* low, float* y, int64_t stride) {
  f32x8 total[T][V];
  for (int t = 0; t < T; t++)
    for (int v = 0; v < V; v++) total[t][v] = load(y + t * stride + o + 8 * v);
  for (int64_t j = 0; j < w.rank; j++)
    for (int v = 0; v < V; v++) {
      f32x8 b = load(w.b + j * out + o + 8 * v);
      for (int t = 0; t < T; t++) total[t][v] = multiply_add(splat(low[t * w.rank + j]), b, total[t][v]);
    }
  for (int t = 0; t < T; t++)
    for (int v = 0; v < V; v++) store(y + t * stride + o + 8 * v, total[t][v]);
}

// x (T, in) one row behind the other; rows of y are `stride` apart. in and out are multiples of 8.
template <int T>
inline void add_low_rank(const LowRank& w, int64_t in, int64_t out, const float* x, float* y, int64_t stride) {
  float low[T * MOST_RANK];
  int64_t j = 0, o = 0;
  for (; j + 2 <= w.rank; j += 2) project<T, 2>(w, j, in, x, low);
  if (j < w.rank) project<T, 1>(w, j, in, x, low);
  for (; o + 16 <= out; o += 16) expand<T, 2>(w, o, out, low, y, stride);
  if (o < out) expand<T, 1>(w, o, out, low, y, stride);
}
