// A training step's layers on a CPU: convolutions with the batch norm and ReLU around them, and their
// gradients. Called through ctypes by convolution.py, which says what each argument is.
//
// Planes lie as [image][row][cell][channel]. They are walked over in bands of rows, each of which is
// independent of the others: sums over cells are one number of each band, so that they do not depend
// on how many threads share the bands. Rows are copied into a ring with zeros around, and what is
// done to them before a convolution sees them is done on that way.
#include "border.h"
#include "products.h"
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int SPARE = 20;         // cells behind a row, which a block of products may touch
constexpr int CELLS_IN_FP32 = 1024; // of a gradient's sum, before it is added in double

inline Floats load_some(const float *from, int some) {
  if (some == LANES) return load(from);
  Floats lanes = {};
  std::memcpy(&lanes, from, sizeof(float) * some);
  return lanes;
}

inline void store_some(float *to, const Floats &lanes, int some) {
  if (some == LANES) return store(to, lanes);
  std::memcpy(to, &lanes, sizeof(float) * some);
}

// After how many floats both channels and vectors begin anew.
int period_of(int channels) {
  int period = channels;
  while (period % LANES) period += channels;
  return period;
}

// Calls body(at, channel, some) for each vector of a row: its place, that in a table, floats in it.
template <class Body> inline void along(int count, int period, Body body) {
  int at = 0, channel = 0;
  for (; at + LANES <= count; at += LANES) {
    body(at, channel, LANES);
    channel = channel + LANES == period ? 0 : channel + LANES;
  }
  if (at < count) body(at, channel, count - at);
}

// Numbers of each channel, [rows][channels], repeated until a vector's end.
struct Table {
  int period = 0;
  Floats64 values;
  Table(const float *plain, int rows, int channels) : period(period_of(channels)) {
    values.assign(size_t(rows) * period);
    for (int row = 0; row < rows; row++)
      for (int at = 0; at < period; at++)
        values.data()[row * period + at] = plain[row * channels + at % channels];
  }
  Floats at(int row, int channel) const { return load(values.data() + row * period + channel); }
};

// Planes of images, in bands of rows.
struct Planes {
  int height, width, band;
  int bands() const { return (height + band - 1) / band; } // of an image
};

struct Band {
  size_t image;
  int from, to; // rows
  Band(const Planes &planes, int number)
      : image(number / planes.bands()), from(number % planes.bands() * planes.band),
        to(std::min(from + planes.band, planes.height)) {}
};

// The newest rows of a plane with zeros around.
struct Ring {
  int width, channels;
  size_t length;
  Floats64 floats;
  Ring(int new_width, int new_channels)
      : width(new_width), channels(new_channels),
        length(padded((new_width + 2 + SPARE) * new_channels + 2 * LANES, 16)) {
    floats.assign(4 * length);
  }
  int count() const { return width * channels; }
  float *row(int y) { return floats.data() + ((y + 1) & 3) * length + channels; } // from -1 on
  void clear(int y) { std::fill(row(y), row(y) + count(), 0.0f); }
};

// ---- what is done to rows

enum { MEAN, SCALE, SHIFT };

inline Floats normalised(const Floats &z, const Table &norm, int channel) {
  return (z - norm.at(MEAN, channel)) * norm.at(SCALE, channel) + norm.at(SHIFT, channel);
}

// A convolution's input, or the norm's positive part where it has one.
void load_input(const float *from, const Table *norm, float *to, int count) {
  if (!norm) {
    std::memcpy(to, from, sizeof(float) * count);
    return;
  }
  along(count, norm->period, [&](int at, int channel, int some) {
    store_some(to + at, larger(normalised(load_some(from + at, some), *norm, channel), Floats{}), some);
  });
}

enum { OF_GRADIENT, CENTRE, OF_RESULT, ALWAYS };

