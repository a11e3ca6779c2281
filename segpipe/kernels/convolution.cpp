// A training step's 3x3 convolutions on a CPU, with the batch norm and ReLU around them, and their
// gradients. Called through ctypes by layers.py, which says what each argument is.
#include "border.h"
#include "planes.h"

namespace {

// sums of two rows += the runs of `depth` floats at `from`, STRIDE apart, times weights [depth][2].
// Each number that is loaded serves twice: a core multiplies more than it loads.
template <int UNITS, int STRIDE>
inline void multiply_both(Floats (&upper)[UNITS][1], Floats (&lower)[UNITS][1], const float *from,
                          size_t stride, int depth, const float *weights) {
  if constexpr (STRIDE > 0) stride = STRIDE;
  for (int k = 0; k < depth; k++) {
    const Floats above = in_register(load(weights + 2 * k * LANES));
    const Floats below = in_register(load(weights + (2 * k + 1) * LANES));
#pragma GCC unroll 12
    for (int u = 0; u < UNITS; u++) {
      const Floats value = in_register(from[u * stride + k] - Floats{}); // in all lanes
      upper[u][0] += above * value, lower[u][0] += below * value;
    }
  }
}

// The weights of a 3x3 convolution. Where one vector holds the outputs, two rows are made together from
// four, with weights [depth] for the first and the last, [depth][2] for those between.
struct Kernel {
  int cells, outputs, together; // cells of a unit; rows
  Product product;
  Floats64 both;

  // plain [3][3][inputs][outputs], bias [outputs] or none
  Kernel(const float *plain, const float *bias, int inputs, int new_outputs)
      : cells(in_pairs(new_outputs) || by_halves(inputs, new_outputs) ? 2 : 1), outputs(new_outputs),
        together(cells * outputs <= LANES ? 2 : 1),
        product(3, (cells + 2) * inputs, cells * inputs, cells * outputs) {
    if (by_halves(inputs, outputs)) product.edge = inputs;
    if (together == 2) both.assign(size_t(6) * product.depth * LANES);
    for (int cell = 0; cell < cells; cell++)
      for (int out = 0; out < outputs; out++) {
        const int place = cell * outputs + out;
        if (bias) product.bias.data()[place] = bias[out];
        for (int row = 0; row < 3; row++)
          for (int k = 0; k < 3 * inputs; k++) {
            const float weight = plain[(row * 3 * inputs + k) * outputs + out];
            const int at = cell * inputs + k;
            product.weight(row * product.depth + at, place) = weight;
            if (together == 2) of_both(row, at, 0)[place] = of_both(row + 1, at, 1)[place] = weight;
          }
      }
  }

  // Rows that begin a cell before, two more than are made -> `count` cells of each, `length` floats
  // apart; what lies behind these in `to` is lost.
  void run(const float *const *from, int count, float *to, size_t length) const {
    const int units = (count + cells - 1) / cells;
    if (together == 1) return product.run(from, units, to);
    if (product.stride == 8) return run_both<8>(from, units, to, to + length);
    if (product.stride == 16) return run_both<16>(from, units, to, to + length);
    if (product.stride == 24) return run_both<24>(from, units, to, to + length);
    run_both<0>(from, units, to, to + length);
  }

private:
  // Whether two cells fill three vectors, a sixth fewer products than with a vector half empty.
  static bool by_halves(int inputs, int outputs) {
    return LANES == 16 && inputs == 24 && outputs == 24;
  }

  // Of the upper or the lower row's vector.
  float *of_both(int row, int at, int lower) {
    const int depth = product.depth;
    if (row == 0) return both.data() + at * LANES;
    if (row == 3) return both.data() + (5 * depth + at) * LANES;
    return both.data() + (((2 * row - 1) * depth) + 2 * at + lower) * LANES;
  }

  template <int STRIDE>
  __attribute__((noinline)) void run_both(const float *const *from, int units, float *upper,
                                          float *lower) const {
    constexpr int MANY = SUMS / 2, FEW = MANY / 3;
    int unit = 0;
    for (; unit + MANY <= units; unit += MANY) both_units<MANY, STRIDE>(from, unit, upper, lower);
    for (; unit < units; unit += FEW) both_units<FEW, STRIDE>(from, unit, upper, lower);
  }

