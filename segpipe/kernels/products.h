// Products of runs of floats with weights, whose sums stay in registers.
#pragma once
#include "lanes.h"
#include <algorithm>
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

struct alignas(64) Line {
  float values[16];
};

// Numbers at addresses that vectors like.
template <class Number> struct Aligned {
  std::vector<Line> lines;
  void assign(size_t count) {
    lines.assign((count * sizeof(Number) + sizeof(Line) - 1) / sizeof(Line), Line{});
  }
  Number *data() { return reinterpret_cast<Number *>(lines.data()); }
  const Number *data() const { return reinterpret_cast<const Number *>(lines.data()); }
};
using Floats64 = Aligned<float>;

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

// Of three vectors those from FIRST to before LAST, which alone have weights other than 0 here.
template <int FIRST, int LAST, int CELLS, int STRIDE>
inline void multiply_some(Floats (&sum)[CELLS][3], const float *from, size_t stride, int depth,
                          const float *weights) {
  if constexpr (STRIDE > 0) stride = STRIDE;
  for (int k = 0; k < depth; k++) {
    Floats weight[3];
#pragma GCC unroll 3
    for (int v = FIRST; v < LAST; v++) weight[v] = in_register(load(weights + (k * 3 + v) * LANES));
#pragma GCC unroll 24
    for (int cell = 0; cell < CELLS; cell++) {
      const Floats value = in_register(from[cell * stride + k] - Floats{}); // in all lanes
#pragma GCC unroll 3
      for (int v = FIRST; v < LAST; v++) sum[cell][v] += weight[v] * value;
    }
  }
}

// Sums of products of runs of floats with weights: [group][row][depth][vector].
struct Product {
  int rows, depth, stride, outputs; // of runs; floats of a run, from a unit's to the next's
  int vectors, groups;              // of a unit's outputs
  int edge = 0; // of so many floats at a run's ends, the last or the first of 3 vectors has no weights
  Floats64 weights, bias;

  Product(int new_rows, int new_depth, int new_stride, int new_outputs)
      : rows(new_rows), depth(new_depth), stride(new_stride), outputs(new_outputs) {
    const int all = padded(outputs, LANES) / LANES;
    vectors = in_group(all), groups = all / vectors;
    weights.assign(size_t(all) * LANES * rows * depth), bias.assign(size_t(all) * LANES);
  }
  // plain [rows][depth][outputs]
  Product(int new_rows, int new_depth, int new_stride, int new_outputs, const float *plain)
      : Product(new_rows, new_depth, new_stride, new_outputs) {
    for (int k = 0; k < rows * depth; k++)
      for (int out = 0; out < outputs; out++) weight(k, out) = plain[size_t(k) * outputs + out];
  }

  // Of the number k of all rows' runs.
  float &weight(int k, int out) {
    const int wide = vectors * LANES;
    return weights.data()[(size_t(out / wide) * rows * depth + k) * wide + out % wide];
  }

  // Rows of runs -> `units` times the outputs; what lies behind these in `to` is lost.
  void run(const float *const *from, int units, float *to) const {
    if (vectors == 4) run_vectors<4, 0>(from, units, to);
    if (vectors == 3 && edge) run_vectors<3, 48, true>(from, units, to);
    if (vectors == 3 && !edge) run_strides<3>(from, units, to);
    if (vectors == 2) run_strides<2>(from, units, to);
    if (vectors == 1) run_vectors<1, 0>(from, units, to);
  }

private:
  template <int VECTORS> void run_strides(const float *const *from, int units, float *to) const {
    if (stride == 24) return run_vectors<VECTORS, 24>(from, units, to);
    if (stride == 32) return run_vectors<VECTORS, 32>(from, units, to);
    if (stride == 48) return run_vectors<VECTORS, 48>(from, units, to);
    run_vectors<VECTORS, 0>(from, units, to);
  }

  // The last group first: it may touch the beginning of the next cell, which is then written anew.
  template <int VECTORS, int STRIDE, bool EDGES = false>
  __attribute__((noinline)) void run_vectors(const float *const *from, int units, float *to) const {
    constexpr int MANY = SUMS / VECTORS, FEW = MANY / 3;
    for (int group = groups; group-- > 0;) {
      int unit = 0;
      for (; unit + MANY <= units; unit += MANY) run_units<VECTORS, MANY, STRIDE, EDGES>(from, unit, group, to);
      for (; unit < units; unit += FEW) run_units<VECTORS, FEW, STRIDE, EDGES>(from, unit, group, to);
    }
  }

