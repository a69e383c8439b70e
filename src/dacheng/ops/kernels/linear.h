// y = x W^T (+ bias), or y += x W^T, for W in panels and x in rows of eight-bit numbers.
#pragma once
#include "activations.h"

struct Linear {
  const uint8_t* panels;  // null: there is no such matrix
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
