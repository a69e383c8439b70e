// The packed product, and its C interface.
#include "floats.h"
#include "linear.h"
#include "pack.h"
#include "panels.h"
#include "threads.h"

#include <vector>

namespace {

int64_t panel_count(int64_t out) { return (out + 7) / 8; }

int64_t panel_bytes(int64_t format, int64_t in) {
  int64_t bytes = 0;
  with_panel(format, [&](auto panel) { bytes = decltype(panel)::bytes * (in / BLOCK); });
  return bytes;
}

// The eight outputs of a panel, for each of T rows.
template <class P, int T>
inline void put_rows(const Product& to, const uint8_t* panel, int64_t column, const Rows& x, int64_t row) {
  f32x8 out[T];
  panel_rows<P, T>(panel, x, row, out);
  int64_t width = to.w->out - column < 8 ? to.w->out - column : 8;
  float* y = to.y + row * to.stride + column;
  for (int t = 0; t < T; t++, y += to.stride) {
    if (width == 8) {
      f32x8 bias = to.w->bias ? load(to.w->bias + column) : splat(0), before = to.add ? load(y) : splat(0);
      store(y, before + (out[t] + bias));
    } else {
      for (int64_t i = 0; i < width; i++) y[i] = (to.add ? y[i] : 0) + (out[t][i] + (to.w->bias ? to.w->bias[column + i] : 0));
    }
  }
}

// Panels [first, last) of one matrix times rows [row, stop): a panel stays in the first cache meanwhile.
void multiply_panels(const Product& to, const Rows& x, int64_t first, int64_t last, int64_t row, int64_t stop) {
  with_panel(to.w->format, [&](auto kind) {
    typedef decltype(kind) P;
    int64_t size = P::bytes * x.blocks();
    for (int64_t p = first; p < last; p++) {
      const uint8_t* panel = to.w->panels + p * size;
      int64_t r = row;
      for (; r + 4 <= stop; r += 4) put_rows<P, 4>(to, panel, 8 * p, x, r);
      if (stop - r >= 2) put_rows<P, 2>(to, panel, 8 * p, x, r), r += 2;
      if (stop > r) put_rows<P, 1>(to, panel, 8 * p, x, r);
    }
  });
}

const int64_t ROWS_IN_CACHE = 128;  // of x, beside a panel

}  // namespace

int64_t count_panels(const Product* products, int count) {
  int64_t total = 0;
  for (int i = 0; i < count; i++) total += panel_count(products[i].w->out);
  return total;
}

void multiply(const Product* products, int count, const Rows& x, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < x.rows; row += ROWS_IN_CACHE) {
    int64_t stop = row + ROWS_IN_CACHE < x.rows ? row + ROWS_IN_CACHE : x.rows, before = 0;
    for (int i = 0; i < count; i++) {
      int64_t here = panel_count(products[i].w->out);
      int64_t first = begin - before > 0 ? begin - before : 0, last = end - before < here ? end - before : here;
      if (first < last && products[i].w->format == F32) {
        int64_t out = products[i].w->out;
        multiply_floats(products[i], x, 8 * first, 8 * last < out ? 8 * last : out, row, stop);
      } else if (first < last) {
        multiply_panels(products[i], x, first, last, row, stop);
      }
      before += here;
    }
  }
}

extern "C" {

// Bytes of the panels of a matrix (out, in), or 0 for a format that has none.
int64_t dacheng_panel_bytes(int64_t format, int64_t out, int64_t in) {
  return in % BLOCK ? 0 : panel_count(out) * panel_bytes(format, in);
}

void dacheng_pack(int64_t format, const uint8_t* rows, int64_t out, int64_t in, uint8_t* panels, int64_t threads) {
  run_job(threads, 1, [&](Worker& worker) {
    worker.phase(panel_count(out), 1, [&](int64_t begin, int64_t end) { pack(format, rows, out, in, begin, end, panels); });
  });
}

// x (rows, in) -> y (rows, out), both contiguous.
void dacheng_linear(const Linear* w, const float* x, int64_t rows, float* y, int64_t threads) {
  static thread_local std::vector<int8_t> codes;  // kept from call to call
  static thread_local std::vector<float> scales;
  int64_t blocks = w->in / BLOCK;
  codes.resize(rows * w->in);
  scales.resize(2 * rows * blocks);
  Rows quantized = {rows, w->in, codes.data(), scales.data(), scales.data() + rows * blocks, nullptr};
  Product product = {w, y, w->out, false};
  run_job(threads, 2, [&](Worker& worker) {
    worker.phase(rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) quantize_row(x + row * w->in, quantized, row);
    });
    worker.phase(panel_count(w->out), 4, [&](int64_t begin, int64_t end) { multiply(&product, 1, quantized, begin, end); });
  });
}

// 1 where this machine runs what was compiled for it: asked in a process of its own before the library is used.
int64_t dacheng_self_test() {
  uint8_t row[18] = {0, 0x3c}, panels[PanelQ4_0::bytes];  // a scale of 1, and codes 0 to 15 twice: values -8 to 7
  for (int i = 0; i < 16; i++) row[2 + i] = uint8_t(17 * i);
  dacheng_pack(Q4_0, row, 1, 32, panels, 2);
  Linear w = {panels, nullptr, Q4_0, 1, 32};
  float x[32] = {}, y = 0;
  x[0] = 127, x[31] = 1;
  dacheng_linear(&w, x, 1, &y, 2);
  return y == -8 * 127 + 7;
}
}
