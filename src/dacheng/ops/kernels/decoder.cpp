// One step of a Llama-like decoder (pre-norm, grouped heads, rotary positions, SwiGLU) over packed weights, as one job:
// what is computed between two products is shared out by rows, the products by panels.
#include "attention.h"
#include "linear.h"
#include "threads.h"

#include <vector>

struct Layer {
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;  // the last two (E,) or null
  Linear q, k, v, o, gate, up, down;
};

struct Decoder {
  int64_t layers, width, heads, kv_heads, head_width, mlp_width, rotated, interleaved;
  float eps, scale;
  const float* norm;
  Linear head;
  const Layer* layer;
};

// The tokens of a step. A row attends to positions 0 to attended - 1 of its text, its own among them.
struct Step {
  int64_t rows;
  float* x;                          // (rows, D): embeddings; hidden states after the last norm on return
  const float *cosine, *sine;        // (rows, rotated / 2)
  const int64_t *texts, *places, *attended;  // (rows,): whose, the position it is written to, how many it looks at
  Cache cache;
  void *const *k, *const *v;  // by layer, float32, or bfloat16 where `narrow`
  int64_t narrow;
  int64_t logit_rows;
  const int64_t* wanted;  // (logit_rows,)
  float* logits;          // (logit_rows, V)
  int64_t threads;
};

namespace {

// Memory of a step, kept from call to call.
struct Scratch {
  std::vector<int8_t> codes;
  std::vector<float> scales, q, k, v, attended, gate, up, parts, wanted;

  Rows rows(int64_t rows, int64_t width) {
    int64_t blocks = rows * width / BLOCK;
    return {rows, width, codes.data(), scales.data(), scales.data() + blocks};
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

  void norm_rows(const float* weight, const Rows& to, int64_t begin, int64_t end) const {
    std::vector<float> row(model.width);
    for (int64_t r = begin; r < end; r++) {
      rms_norm(step.x + r * model.width, weight, model.width, model.eps, row.data());
      quantize_row(row.data(), to, r);
    }
  }

  // Rotates the queries in place, and the keys on their way into the cache.
  template <class T>
  void place_rows(const Layer& layer, T* k_cache, T* v_cache, int64_t begin, int64_t end) const {
    int64_t E = model.head_width, half = model.rotated / 2;
    for (int64_t item = begin; item < end; item++) {
      int64_t r = item / (model.heads + model.kv_heads), h = item % (model.heads + model.kv_heads) - model.heads;
      const float *cosine = step.cosine + r * half, *sine = step.sine + r * half;
      if (h < 0) {
        float* q = scratch.q.data() + (r * model.heads + h + model.heads) * E;
        if (layer.q_norm) rms_norm(q, layer.q_norm, E, model.eps, q);
        rotate(q, cosine, sine, model.rotated, model.interleaved);
      } else {
        int64_t at = step.cache.offset(step.texts[r], h, step.places[r]);
        float* k = scratch.k.data() + (r * model.kv_heads + h) * E;
        if (layer.k_norm) rms_norm(k, layer.k_norm, E, model.eps, k);
        rotate(k, cosine, sine, model.rotated, model.interleaved);
        copy(k, E, k_cache + at);
        copy(scratch.v.data() + (r * model.kv_heads + h) * E, E, v_cache + at);
      }
    }
  }

  template <int E, class T>
  void attend_heads(const T* k, const T* v, int64_t begin, int64_t end) const {
    int64_t group = model.heads / model.kv_heads;
    for (int64_t item = begin; item < end; item++) {
      int64_t first = item % spans * span, h = item / spans % model.kv_heads, r = item / spans / model.kv_heads;
      int64_t stop = first + span < step.attended[r] ? first + span : step.attended[r];
      attend<E, T>(scratch.q.data() + (r * model.heads + h * group) * E, int(group), model.scale, k, v, step.cache,
                step.texts[r], h, first, stop, scratch.parts.data() + item * group * part_floats(E));
    }
  }

  template <class T>
  void attend_rows(const T* k, const T* v, int64_t begin, int64_t end) const {
    switch (model.head_width) {
      case 32: return attend_heads<32, T>(k, v, begin, end);
      case 64: return attend_heads<64, T>(k, v, begin, end);
      case 80: return attend_heads<80, T>(k, v, begin, end);
      case 96: return attend_heads<96, T>(k, v, begin, end);
      case 128: return attend_heads<128, T>(k, v, begin, end);
      case 256: return attend_heads<256, T>(k, v, begin, end);
    }
  }

  // The parts of each head joined, and the row of all heads rounded.
  void join_rows(const Rows& to, int64_t begin, int64_t end) const {
    int64_t E = model.head_width, group = model.heads / model.kv_heads, floats = part_floats(E);
    for (int64_t r = begin; r < end; r++) {
      float* out = scratch.attended.data() + r * model.heads * E;
      for (int64_t h = 0; h < model.heads; h++) {
        int64_t first = (r * model.kv_heads + h / group) * spans * group + h % group;
        join_parts(scratch.parts.data() + first * floats, spans, group * floats, E, out + h * E);
      }
      quantize_row(out, to, r);
    }
  }

  void gate_blocks(const Rows& to, int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; b++) {
      float *gate = scratch.gate.data() + b * BLOCK, *up = scratch.up.data() + b * BLOCK;
      for (int i = 0; i < BLOCK; i += 8) {
        f32x8 g = load(gate + i);
        store(gate + i, g / (exponential(-g) + 1.0f) * load(up + i));
      }
      quantize_block(gate, to.q + b * BLOCK, to.d + b, to.s + b);
    }
  }