  template <int UNITS, int STRIDE>
  inline void both_units(const float *const *from, int unit, float *upper, float *lower) const {
    Floats above[UNITS][1], below[UNITS][1];
#pragma GCC unroll 12
    for (int u = 0; u < UNITS; u++) above[u][0] = below[u][0] = load(product.bias.data());
    const size_t stride = product.stride, first = unit * stride;
    const int depth = product.depth;
    const float *of_row = both.data();
    multiply<1, UNITS, STRIDE>(above, from[0] + first, stride, depth, of_row);
    multiply_both<UNITS, STRIDE>(above, below, from[1] + first, stride, depth, of_row + depth * LANES);
    multiply_both<UNITS, STRIDE>(above, below, from[2] + first, stride, depth, of_row + 3 * depth * LANES);
    multiply<1, UNITS, STRIDE>(below, from[3] + first, stride, depth, of_row + 5 * depth * LANES);
#pragma GCC unroll 12
    for (int u = 0; u < UNITS; u++) {
      const size_t at = size_t(unit + u) * cells * outputs;
      store(upper + at, above[u][0]), store(lower + at, below[u][0]);
    }
  }
};

struct Convolution {
  Planes planes;
  int inputs, outputs;
};

void forward(const Convolution &shape, int from, int to, const float *x, const Table *norm,
             const Kernel &kernel, float *results, double *moments) {
  const int width = shape.planes.width, inputs = shape.inputs, outputs = shape.outputs;
  Ring ring(width, inputs), made(width, outputs);
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    Moments of_band(outputs);
    const auto read = [&](int y) {
      if (shape.planes.inside(y))
        load_input(x + band.cell(y) * inputs, norm, ring.row(y), ring.count());
      else
        ring.clear(y);
    };
    read(band.from - 1), read(band.from);
    for (int y = band.from; y < band.to; y += kernel.together) {
      const float *rows[4];
      const int end = std::min(y + kernel.together, band.to);
      for (int next = y + 1; next <= end; next++) read(next);
      for (int row = 0; row < 4; row++) rows[row] = ring.row(y - 1 + row) - inputs;
      kernel.run(rows, width, made.row(0), made.length);
      for (int row = y; row < end; row++) {
        const float *result = made.row(row - y);
        if (moments) of_band.add(result, width, moments + size_t(number) * 2 * outputs);
        std::memcpy(results + band.cell(row) * outputs, result, sizeof(float) * made.count());
      }
    }
  }
}

enum Then { KEEP, ADD, MASK };

struct Backward {
  const float *g, *z, *x;
  const Table *of_gradient, *norm; // norm of x
  const Kernel *kernel;            // none where no gradient of the input is wanted
  Then then;
  float *of_input;
  double *of_weights, *of_bias, *moved; // of each band
};

// What walks over a band and finds gradients.
struct Walk {
  const Convolution &shape;
  const Backward &task;
  int width, inputs, outputs, number = 0;
  Ring gradients, values, made;
  Correlation correlation;

  Walk(const Convolution &new_shape, const Backward &new_task)
      : shape(new_shape), task(new_task), width(shape.planes.width), inputs(shape.inputs),
        outputs(shape.outputs), gradients(width, outputs), values(width, inputs), made(width, inputs),
        correlation(3, 3, inputs, outputs) {}

  void over(int new_number) {
    number = new_number;
    const Band band(shape.planes, number);
    double *of_weights = task.of_weights + size_t(number) * 9 * inputs * outputs;
    const int together = task.kernel ? task.kernel->together : 1;
    read(band, band.from - 1), read(band, band.from);
    for (int y = band.from; y < band.to; y += together) {
      const int end = std::min(y + together, band.to);
      for (int next = y + 1; next <= end; next++) read(band, next);
      for (int row = y; row < end; row++) correlate(row, of_weights);
      if (!task.kernel) continue;
      const float *rows[4];
      for (int row = 0; row < 4; row++) rows[row] = gradients.row(y - 1 + row) - outputs;
      task.kernel->run(rows, width, made.row(0), made.length);
      for (int row = y; row < end; row++) finish(band, row, made.row(row - y));
    }
    correlation.flush(of_weights);
  }

private:
  void read(const Band &band, int y) {
    if (!shape.planes.inside(y)) return gradients.clear(y);
    const size_t at = band.cell(y) * outputs;
    load_gradient(task.g + at, task.z ? task.z + at : nullptr, *task.of_gradient, gradients.row(y),
                  gradients.count());
    load_input(task.x + band.cell(y) * inputs, task.norm, values.row(y), values.count());
  }

