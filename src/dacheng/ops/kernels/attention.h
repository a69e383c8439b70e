// Attention of one query over keys and values in a cache, a part of the positions at a time (Dao et al. 2022, flash
// attention; Dao et al. 2023, flash decoding: parts of one text are shared out, and joined by `join_parts`).
#pragma once
#include "vector.h"

// Where a layer's keys and values lie: those of position p of a text are in the block table[p / block_tokens], at
// k + block * block_stride + head * head_stride + (p % block_tokens) * token_stride. Strides in numbers.
struct Cache {
  int64_t block_tokens, block_stride, head_stride, token_stride;
  const int64_t* tables;  // (texts, table_width)
  int64_t table_width;

  int64_t offset(int64_t text, int64_t head, int64_t position) const {
    int64_t block = tables[text * table_width + position / block_tokens];
    return block * block_stride + head * head_stride + position % block_tokens * token_stride;
  }
};

static const int64_t KEYS = 64;  // whose scores are held at a time
static const int MAX_GROUP = 16;  // query heads that share a key

// What came of a part: the largest score, the sum of e^(score - largest), and the values weighted so: (E,).
static inline int64_t part_floats(int64_t head_width) { return head_width + 2; }

// q (group, E) over positions [first, stop) -> `group` parts.
template <int E, class T>
static void attend(const float* q, int group, float scale, const T* k, const T* v, const Cache& cache, int64_t text,
                   int64_t head, int64_t first, int64_t stop, float* parts) {
  float scores[MAX_GROUP][KEYS];
  for (int g = 0; g < group; g++) {
    parts[g * part_floats(E)] = -INFINITY;
    memset(parts + g * part_floats(E) + 1, 0, sizeof(float) * (E + 1));
  }
  while (first < stop) {
    int64_t in_block = cache.block_tokens - first % cache.block_tokens, n = stop - first;
    if (n > in_block) n = in_block;
    if (n > KEYS) n = KEYS;
    int64_t at = cache.offset(text, head, first);
    for (int64_t t = 0; t < n; t++) {
      const T* key = k + at + t * cache.token_stride;
      for (int g = 0; g < group; g++) {
        f32x8 dot = load(key) * load(q + g * E);
        for (int e = 8; e < E; e += 8) dot += load(key + e) * load(q + g * E + e);
        scores[g][t] = sum(dot) * scale;
      }
    }
    for (int g = 0; g < group; g++) {
      float *part = parts + g * part_floats(E), *out = part + 2, *score = scores[g];
      for (int64_t t = n; t % 8; t++) score[t] = -INFINITY;
      f32x8 highest = splat(part[0]), total = splat(0);
      for (int64_t t = 0; t < n; t += 8) highest = larger(load(score + t), highest);
      float top = largest(highest), shrink = part[0] == top ? 1.0f : std::exp(part[0] - top);
      for (int64_t t = 0; t < n; t += 8) {
        f32x8 p = exponential(load(score + t) - top);
        if (t + 8 > n)
          for (int i = n - t; i < 8; i++) p[i] = 0;
        store(score + t, p);
        total += p;
      }
      f32x8 values[E / 8];
      for (int e = 0; e < E / 8; e++) values[e] = load(out + 8 * e) * shrink;
      for (int64_t t = 0; t < n; t++) {
        const T* value = v + at + t * cache.token_stride;
        for (int e = 0; e < E / 8; e++) values[e] += load(value + 8 * e) * score[t];
      }
      for (int e = 0; e < E / 8; e++) store(out + 8 * e, values[e]);
      part[0] = top, part[1] = part[1] * shrink + sum(total);
    }
    first += n;
  }
}

// The parts of one head, `stride` floats apart, to its output (E,).
static inline void join_parts(const float* parts, int64_t count, int64_t stride, int64_t E, float* out) {
  float top = -INFINITY, total = 0;
  for (int64_t i = 0; i < count; i++) top = parts[i * stride] > top ? parts[i * stride] : top;
  memset(out, 0, sizeof(float) * E);
  for (int64_t i = 0; i < count; i++) {
    const float* part = parts + i * stride;
    float weight = std::exp(part[0] - top);
    total += weight * part[1];
    for (int64_t e = 0; e < E; e += 8) store(out + e, load(out + e) + load(part + 2 + e) * weight);
  }
  for (int64_t e = 0; e < E; e += 8) store(out + e, load(out + e) / total);
}
