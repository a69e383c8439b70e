// One step of a Llama-like decoder (norms before each branch, perhaps behind it too, grouped heads, rotary positions,
// windows, SwiGLU or GeGLU) over packed weights, or float32 ones, as one job: what is computed between two products is
// shared out by rows, the products by panels.
#include "attention.h"
#include "linear.h"
#include "low_rank.h"
#include "threads.h"

#include <algorithm>
#include <vector>

struct Layer {
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;  // the last two (E,) or null
  const float *attention_post_norm, *mlp_post_norm;          // of what a branch gives, or null
  Linear q, k, v, o, gate, up, down;
  int64_t window;            // positions that a row looks back over, its own among them; 0: all
  int64_t rotation, tables;  // 0 or 1: which of the step's
};

struct Decoder {
  int64_t layers, width, heads, kv_heads, head_width, mlp_width, rotated, interleaved, gelu;
  float eps, scale;
  const float* norm;
  Linear head;
  const Layer* layer;
};

// The tokens of a step. A row attends to positions 0 to attended - 1 of its text, its own among them.
struct Step {
  int64_t rows;
  float* x;                          // (rows, D): embeddings; hidden states after the last norm on return
  const float *cosine[2], *sine[2];  // (rows, rotated / 2)
  const int64_t *texts, *places, *attended;  // (rows,): whose, the position it is written to, how many it looks at
  Cache cache[2];
  void *const *k, *const *v;  // by layer, float32, or bfloat16 where `narrow`
  int64_t narrow;
  const int64_t* adapter;            // (rows,): which of `low_rank` a row goes through, or -1; null: no row has one
  const LowRank* const* low_rank;    // of each adapter, (layers, MAPS)
  int64_t logit_rows;
  const int64_t* wanted;  // (logit_rows,)
  float* logits;          // (logit_rows, V)
  int64_t threads;
};

namespace {

enum Map { Q, K, V, O, GATE, UP, DOWN, MAPS };

// Memory of a step, kept from call to call.
struct Scratch {
  std::vector<int8_t> codes;
  std::vector<float> scales, floats, q, k, v, attended, gate, up, parts, branch;
  std::vector<int64_t> tiles;  // rows that look at the same keys are taken together: where each tile begins, and the end

  // `as_they_are`: where products take them without rounding, or null.
  Rows rows(int64_t rows, int64_t width, float* as_they_are) {
    int64_t blocks = rows * width / BLOCK;
    return {rows, width, codes.data(), scales.data(), scales.data() + blocks, as_they_are};
  }
};

void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* y) {
  f32x8 squares = splat(0);
  for (int64_t i = 0; i < width; i += 8) squares += load(x + i) * load(x + i);
  float factor = 1.0f / std::sqrt(sum(squares) / width + eps);
  for (int64_t i = 0; i < width; i += 8) store(y + i, load(x + i) * factor * load(weight + i));
}

void rotate(float* x, const float* cosine, const float* sine, int64_t rotated, bool interleaved) {
  int64_t half = rotated / 2;
  for (int64_t i = 0; i < half; i++) {
    float *a = x + (interleaved ? 2 * i : i), *b = x + (interleaved ? 2 * i + 1 : i + half);
    float turned = *a * cosine[i] - *b * sine[i];
    *b = *b * cosine[i] + *a * sine[i];
    *a = turned;
  }
}

struct Pass {
  const Decoder& model;
  const Step& step;
  Scratch& scratch;
  int64_t spans, span;  // the positions of a row are split into so many parts, of so many positions

  // x += norm(branch), where a branch has a norm behind it; else its product has added it to x.
  void add_branch(const float* post_norm, int64_t begin, int64_t end) const {
    if (!post_norm) return;
    for (int64_t r = begin; r < end; r++) {
      float *x = step.x + r * model.width, *branch = scratch.branch.data() + r * model.width;
      rms_norm(branch, post_norm, model.width, model.eps, branch);
      for (int64_t i = 0; i < model.width; i += 8) store(x + i, load(x + i) + load(branch + i));
    }
  }

  // Where a product goes. With adapters in the step, what they add is there first: see `adapt`.
  Product begin_branch(const Linear& w, float* y) const { return {&w, y, w.out, step.adapter != nullptr}; }
  Product end_of_branch(const Linear& w, const float* post_norm) const {
    if (post_norm) return begin_branch(w, scratch.branch.data());
    return {&w, step.x, model.width, true};
  }

