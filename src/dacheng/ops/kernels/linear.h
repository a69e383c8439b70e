// y = x W^T (+ bias), or y += x W^T, for W in panels and x in rows of eight-bit numbers, or both in float32.
#pragma once
#include "activations.h"

// ggml's ids
enum Format : int64_t { F32 = 0, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20 };

struct Linear {
  const uint8_t* panels;  // null: there is no such matrix; of F32: (out, in) as it is
  const float* bias;      // or null
  int64_t format, out, in;
};

struct Product {
  const Linear* w;
  float* y;
  int64_t stride;  // floats from a row of y to the next
  bool add;
};

// Eight outputs are a panel: how many the products have together, and those of [begin, end) computed (linear.cpp).
int64_t count_panels(const Product* products, int count);
void multiply(const Product* products, int count, const Rows& x, int64_t begin, int64_t end);