// The gradient of a convolution's result: of the norm's, g, and of how mean and variance moved it.
void load_gradient(const float *g, const float *z, const Table &table, float *to, int count) {
  if (!z) {
    along(count, table.period, [&](int at, int channel, int some) {
      store_some(to + at, load_some(g + at, some) * table.at(OF_GRADIENT, channel), some);
    });
    return;
  }
  along(count, table.period, [&](int at, int channel, int some) {
    const Floats moved = (load_some(z + at, some) - table.at(CENTRE, channel)) * table.at(OF_RESULT, channel);
    const Floats own = load_some(g + at, some) * table.at(OF_GRADIENT, channel);
    store_some(to + at, own + (moved + table.at(ALWAYS, channel)), some);
  });
}

// ---- sums over cells

// Adds to `sums` [channels] of each of N numbers, of which value(at, channel) tells those of a vector
// and one(at, channel) those of a single place.
template <int N, class Value, class One>
void add_by_channel(int count, int channels, int period, Value value, One one, double *const sums[N]) {
  const int whole = count / LANES * LANES;
  for (int first = 0; first < period; first += LANES) {
    Floats sum[N][4] = {};
    int at = first, turn = 0;
    for (; at < whole; at += period, turn++) {
      Floats found[N];
      value(at, first, found);
      for (int n = 0; n < N; n++) {
        if ((turn & 3) == 0) sum[n][0] += found[n];
        else if ((turn & 3) == 1) sum[n][1] += found[n];
        else if ((turn & 3) == 2) sum[n][2] += found[n];
        else sum[n][3] += found[n];
      }
    }
    for (int n = 0; n < N; n++) {
      const Floats total = (sum[n][0] + sum[n][1]) + (sum[n][2] + sum[n][3]);
      for (int lane = 0; lane < LANES; lane++) sums[n][(first + lane) % channels] += total[lane];
    }
  }
  for (int at = whole; at < count; at++) {
    float found[N];
    one(at, at % channels, found);
    for (int n = 0; n < N; n++) sums[n][at % channels] += found[n];
  }
}

// Mean and squares around it of each channel, row by row (Chan, Golub and LeVeque, The American
// Statistician 37, 1983): a mean far from 0 costs no digits.
struct Moments {
  int channels, period;
  double count = 0;
  std::vector<double> sums, squares;
  std::vector<float> centre;
  Moments(int new_channels)
      : channels(new_channels), period(period_of(new_channels)), sums(channels), squares(channels),
        centre(period) {}

  // mean and squares [2][channels]
  void add(const float *row, int cells, double *to) {
    std::fill(sums.begin(), sums.end(), 0.0), std::fill(squares.begin(), squares.end(), 0.0);
    double *const of_sum[1] = {sums.data()}, *const of_squares[1] = {squares.data()};
    const int numbers = cells * channels;
    add_by_channel<1>(
        numbers, channels, period, [&](int at, int, Floats *found) { *found = load(row + at); },
        [&](int at, int, float *found) { *found = row[at]; }, of_sum);
    for (int at = 0; at < period; at++) centre[at] = float(sums[at % channels] / cells);
    add_by_channel<1>(
        numbers, channels, period,
        [&](int at, int channel, Floats *found) {
          const Floats off = load(row + at) - load(&centre[channel]);
          *found = off * off;
        },
        [&](int at, int channel, float *found) {
          const float off = row[at] - centre[channel];
          *found = off * off;
        },
        of_squares);
    const double all = count + cells;
    for (int c = 0; c < channels; c++) {
      const double off = sums[c] / cells - to[c];
      to[c] += off * cells / all;
      to[channels + c] += squares[c] + off * off * count * cells / all;
    }
    count = all;
  }
};

// Of g and of g times (z - mean): [2][channels]
void add_moved(const float *g, const float *z, const Table &mean, int count, int channels, double *to) {
  double *const sums[2] = {to, to + channels};
  add_by_channel<2>(
      count, channels, mean.period,
      [&](int at, int channel, Floats *found) {
        found[0] = load(g + at);
        found[1] = found[0] * (load(z + at) - mean.at(0, channel));
      },
      [&](int at, int channel, float *found) {
        found[0] = g[at], found[1] = g[at] * (z[at] - mean.values.data()[channel]);
      },
      sums);
}