  void correlate(int y, double *of_weights) {
    for (int row = 0; row < 3; row++)
      if (shape.planes.inside(y - 1 + row))
        correlation.add(values.row(y - 1 + row), gradients.row(y) - outputs, row, width);
    if ((correlation.cells += width) >= CELLS_IN_FP32) correlation.flush(of_weights);
    if (!task.of_bias) return;
    double *const sums[1] = {task.of_bias + size_t(number) * outputs};
    const float *own = gradients.row(y);
    add_by_channel<1>(
        gradients.count(), outputs, task.of_gradient->period,
        [&](int at, int, Floats *found) { *found = load(own + at); },
        [&](int at, int, float *found) { *found = own[at]; }, sums);
  }

  void finish(const Band &band, int y, const float *result) {
    const size_t at_row = band.cell(y) * inputs;
    float *to = task.of_input + at_row;
    const float *value = values.row(y);
    const int count = values.count(), period = period_of(inputs);
    if (task.then == KEEP) std::memcpy(to, result, sizeof(float) * count);
    if (task.then == ADD)
      along(count, period, [&](int at, int, int some) {
        store_some(to + at, load_some(to + at, some) + load_some(result + at, some), some);
      });
    if (task.then != MASK) return;
    along(count, period, [&](int at, int, int some) {
      const Floats found = load_some(result + at, some);
      store_some(to + at, load_some(value + at, some) > 0.0f ? found : Floats{}, some);
    });
    add_moved(to, task.x + at_row, *task.norm, count, inputs, task.moved + size_t(number) * 2 * inputs);
  }
};

} // namespace

extern "C" int32_t convolution_forward(const float *x, const float *norm, const float *weights,
                                       const float *bias, int32_t height, int32_t width, int32_t band,
                                       int32_t inputs, int32_t outputs, int32_t from, int32_t to,
                                       float *results, double *moments) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, inputs, outputs};
    const Kernel kernel(weights, bias, inputs, outputs);
    if (!norm) return forward(shape, from, to, x, nullptr, kernel, results, moments);
    const Table table(norm, 3, inputs);
    forward(shape, from, to, x, &table, kernel, results, moments);
  });
}

extern "C" int32_t convolution_backward(const float *g, const float *z, const float *of_gradient,
                                        const float *x, const float *norm, const float *weights,
                                        int32_t height, int32_t width, int32_t band, int32_t inputs,
                                        int32_t outputs, int32_t from, int32_t to, int32_t then,
                                        double *of_weights, double *of_bias, float *of_input,
                                        double *moved) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, inputs, outputs};
    const Table table(of_gradient, 4, outputs);
    std::vector<Kernel> kernel;
    std::vector<Table> of_x;
    if (of_input) kernel.emplace_back(weights, nullptr, outputs, inputs);
    if (norm) of_x.emplace_back(norm, 3, inputs);
    const Backward task{g, z, x, &table, norm ? of_x.data() : nullptr,
                        of_input ? kernel.data() : nullptr, Then(then), of_input, of_weights, of_bias,
                        moved};
    Walk walk(shape, task);
    for (int number = from; number < to; number++) walk.over(number);
  });
}

// y = the positive part of the normalised z, and of the sum with another.
extern "C" int32_t normalise(const float *z, const float *norm, const float *other, int32_t height,
                             int32_t width, int32_t band, int32_t channels, int32_t from, int32_t to,
                             float *y) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, channels, channels};
    const Table table(norm, 3, channels);
    for (int number = from; number < to; number++) {
      const Band rows(shape.planes, number);
      const size_t first = rows.cell(rows.from) * channels;
      const int count = (rows.to - rows.from) * width * channels;
      along(count, table.period, [&](int at, int channel, int some) {
        Floats found = normalised(load_some(z + first + at, some), table, channel);
        if (other) found += load_some(other + first + at, some);
        store_some(y + first + at, larger(found, Floats{}), some);
      });
    }
  });
}

// g = of_y where y is positive, and its sums.
extern "C" int32_t normalise_backward(const float *of_y, const float *y, const float *z,
                                      const float *mean, int32_t height, int32_t width, int32_t band,
                                      int32_t channels, int32_t from, int32_t to, float *g,
                                      double *moved) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, channels, channels};
    const Table table(mean, 1, channels);
    const int count = width * channels;
    for (int number = from; number < to; number++) {
      const Band rows(shape.planes, number);
      for (int row = rows.from; row < rows.to; row++) {
        const size_t first = rows.cell(row) * channels;
        along(count, table.period, [&](int at, int, int some) {
          const Floats positive = load_some(y + first + at, some), found = load_some(of_y + first + at, some);
          store_some(g + first + at, positive > 0.0f ? found : Floats{}, some);
        });
        add_moved(g + first, z + first, table, count, channels, moved + size_t(number) * 2 * channels);
      }
    }
  });
}