  // Calls work(r, count) for [begin, end) in runs of rows that go through the same adapter.
  template <class F>
  void runs(int64_t begin, int64_t end, const F& work) const {
    for (int64_t r = begin, count; r < end; r += count) {
      for (count = 1; count < ROWS_OF_PRODUCT && r + count < end; count++)
        if (step.adapter && step.adapter[r + count] != step.adapter[r]) break;
      work(r, count);
    }
  }

  // Lays down what the adapter of rows [r, r + count) adds to a product, before the product is added to it. x
  // (count, in): the rows as they were before they were rounded. Products that end a branch without a norm behind it add
  // to the residual stream; all others begin at zero.
  void adapt(int64_t layer, Map map, const Product& to, const float* x, int64_t r, int64_t count) const {
    if (!step.adapter) return;
    float* y = to.y + r * to.stride;
    if (to.y != step.x) std::fill(y, y + count * to.stride, 0.0f);
    if (step.adapter[r] < 0) return;
    const LowRank& w = step.low_rank[step.adapter[r]][layer * MAPS + map];
    int64_t t = 0;
    if (count == ROWS_OF_PRODUCT) add_low_rank<ROWS_OF_PRODUCT>(w, to.w->in, to.w->out, x, y, to.stride), t = count;
    for (; t < count; t++) add_low_rank<1>(w, to.w->in, to.w->out, x + t * to.w->in, y + t * to.stride, to.stride);
  }

  // x += norm(branch) of the branch before, then norm(x), rounded, and what adapters make of it: products[k] is of
  // the layer's map `first` + k.
  void norm_rows(const float* before, const float* weight, const Rows& to, int64_t layer, Map first,
                 const Product* products, int count, int64_t begin, int64_t end) const {
    std::vector<float> x(ROWS_OF_PRODUCT * model.width);
    add_branch(before, begin, end);
    runs(begin, end, [&](int64_t r, int64_t rows) {
      for (int64_t t = 0; t < rows; t++) {
        rms_norm(step.x + (r + t) * model.width, weight, model.width, model.eps, x.data() + t * model.width);
        put_row(x.data() + t * model.width, to, r + t);
      }
      for (int k = 0; k < count; k++) adapt(layer, Map(first + k), products[k], x.data(), r, rows);
    });
  }

  // Rotates the queries in place, and the keys on their way into the cache.
  template <class T>
  void place_rows(const Layer& layer, T* k_cache, T* v_cache, int64_t begin, int64_t end) const {
    int64_t E = model.head_width, half = model.rotated / 2;
    for (int64_t item = begin; item < end; item++) {
      int64_t r = item / (model.heads + model.kv_heads), h = item % (model.heads + model.kv_heads) - model.heads;
      const float *cosine = step.cosine[layer.rotation] + r * half, *sine = step.sine[layer.rotation] + r * half;
      if (h < 0) {
        float* q = scratch.q.data() + (r * model.heads + h + model.heads) * E;
        if (layer.q_norm) rms_norm(q, layer.q_norm, E, model.eps, q);
        rotate(q, cosine, sine, model.rotated, model.interleaved);
      } else {
        int64_t at = step.cache[layer.tables].offset(step.texts[r], h, step.places[r]);
        float* k = scratch.k.data() + (r * model.kv_heads + h) * E;
        if (layer.k_norm) rms_norm(k, layer.k_norm, E, model.eps, k);
        rotate(k, cosine, sine, model.rotated, model.interleaved);
        copy(k, E, k_cache + at);
        copy(scratch.v.data() + (r * model.kv_heads + h) * E, E, v_cache + at);
      }
    }
  }

  template <int E, class T>
  void attend_heads(const Layer& layer, const T* k, const T* v, int64_t begin, int64_t end) const {
    int64_t group = model.heads / model.kv_heads, floats = group * part_floats(E);
    for (int64_t item = begin; item < end; item++) {
      int64_t first = item % spans * span, h = item / spans % model.kv_heads, t = item / spans / model.kv_heads;
      int64_t r = scratch.tiles[t], rows = scratch.tiles[t + 1] - r;
      Queries queries = {scratch.q.data() + (r * model.heads + h * group) * E, rows, group, model.heads * E,
                         step.attended + r, layer.window, scratch.parts.data() + ((r * model.kv_heads + h) * spans + item % spans) * floats,
                         model.kv_heads * spans * floats};
      attend<E, T>(queries, model.scale, k, v, step.cache[layer.tables], step.texts[r], h, first, first + span);
    }
  }