// ---- products

// Whether two cells with their outputs fill one vector: a third fewer products than each alone.
bool in_pairs(int outputs) { return 2 * outputs == LANES; }

// The weights of a 3x3 convolution, in the order of its loop: [group][row][depth][vector].
struct Kernel {
  int cells, outputs, stride, depth; // cells of a unit; floats from a unit to the next, of its run
  int vectors, groups;               // of a unit's outputs
  Floats64 weights, bias;

  // plain [3][3][inputs][outputs], plain_bias [outputs] or none
  Kernel(const float *plain, const float *plain_bias, int inputs, int new_outputs)
      : cells(in_pairs(new_outputs) ? 2 : 1), outputs(new_outputs), stride(cells * inputs),
        depth((cells + 2) * inputs) {
    const int all = padded(cells * outputs, LANES) / LANES;
    vectors = in_group(all), groups = all / vectors;
    const int together = vectors * LANES;
    weights.assign(size_t(all) * LANES * 3 * depth), bias.assign(size_t(all) * LANES);
    for (int cell = 0; cell < cells; cell++)
      for (int out = 0; out < outputs; out++) {
        const int place = cell * outputs + out, group = place / together;
        if (plain_bias) bias.data()[place] = plain_bias[out];
        for (int row = 0; row < 3; row++)
          for (int k = 0; k < 3 * inputs; k++) {
            const size_t at = (size_t(group) * 3 + row) * depth + cell * inputs + k;
            weights.data()[at * together + place % together] = plain[(row * 3 * inputs + k) * outputs + out];
          }
      }
  }

  // Rows that begin a cell before -> `count` cells; what lies behind these in `to` is lost.
  void run(const float *const from[3], int count, float *to) const {
    const int units = (count + cells - 1) / cells;
    if (vectors == 4) run_vectors<4, 0>(from, units, to);
    if (vectors == 3) run_strides<3>(from, units, to);
    if (vectors == 2) run_strides<2>(from, units, to);
    if (vectors == 1) run_strides<1>(from, units, to);
  }

private:
  template <int VECTORS> void run_strides(const float *const from[3], int units, float *to) const {
    if (stride == 8) return run_vectors<VECTORS, 8>(from, units, to);
    if (stride == 16) return run_vectors<VECTORS, 16>(from, units, to);
    if (stride == 24) return run_vectors<VECTORS, 24>(from, units, to);
    if (stride == 32) return run_vectors<VECTORS, 32>(from, units, to);
    if (stride == 48) return run_vectors<VECTORS, 48>(from, units, to);
    run_vectors<VECTORS, 0>(from, units, to);
  }

  // The last group first: it may touch the beginning of the next cell, which is then written anew.
  template <int VECTORS, int STRIDE>
  __attribute__((noinline)) void run_vectors(const float *const from[3], int units, float *to) const {
    constexpr int MANY = SUMS / VECTORS, FEW = MANY / 3;
    for (int group = groups; group-- > 0;) {
      int unit = 0;
      for (; unit + MANY <= units; unit += MANY) run_units<VECTORS, MANY, STRIDE>(from, unit, group, to);
      for (; unit < units; unit += FEW) run_units<VECTORS, FEW, STRIDE>(from, unit, group, to);
    }
  }

