// Products of runs of floats with weights, whose sums stay in registers.
#pragma once
#include "lanes.h"
#include <cstddef>
#include <vector>

namespace {

constexpr int SUMS = LANES == 16 ? 24 : 12; // that stay in registers

// What is used several times and would else be loaded as often: loads are what a core has fewest of.
inline Floats in_register(Floats x) {
#ifdef __AVX__
  asm("" : "+v"(x));
#endif
  return x;
}

inline Floats positive(const Floats &x) { return x > 0.0f ? x : Floats{}; }

constexpr int padded(int count, int step) { return (count + step - 1) / step * step; }

struct alignas(64) Line {
  float values[16];
};

// Floats at addresses that vectors like.
struct Floats64 {
  std::vector<Line> lines;
  void assign(size_t count) { lines.assign((count + 15) / 16, Line{}); }
  float *data() { return reinterpret_cast<float *>(lines.data()); }
  const float *data() const { return reinterpret_cast<const float *>(lines.data()); }
};

// sum += the runs of `depth` floats at `from`, `stride` apart, times weights [depth][VECTORS]. With a
// STRIDE, which `stride` then is, no register holds where a run begins.
template <int VECTORS, int CELLS, int STRIDE = 0>
inline void multiply(Floats (&sum)[CELLS][VECTORS], const float *from, size_t stride, int depth,
                     const float *weights) {
  if constexpr (STRIDE > 0) stride = STRIDE;
  for (int k = 0; k < depth; k++) {
    if constexpr (VECTORS <= CELLS) {
      Floats weight[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        weight[v] = in_register(load(weights + (k * VECTORS + v) * LANES));
#pragma GCC unroll 24
      for (int cell = 0; cell < CELLS; cell++) {
        const float value = from[cell * stride + k];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[cell][v] += weight[v] * value;
      }
    } else {
      Floats value[CELLS];
#pragma GCC unroll 3
      for (int cell = 0; cell < CELLS; cell++)
        value[cell] = from[cell * stride + k] - Floats{}; // in all lanes
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        const Floats weight = in_register(load(weights + (k * VECTORS + v) * LANES));
#pragma GCC unroll 3
        for (int cell = 0; cell < CELLS; cell++) sum[cell][v] += weight * value[cell];
      }
    }
  }
}

// Vectors of outputs whose sums are found together, of so many.
constexpr int in_group(int vectors) {
  return vectors % 3 == 0 ? 3 : vectors % 4 == 0 ? 4 : vectors % 2 == 0 ? 2 : 1;
}

} // namespace