  template <class T>
  void attend_rows(const Layer& layer, const T* k, const T* v, int64_t begin, int64_t end) const {
    switch (model.head_width) {
      case 32: return attend_heads<32, T>(layer, k, v, begin, end);
      case 64: return attend_heads<64, T>(layer, k, v, begin, end);
      case 80: return attend_heads<80, T>(layer, k, v, begin, end);
      case 96: return attend_heads<96, T>(layer, k, v, begin, end);
      case 128: return attend_heads<128, T>(layer, k, v, begin, end);
      case 256: return attend_heads<256, T>(layer, k, v, begin, end);
    }
  }

  // The parts of each head joined, and the row of all heads as its product takes it.
  void join_rows(const Rows& to, int64_t layer, const Product& o, int64_t begin, int64_t end) const {
    int64_t E = model.head_width, group = model.heads / model.kv_heads, floats = part_floats(E);
    for (int64_t r = begin; r < end; r++) {
      float* out = scratch.attended.data() + r * model.heads * E;
      for (int64_t h = 0; h < model.heads; h++) {
        int64_t first = (r * model.kv_heads + h / group) * spans * group + h % group;
        join_parts(scratch.parts.data() + first * floats, spans, group * floats, E, out + h * E);
      }
      put_row(out, to, r);
    }
    const float* x = scratch.attended.data();
    runs(begin, end, [&](int64_t r, int64_t rows) { adapt(layer, O, o, x + r * model.heads * E, r, rows); });
  }

  void gate_blocks(const Rows& to, int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; b++) {
      float *gate = scratch.gate.data() + b * BLOCK, *up = scratch.up.data() + b * BLOCK;
      for (int i = 0; i < BLOCK; i += 8) {
        f32x8 g = load(gate + i), s = g;  // silu(g) = g sigmoid(g); gelu's approximation with tanh is one too
        if (model.gelu) s = (g + g * g * g * 0.044715f) * 1.5957691216057308f;
        store(gate + i, g / (exponential(-s) + 1.0f) * load(up + i));
      }
      if (!to.f) quantize_block(gate, to.q + b * BLOCK, to.d + b, to.s + b);
    }
  }

  // Rows that a product takes, in `place` where the weights are float32.
  Rows rows(int64_t n, int64_t width, std::vector<float>& place) const {
    return scratch.rows(n, width, model.head.format == F32 ? place.data() : nullptr);
  }

  void products(Worker& worker, const Product* products, int count, const Rows& x) const {
    worker.phase(count_panels(products, count), 4, [=](int64_t begin, int64_t end) { multiply(products, count, x, begin, end); });
  }

  template <class T>
  void attention(const Layer& layer, T* k, T* v, Worker& worker) const {
    int64_t all_heads = step.rows * (model.heads + model.kv_heads), parts = (int64_t(scratch.tiles.size()) - 1) * model.kv_heads * spans;
    worker.phase(all_heads, 16, [&](int64_t begin, int64_t end) { place_rows(layer, k, v, begin, end); });
    worker.phase(parts, 1, [&](int64_t begin, int64_t end) { attend_rows(layer, k, v, begin, end); });
  }

  void run_layer(int64_t i, Worker& worker) const {
    const Layer& layer = model.layer[i];
    const float* before = i > 0 ? model.layer[i - 1].mlp_post_norm : nullptr;
    int64_t n = step.rows, q_width = model.heads * model.head_width;
    Rows narrow = rows(n, model.width, scratch.floats), heads = rows(n, q_width, scratch.attended);
    Rows wide = rows(n, model.mlp_width, scratch.gate);
    Product qkv[] = {begin_branch(layer.q, scratch.q.data()), begin_branch(layer.k, scratch.k.data()),
                     begin_branch(layer.v, scratch.v.data())};
    worker.phase(n, 1, [&](int64_t begin, int64_t end) {
      norm_rows(before, layer.attention_norm, narrow, i, Q, qkv, 3, begin, end);
    });
    products(worker, qkv, 3, narrow);
    if (step.narrow)
      attention(layer, static_cast<uint16_t*>(step.k[i]), static_cast<uint16_t*>(step.v[i]), worker);
    else
      attention(layer, static_cast<float*>(step.k[i]), static_cast<float*>(step.v[i]), worker);
    Product o = end_of_branch(layer.o, layer.attention_post_norm);
    worker.phase(n, 1, [&](int64_t begin, int64_t end) { join_rows(heads, i, o, begin, end); });
    products(worker, &o, 1, heads);
    Product gate_up[] = {begin_branch(layer.gate, scratch.gate.data()), begin_branch(layer.up, scratch.up.data())};
    worker.phase(n, 1, [&](int64_t begin, int64_t end) {
      norm_rows(layer.attention_post_norm, layer.mlp_norm, narrow, i, GATE, gate_up, 2, begin, end);
    });
    products(worker, gate_up, 2, narrow);
    worker.phase(n * model.mlp_width / BLOCK, 24, [&](int64_t begin, int64_t end) { gate_blocks(wide, begin, end); });
    Product down = end_of_branch(layer.down, layer.mlp_post_norm);
    if (step.adapter) {
      const float* x = scratch.gate.data();
      worker.phase(n, 1, [&](int64_t begin, int64_t end) {
        runs(begin, end, [&](int64_t r, int64_t rows) { adapt(i, DOWN, down, x + r * model.mlp_width, r, rows); });
      });
    }
    products(worker, &down, 1, wide);
  }

  void run_head(Worker& worker) const {
    int64_t width = model.width;
    worker.phase(step.rows, 4, [&](int64_t begin, int64_t end) {
      add_branch(model.layer[model.layers - 1].mlp_post_norm, begin, end);
      for (int64_t r = begin; r < end; r++) rms_norm(step.x + r * width, model.norm, width, model.eps, step.x + r * width);
    });
    Rows wanted = rows(step.logit_rows, width, scratch.floats);
    worker.phase(step.logit_rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) put_row(step.x + step.wanted[r] * width, wanted, r);
    });
    Product head = {&model.head, step.logits, model.head.out, false};
    products(worker, &head, 1, wanted);
  }
};

