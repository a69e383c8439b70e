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

static const int64_t KEYS = 64;   // whose scores are held at a time
static const int MAX_GROUP = 16;  // query heads that share a key

// What came of a part: the largest score, the sum of e^(score - largest), and the values weighted so: (E,).
static inline int64_t part_floats(int64_t head_width) { return head_width + 2; }

// The queries of one key head in rows that follow one another and are of one text: row r has `group` of them at
// q + r * q_stride, looks at positions before attended[r], of them the last `window` (0: all), and has its parts at
// parts + r * part_stride.
struct Queries {
  const float* q;
  int64_t rows, group, q_stride;
  const int64_t* attended;
  int64_t window;
  float* parts;
  int64_t part_stride;

  int64_t begin(int64_t r) const { return window && attended[r] > window ? attended[r] - window : 0; }
};

// n rows of a cache as float32: where they lie, or the copy in `room`.
template <int E>
static inline const float* as_floats(const float* from, int64_t& stride, int64_t, float*) { return from; }
template <int E>
static inline const float* as_floats(const uint16_t* from, int64_t& stride, int64_t n, float* room) {
  for (int64_t t = 0; t < n; t++)
    for (int e = 0; e < E; e += 8) store(room + t * E + e, load(from + t * stride + e));
  stride = E;
  return room;
}

// Scores of keys 0 to n - 1, and -infinity up to the next multiple of eight.
template <int E>
static inline void score(const float* q, const float* k, int64_t stride, int64_t n, float scale, float* scores) {
  for (int64_t t = 0; t < n; t += 8) {
    f32x8 dots[8];
    const float* key[8];
    for (int i = 0; i < 8; i++) dots[i] = splat(0), key[i] = k + (t + i < n ? t + i : n - 1) * stride;
    for (int e = 0; e < E; e += 8)
      for (int i = 0; i < 8; i++) dots[i] = multiply_add(load(key[i] + e), load(q + e), dots[i]);
    store(scores + t, sums(dots) * scale);
    for (int64_t i = n; i < t + 8; i++) scores[i] = -INFINITY;
  }
}

// out = out * shrink + the values of n positions, each times its weight.
template <int E>
static inline void add_values(const float* v, int64_t stride, const float* weights, int64_t n, float shrink, float* out) {
  const int PART = E % 64 == 0 ? 64 : E % 32 == 0 ? 32 : 16;  // what registers hold
  for (int e = 0; e < E; e += PART) {
    f32x8 values[PART / 8];
    for (int i = 0; i < PART / 8; i++) values[i] = load(out + e + 8 * i) * shrink;
    for (int64_t t = 0; t < n; t++)
      for (int i = 0; i < PART / 8; i++)
        values[i] = multiply_add(load(v + t * stride + e + 8 * i), splat(weights[t]), values[i]);
    for (int i = 0; i < PART / 8; i++) store(out + e + 8 * i, values[i]);
  }
}

// One query over n positions more.
template <int E>
static inline void attend_block(const float* q, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                                int64_t n, float scale, float* part) {
  float scores[KEYS];
  score<E>(q, k, k_stride, n, scale, scores);
  f32x8 highest = splat(part[0]), total = splat(0);
  for (int64_t t = 0; t < n; t += 8) highest = larger(load(scores + t), highest);
  float top = largest(highest), shrink = part[0] == top ? 1.0f : std::exp(part[0] - top);
  for (int64_t t = 0; t < n; t += 8) {
    f32x8 p = exponential(load(scores + t) - top);
    if (t + 8 > n)
      for (int i = n - t; i < 8; i++) p[i] = 0;
    store(scores + t, p);
    total += p;
  }
  add_values<E>(v, v_stride, scores, n, shrink, part + 2);
  part[0] = top, part[1] = part[1] * shrink + sum(total);
}

// Queries over positions [first, stop) -> a part each. Keys and values are read once for all of them; where blocks of
// them begin and end depends on the position alone, so that a row comes out the same whoever else is there.
template <int E, class T>
static void attend(const Queries& queries, float scale, const T* k, const T* v, const Cache& cache, int64_t text,
                   int64_t head, int64_t first, int64_t stop) {
  alignas(64) float k_room[KEYS * E], v_room[KEYS * E];
  for (int64_t r = 0; r < queries.rows; r++)
    for (int64_t g = 0; g < queries.group; g++) {
      float* part = queries.parts + r * queries.part_stride + g * part_floats(E);
      part[0] = -INFINITY;
      memset(part + 1, 0, sizeof(float) * (E + 1));
    }
  int64_t lowest = queries.begin(0), highest = 0;
  for (int64_t r = 0; r < queries.rows; r++) {
    if (queries.begin(r) < lowest) lowest = queries.begin(r);
    if (queries.attended[r] > highest) highest = queries.attended[r];
  }
  if (first < lowest) first = lowest;
  if (stop > highest) stop = highest;
  while (first < stop) {
    int64_t in_block = first % cache.block_tokens, n = KEYS - in_block % KEYS;
    if (n > cache.block_tokens - in_block) n = cache.block_tokens - in_block;
    if (n > stop - first) n = stop - first;
    int64_t at = cache.offset(text, head, first), k_stride = cache.token_stride, v_stride = k_stride;
    const float *keys = as_floats<E>(k + at, k_stride, n, k_room), *values = as_floats<E>(v + at, v_stride, n, v_room);
    for (int64_t r = 0; r < queries.rows; r++) {
      int64_t end = queries.attended[r] - first < n ? queries.attended[r] - first : n;
      int64_t begin = queries.begin(r) > first ? queries.begin(r) - first : 0;
      for (int64_t g = 0; begin < end && g < queries.group; g++)
        attend_block<E>(queries.q + r * queries.q_stride + g * E, keys + begin * k_stride, k_stride,
                        values + begin * v_stride, v_stride, end - begin, scale, queries.parts + r * queries.part_stride + g * part_floats(E));
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