  template <int VECTORS, int UNITS, int STRIDE>
  inline void run_units(const float *const from[3], int unit, int group, float *to) const {
    const int first = group * VECTORS * LANES;
    const float *of_group = weights.data() + size_t(first) * 3 * depth;
    Floats sum[UNITS][VECTORS];
#pragma GCC unroll 24
    for (int u = 0; u < UNITS; u++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[u][v] = load(bias.data() + first + v * LANES);
    for (int row = 0; row < 3; row++)
      multiply<VECTORS, UNITS, STRIDE>(sum, from[row] + size_t(unit) * stride, stride, depth,
                                       of_group + size_t(row) * depth * VECTORS * LANES);
#pragma GCC unroll 24
    for (int u = 0; u < UNITS; u++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        store(to + size_t(unit + u) * cells * outputs + first + v * LANES, sum[u][v]);
  }
};

// The sums of a weight's gradient: of products of each input with the gradients of the results that
// it is seen by. [3 rows][inputs][shift][lanes of the outputs]
struct Correlation {
  int inputs, outputs, shifts, wide, vectors, cells = 0;
  Floats64 sums;

  Correlation(int new_inputs, int new_outputs)
      : inputs(new_inputs), outputs(new_outputs), shifts(in_pairs(outputs) ? 2 : 3),
        wide(padded(in_pairs(outputs) ? 2 * outputs : outputs, LANES)) {
    const int all = wide / LANES;
    vectors = LANES == 8 ? 1 : all % 3 == 0 ? 3 : all % 2 == 0 ? 2 : 1;
    sums.assign(size_t(3) * inputs * shifts * wide);
  }

  // A row of inputs, and one of gradients that begins a cell before; `row` of the kernel.
  void add(const float *x, const float *gradient, int row, int count) {
    if (shifts == 2) return add_inputs<2, 1, 8>(x, gradient, row, count);
    if (LANES == 8) return add_inputs<3, 1, 4>(x, gradient, row, count);
    if (vectors == 3) return add_inputs<3, 3, 2>(x, gradient, row, count);
    if (vectors == 2) return add_inputs<3, 2, 4>(x, gradient, row, count);
    add_inputs<3, 1, 8>(x, gradient, row, count);
  }

  // To [3][3][inputs][outputs], and begin anew.
  void flush(double *to) {
    for (int row = 0; row < 3; row++)
      for (int in = 0; in < inputs; in++)
        for (int shift = 0; shift < shifts; shift++) {
          const float *from = sums.data() + ((size_t(row) * inputs + in) * shifts + shift) * wide;
          for (int half = 0; half < 4 - shifts; half++) {
            const int column = shifts == 3 ? 2 - shift : 2 - 2 * shift - half;
            double *at = to + ((row * 3 + column) * inputs + in) * outputs;
            for (int out = 0; column >= 0 && out < outputs; out++) at[out] += from[half * outputs + out];
          }
        }
    std::fill(sums.data(), sums.data() + size_t(3) * inputs * shifts * wide, 0.0f);
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

// ---- a convolution

struct Convolution {
  Planes planes;
  int inputs, outputs;
  size_t row(const Band &band, int y) const { return (band.image * planes.height + y) * planes.width; }
  bool inside(int y) const { return y >= 0 && y < planes.height; }
};

void forward(const Convolution &shape, int from, int to, const float *x, const Table *norm,
             const Kernel &kernel, float *results, double *moments) {
  const int width = shape.planes.width, inputs = shape.inputs, outputs = shape.outputs;
  Ring ring(width, inputs), made(width, outputs);
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    Moments of_band(outputs);
    const auto read = [&](int y) {
      if (shape.inside(y))
        load_input(x + shape.row(band, y) * inputs, norm, ring.row(y), ring.count());
      else
        ring.clear(y);
    };
    read(band.from - 1), read(band.from);
    for (int y = band.from; y < band.to; y++) {
      read(y + 1);
      const float *rows[3];
      for (int row = 0; row < 3; row++) rows[row] = ring.row(y - 1 + row) - inputs;
      float *result = made.row(0);
      kernel.run(rows, width, result);
      if (moments) of_band.add(result, width, moments + size_t(number) * 2 * outputs);
      std::memcpy(results + shape.row(band, y) * outputs, result, sizeof(float) * made.count());
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

void backward(const Convolution &shape, int from, int to, const Backward &task) {
  const int width = shape.planes.width, inputs = shape.inputs, outputs = shape.outputs;
  Ring gradients(width, outputs), values(width, inputs), made(width, inputs);
  Correlation correlation(inputs, outputs);
  const int period = period_of(inputs), count = values.count();
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    double *of_weights = task.of_weights + size_t(number) * 9 * inputs * outputs;
    const auto read_gradient = [&](int y) {
      if (!shape.inside(y)) return gradients.clear(y);
      const size_t at = shape.row(band, y) * outputs;
      load_gradient(task.g + at, task.z ? task.z + at : nullptr, *task.of_gradient, gradients.row(y),
                    gradients.count());
    };
    const auto read_value = [&](int y) {
      if (shape.inside(y)) load_input(task.x + shape.row(band, y) * inputs, task.norm, values.row(y), count);
    };
    read_gradient(band.from - 1), read_gradient(band.from);
    read_value(band.from - 1), read_value(band.from);
    for (int y = band.from; y < band.to; y++) {
      read_gradient(y + 1), read_value(y + 1);
      const float *of_result = gradients.row(y) - outputs;
      for (int row = 0; row < 3; row++)
        if (shape.inside(y - 1 + row)) correlation.add(values.row(y - 1 + row), of_result, row, width);
      if ((correlation.cells += width) >= CELLS_IN_FP32) correlation.flush(of_weights);
      if (task.of_bias) {
        double *const sums[1] = {task.of_bias + size_t(number) * outputs};
        const float *own = gradients.row(y);
        add_by_channel<1>(
            gradients.count(), outputs, task.of_gradient->period,
            [&](int at, int, Floats *found) { *found = load(own + at); },
            [&](int at, int, float *found) { *found = own[at]; }, sums);
      }
      if (!task.kernel) continue;
      const float *rows[3];
      for (int row = 0; row < 3; row++) rows[row] = gradients.row(y - 1 + row) - outputs;
      float *result = made.row(0);
      task.kernel->run(rows, width, result);
      float *to_row = task.of_input + shape.row(band, y) * inputs;
      if (task.then == KEEP) {
        std::memcpy(to_row, result, sizeof(float) * count);
        continue;
      }
      const float *value = values.row(y);
      along(count, period, [&](int at, int, int some) {
        const Floats found = load_some(result + at, some);
        const Floats other = load_some((task.then == ADD ? to_row : value) + at, some);
        store_some(to_row + at, task.then == ADD ? other + found : other > 0.0f ? found : Floats{}, some);
      });
      if (task.then == MASK)
        add_moved(to_row, task.x + shape.row(band, y) * inputs, *task.norm, count, inputs,
                  task.moved + size_t(number) * 2 * inputs);
    }
    correlation.flush(of_weights);
  }
}

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
    backward(shape, from, to,
             {g, z, x, &table, norm ? of_x.data() : nullptr, of_input ? kernel.data() : nullptr,
              Then(then), of_input, of_weights, of_bias, moved});
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
      const size_t first = shape.row(rows, rows.from) * channels;
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
        const size_t first = shape.row(rows, row) * channels;
        along(count, table.period, [&](int at, int, int some) {
          const Floats positive = load_some(y + first + at, some), found = load_some(of_y + first + at, some);
          store_some(g + first + at, positive > 0.0f ? found : Floats{}, some);
        });
        add_moved(g + first, z + first, table, count, channels, moved + size_t(number) * 2 * channels);
      }
    }
  });
}