static const int64_t ROWS_OF_TILE = 16;
static const int64_t MOST_PARTS = 1 << 24;  // floats
static const int64_t PHASES_OF_LAYER = 11, PHASES_OF_HEAD = 3;

int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

extern "C" void dacheng_decoder_step(const Decoder* model, const Step* step) {
  static thread_local Scratch scratch;
  const Decoder& m = *model;
  int64_t n = step->rows, q_width = m.heads * m.head_width, kv_width = m.kv_heads * m.head_width;
  int64_t widest = most(most(m.width, q_width), m.mlp_width), longest = 0;
  for (int64_t r = 0; r < n; r++) longest = most(longest, step->attended[r]);
  // Parts of fixed length, so that a row comes out the same in every batch; and all in one where they would be many.
  int64_t span = 128, spans = most(1, (longest + span - 1) / span);
  if (n * m.heads * spans * part_floats(m.head_width) > MOST_PARTS) span = longest, spans = 1;
  scratch.codes.resize(n * widest);
  scratch.scales.resize(2 * n * widest / BLOCK);
  scratch.floats.resize(m.head.format == F32 ? n * m.width : 0);
  scratch.q.resize(n * q_width);
  scratch.attended.resize(n * q_width);
  scratch.k.resize(n * kv_width);
  scratch.v.resize(n * kv_width);
  scratch.branch.resize(model->layer[0].mlp_post_norm ? n * m.width : 0);
  scratch.gate.resize(n * m.mlp_width);
  scratch.up.resize(n * m.mlp_width);
  scratch.parts.resize(n * m.heads * spans * part_floats(m.head_width));
  scratch.tiles.clear();
  for (int64_t r = 0; r < n; r++)
    if (r == 0 || step->texts[r] != step->texts[r - 1] || r - scratch.tiles.back() == ROWS_OF_TILE) scratch.tiles.push_back(r);
  scratch.tiles.push_back(n);
  Pass pass = {m, *step, scratch, spans, span};
  run_job(step->threads, m.layers * PHASES_OF_LAYER + PHASES_OF_HEAD, [&](Worker& worker) {
    for (int64_t i = 0; i < m.layers; i++) pass.run_layer(i, worker);
    pass.run_head(worker);
  });
}