  void products(Worker& worker, const Product* products, int count, const Rows& x) const {
    worker.phase(count_panels(products, count), 4, [=](int64_t begin, int64_t end) { multiply(products, count, x, begin, end); });
  }

  template <class T>
  void attention(const Layer& layer, T* k, T* v, Worker& worker) const {
    int64_t all_heads = step.rows * (model.heads + model.kv_heads), parts = step.rows * model.kv_heads * spans;
    worker.phase(all_heads, 16, [&](int64_t begin, int64_t end) { place_rows(layer, k, v, begin, end); });
    worker.phase(parts, 1, [&](int64_t begin, int64_t end) { attend_rows(k, v, begin, end); });
  }

  void run_layer(int64_t i, Worker& worker) const {
    const Layer& layer = model.layer[i];
    int64_t n = step.rows, q_width = model.heads * model.head_width, kv_width = model.kv_heads * model.head_width;
    Rows narrow = scratch.rows(n, model.width), heads = scratch.rows(n, q_width), wide = scratch.rows(n, model.mlp_width);
    worker.phase(n, 1, [&](int64_t begin, int64_t end) { norm_rows(layer.attention_norm, narrow, begin, end); });
    Product qkv[] = {{&layer.q, scratch.q.data(), q_width, false},
                     {&layer.k, scratch.k.data(), kv_width, false},
                     {&layer.v, scratch.v.data(), kv_width, false}};
    products(worker, qkv, 3, narrow);
    if (step.narrow)
      attention(layer, static_cast<uint16_t*>(step.k[i]), static_cast<uint16_t*>(step.v[i]), worker);
    else
      attention(layer, static_cast<float*>(step.k[i]), static_cast<float*>(step.v[i]), worker);
    worker.phase(n, 1, [&](int64_t begin, int64_t end) { join_rows(heads, begin, end); });
    Product o = {&layer.o, step.x, model.width, true};
    products(worker, &o, 1, heads);
    worker.phase(n, 1, [&](int64_t begin, int64_t end) { norm_rows(layer.mlp_norm, narrow, begin, end); });
    Product gate_up[] = {{&layer.gate, scratch.gate.data(), model.mlp_width, false},
                         {&layer.up, scratch.up.data(), model.mlp_width, false}};
    products(worker, gate_up, 2, narrow);
    worker.phase(n * model.mlp_width / BLOCK, 24, [&](int64_t begin, int64_t end) { gate_blocks(wide, begin, end); });
    Product down = {&layer.down, step.x, model.width, true};
    products(worker, &down, 1, wide);
  }

  void run_head(Worker& worker) const {
    int64_t width = model.width;
    worker.phase(step.rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) rms_norm(step.x + r * width, model.norm, width, model.eps, step.x + r * width);
    });
    Rows rows = scratch.rows(step.logit_rows, width);
    worker.phase(step.logit_rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) quantize_row(step.x + step.wanted[r] * width, rows, r);
    });
    Product head = {&model.head, step.logits, model.head.out, false};
    products(worker, &head, 1, rows);
  }
};

static const int64_t MOST_PARTS = 1 << 24;  // floats
static const int64_t PHASES_OF_LAYER = 10, PHASES_OF_HEAD = 3;

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
  scratch.q.resize(n * q_width);
  scratch.attended.resize(n * q_width);
  scratch.k.resize(n * kv_width);
  scratch.v.resize(n * kv_width);
  scratch.gate.resize(n * m.mlp_width);
  scratch.up.resize(n * m.mlp_width);
  scratch.parts.resize(n * m.heads * spans * part_floats(m.head_width));
  Pass pass = {m, *step, scratch, spans, span};
  run_job(step->threads, m.layers * PHASES_OF_LAYER + PHASES_OF_HEAD, [&](Worker& worker) {
    for (int64_t i = 0; i < m.layers; i++) pass.run_layer(i, worker);
    pass.run_head(worker);
  });
}