namespace {

constexpr int CLASSES = 3;

// The pixels of a row of cells, square by square: a class's logits after the other's, and their
// truth; what is not counted has none.
struct Pixels {
  int square, width, stride, count; // stride: floats of a cell
  Floats64 logits[CLASSES];
  std::vector<int32_t> truth;

  Pixels(int new_square, int new_width, int new_stride)
      : square(new_square), width(new_width), stride(new_stride), count(width * square * square),
        truth(padded(count, LANES), -1) {
    for (auto &plane : logits) plane.assign(padded(count, LANES));
  }

  void read(const float *row, const uint8_t *labels) {
    const int each = square * square;
    for (int k = 0; k < CLASSES; k++)
      for (int x = 0; x < width; x++)
        std::memcpy(logits[k].data() + x * each, row + x * stride + k * each, sizeof(float) * each);
    for (int dy = 0; dy < square; dy++, labels += width * square)
      for (int x = 0; x < width; x++)
        for (int dx = 0; dx < square; dx++) {
          const int label = labels[x * square + dx];
          truth[x * each + dy * square + dx] = label < CLASSES ? label : -1;
        }
  }

  // p(class), less 1 for the true one, in the logits' place -> the sum of -log p(true class).
  double differentiate() {
    double loss = 0;
    Floats product = all(1.0f), below = {};
    int factors = 0;
    for (int at = 0; at < count; at += LANES) {
      const Ints classes = load(&truth[at]);
      Floats logit[CLASSES], power[CLASSES];
      for (int k = 0; k < CLASSES; k++) logit[k] = load(logits[k].data() + at);
      const Floats top = larger(larger(logit[0], logit[1]), logit[2]);
      Floats total = {}, mine = top;
      for (int k = 0; k < CLASSES; k++) {
        power[k] = exponential(larger(logit[k] - top, all(-87.0f)));
        total += power[k];
        mine = classes == k ? logit[k] : mine;
      }
      const Floats scale = classes < 0 ? Floats{} : 1.0f / total;
      for (int k = 0; k < CLASSES; k++)
        store(logits[k].data() + at, power[k] * scale - (classes == k ? all(1.0f) : Floats{}));
      below += classes < 0 ? Floats{} : top - mine;
      product *= classes < 0 ? all(1.0f) : total;
      if (++factors == 64 || at + LANES >= count) { // 3 to the 64 is a float still
        for (int lane = 0; lane < LANES; lane++) loss += std::log(double(product[lane]));
        product = all(1.0f), factors = 0;
      }
    }
    for (int lane = 0; lane < LANES; lane++) loss += below[lane];
    return loss;
  }