  template <int VECTORS, int UNITS, int STRIDE, bool EDGES>
  inline void run_units(const float *const *from, int unit, int group, float *to) const {
    const int first = group * VECTORS * LANES;
    const float *of_group = weights.data() + size_t(first) * rows * depth;
    Floats sum[UNITS][VECTORS];
#pragma GCC unroll 24
    for (int u = 0; u < UNITS; u++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[u][v] = load(bias.data() + first + v * LANES);
    for (int row = 0; row < rows; row++) {
      const float *run = from[row] + size_t(unit) * stride;
      const float *of_row = of_group + size_t(row) * depth * VECTORS * LANES;
      if constexpr (EDGES) {
        const int end = depth - edge;
        multiply_some<0, 2, UNITS, STRIDE>(sum, run, stride, edge, of_row);
        multiply_some<0, 3, UNITS, STRIDE>(sum, run + edge, stride, end - edge, of_row + 3 * edge * LANES);
        multiply_some<1, 3, UNITS, STRIDE>(sum, run + end, stride, edge, of_row + 3 * end * LANES);
      } else {
        multiply<VECTORS, UNITS, STRIDE>(sum, run, stride, depth, of_row);
      }
    }
#pragma GCC unroll 24
    for (int u = 0; u < UNITS; u++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        store(to + size_t(unit + u) * outputs + first + v * LANES, sum[u][v]);
  }
};

constexpr int CELLS_IN_FP32 = 1024; // of a gradient's sum, before it is added in double

// Whether two cells with their outputs fill one vector: a third fewer products than each alone.
inline bool in_pairs(int outputs) { return 2 * outputs == LANES; }

// The sums of a weight's gradient: of products of each input with the gradients of the results that
// it is seen by, one or a row's three. [rows][inputs][shift][lanes of the outputs]
struct Correlation {
  int rows, inputs, outputs, shifts, wide, vectors, cells = 0;
  Floats64 sums;

  Correlation(int new_rows, int columns, int new_inputs, int new_outputs)
      : rows(new_rows), inputs(new_inputs), outputs(new_outputs), shifts(columns) {
    const bool pairs = columns == 3 && in_pairs(outputs);
    if (pairs) shifts = 2;
    wide = padded(pairs ? 2 * outputs : outputs, LANES);
    const int all = wide / LANES;
    vectors = LANES == 8 ? 1 : all % 3 == 0 ? 3 : all % 2 == 0 ? 2 : 1;
    sums.assign(size_t(rows) * inputs * shifts * wide);
  }

  // A row of inputs, and one of gradients, of three that begins a cell before; `row` of the kernel.
  void add(const float *x, const float *gradient, int row, int count) {
    if (shifts == 1 && vectors == 3) return add_inputs<1, 3, 4>(x, gradient, row, count);
    if (shifts == 1 && vectors == 2) return add_inputs<1, 2, 8>(x, gradient, row, count);
    if (shifts == 1) return add_inputs<1, 1, 8>(x, gradient, row, count);
    if (shifts == 2) return add_inputs<2, 1, 8>(x, gradient, row, count);
    if (LANES == 8) return add_inputs<3, 1, 4>(x, gradient, row, count);
    if (vectors == 3) return add_inputs<3, 3, 2>(x, gradient, row, count);
    if (vectors == 2) return add_inputs<3, 2, 4>(x, gradient, row, count);
    add_inputs<3, 1, 8>(x, gradient, row, count);
  }

  // To [rows][columns][inputs][outputs], and begin anew.
  void flush(double *to) {
    const int columns = shifts == 1 ? 1 : 3, halves = shifts == 2 ? 2 : 1;
    for (int row = 0; row < rows; row++)
      for (int in = 0; in < inputs; in++)
        for (int shift = 0; shift < shifts; shift++) {
          const float *from = sums.data() + ((size_t(row) * inputs + in) * shifts + shift) * wide;
          for (int half = 0; half < halves; half++) {
            const int column = columns - 1 - halves * shift - half;
            double *at = to + ((size_t(row) * columns + column) * inputs + in) * outputs;
            for (int out = 0; column >= 0 && out < outputs; out++) at[out] += from[half * outputs + out];
          }
        }
    std::fill(sums.data(), sums.data() + size_t(rows) * inputs * shifts * wide, 0.0f);
    cells = 0;
  }

private:
  template <int SHIFTS, int VECTORS, int INPUTS>
  __attribute__((noinline)) void add_inputs(const float *x, const float *gradient, int row, int count) {
    for (int first = 0; first < wide; first += VECTORS * LANES) {
      int in = 0;
      for (; in + INPUTS <= inputs; in += INPUTS)
        add_block<SHIFTS, VECTORS, INPUTS>(x + in, gradient + first, row, in, first, count);
      if constexpr (INPUTS > 4)
        for (; in < inputs; in += 4)
          add_block<SHIFTS, VECTORS, 4>(x + in, gradient + first, row, in, first, count);
    }
  }

  template <int SHIFTS, int VECTORS, int INPUTS>
  inline void add_block(const float *x, const float *gradient, int row, int in, int first, int count) {
    Floats sum[INPUTS][SHIFTS][VECTORS];
    float *at = sums.data() + (size_t(row) * inputs + in) * SHIFTS * wide + first;
    for (int k = 0; k < INPUTS; k++)
      for (int s = 0; s < SHIFTS; s++)
        for (int v = 0; v < VECTORS; v++) sum[k][s][v] = load(at + (k * SHIFTS + s) * wide + v * LANES);
    const int step = SHIFTS == 2 ? 2 * outputs : outputs;
    for (int cell = 0; cell < count; cell++, x += inputs, gradient += outputs) {
      Floats near[SHIFTS][VECTORS];
#pragma GCC unroll 3
      for (int s = 0; s < SHIFTS; s++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++)
          near[s][v] = in_register(load(gradient + s * step + v * LANES));
#pragma GCC unroll 8
      for (int k = 0; k < INPUTS; k++) {
        const Floats value = in_register(x[k] - Floats{}); // in all lanes
#pragma GCC unroll 3
        for (int s = 0; s < SHIFTS; s++)
#pragma GCC unroll 3
          for (int v = 0; v < VECTORS; v++) sum[k][s][v] += near[s][v] * value;
      }
    }
    for (int k = 0; k < INPUTS; k++)
      for (int s = 0; s < SHIFTS; s++)
        for (int v = 0; v < VECTORS; v++) store(at + (k * SHIFTS + s) * wide + v * LANES, sum[k][s][v]);
  }
};

} // namespace