  void write(float *row) const {
    const int each = square * square;
    for (int k = 0; k < CLASSES; k++)
      for (int x = 0; x < width; x++)
        std::memcpy(row + x * stride + k * each, logits[k].data() + x * each, sizeof(float) * each);
    for (int k = CLASSES * each; k < stride; k++)
      for (int x = 0; x < width; x++) row[x * stride + k] = 0;
  }
};

} // namespace

// The gradient of -log p(true class), summed over all pixels, and that sum, of each band.
extern "C" int32_t likelihood(const float *logits, const uint8_t *labels, int32_t square,
                              int32_t height, int32_t width, int32_t band, int32_t channels,
                              int32_t from, int32_t to, float *gradient, double *loss) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, channels, channels};
    Pixels pixels(square, width, channels);
    for (int number = from; number < to; number++) {
      const Band rows(shape.planes, number);
      for (int y = rows.from; y < rows.to; y++) {
        const size_t cell = shape.row(rows, y);
        pixels.read(logits + cell * channels, labels + cell * square * square);
        loss[number] += pixels.differentiate();
        pixels.write(gradient + cell * channels);
      }
    }
  });
}

// Squares of pixels as cells, a colour's pixels after the other's, and zeros.
extern "C" int32_t square_cells(const uint8_t *image, int32_t square, int32_t height, int32_t width,
                                int32_t band, int32_t channels, int32_t from, int32_t to,
                                float *cells) {
  return guarded([&] {
    const Convolution shape{{height, width, band}, channels, channels};
    const int each = square * square;
    for (int number = from; number < to; number++) {
      const Band rows(shape.planes, number);
      for (int y = rows.from; y < rows.to; y++) {
        const size_t cell = shape.row(rows, y);
        const uint8_t *pixel = image + cell * each * 3;
        float *at = cells + cell * channels;
        std::memset(at, 0, sizeof(float) * width * channels);
        for (int dy = 0; dy < square; dy++)
          for (int x = 0; x < width; x++)
            for (int dx = 0; dx < square; dx++, pixel += 3)
              for (int colour = 0; colour < 3; colour++)
                at[x * channels + colour * each + dy * square + dx] = float(pixel[colour]) / 255.0f;
      }
    }
  });
}
