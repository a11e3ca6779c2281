// A training step's 2x2 convolutions on a CPU, which halve height and width, and their transposes,
// which double them; with their gradients. Called through ctypes by layers.py, which says what each
// argument is.
//
// Bands are of the smaller plane's rows. Of the larger plane the runs of two cells' channels are what
// a cell of the smaller one is made from, or makes, in each of two rows.
#include "border.h"
#include "planes.h"

namespace {

struct Resampling {
  Planes planes; // of the smaller plane
  int large, small; // channels
  int run() const { return 2 * large; }
  size_t length() const { return size_t(planes.width) * run(); } // floats of a row of the larger
  size_t above(const Band &band, int y) const { return band.cell(y) * 4 * large; } // its place
};

// Two rows of the larger plane, copied to where more may be read than they have.
struct Pair {
  size_t length, room;
  Floats64 floats;
  explicit Pair(const Resampling &shape)
      : length(shape.length()), room(length + SPARE * shape.run() + LANES) {
    floats.assign(2 * room);
  }
  float *row(int dy) { return floats.data() + dy * room; }
  void read(const float *rows) {
    for (int dy = 0; dy < 2; dy++) std::copy(rows + dy * length, rows + (dy + 1) * length, row(dy));
  }
};

void halve(const Resampling &shape, int from, int to, const float *x, const Product &product,
           float *results, double *moments) {
  Pair pair(shape);
  Ring made(shape.planes.width, shape.small);
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    Moments of_band(shape.small);
    for (int y = band.from; y < band.to; y++) {
      pair.read(x + shape.above(band, y));
      const float *rows[2] = {pair.row(0), pair.row(1)};
      product.run(rows, shape.planes.width, made.row(0));
      of_band.add(made.row(0), shape.planes.width, moments + size_t(number) * 2 * shape.small);
      std::copy(made.row(0), made.row(0) + made.count(), results + band.cell(y) * shape.small);
    }
  }
}

// A row of the smaller plane -> two of the larger one.
void spread(const std::vector<Product> &products, const float *row, int width, Pair &pair) {
  for (int dy = 0; dy < 2; dy++) products[dy].run(&row, width, pair.row(dy));
}

// One for each of two rows, plain [2][small][2 large].
std::vector<Product> spreading(const Resampling &shape, const float *plain) {
  std::vector<Product> products;
  for (int dy = 0; dy < 2; dy++)
    products.emplace_back(1, shape.small, shape.small, shape.run(),
                          plain + size_t(dy) * shape.small * shape.run());
  return products;
}

void halve_gradients(const Resampling &shape, int from, int to, const float *g, const float *z,
                     const Table &of_gradient, const float *x, const std::vector<Product> &products,
                     double *of_weights, float *of_x) {
  const int width = shape.planes.width, small = shape.small;
  Pair pair(shape);
  Ring gradients(width, small);
  Correlation correlation(2, 1, shape.run(), small);
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    double *of_band = of_weights + size_t(number) * 2 * shape.run() * small;
    for (int y = band.from; y < band.to; y++) {
      const size_t at = band.cell(y) * small, above = shape.above(band, y);
      float *gradient = gradients.row(0);
      load_gradient(g + at, z + at, of_gradient, gradient, gradients.count());
      for (int dy = 0; dy < 2; dy++)
        correlation.add(x + above + dy * shape.length(), gradient, dy, width);
      if ((correlation.cells += width) >= CELLS_IN_FP32) correlation.flush(of_band);
      spread(products, gradient, width, pair);
      for (int dy = 0; dy < 2; dy++)
        std::copy(pair.row(dy), pair.row(dy) + shape.length(), of_x + above + dy * shape.length());
    }
    correlation.flush(of_band);
  }
}

void enlarge(const Resampling &shape, int from, int to, const float *x,
             const std::vector<Product> &products, const Table &bias, const float *other, float *y) {
  Pair pair(shape);
  Ring values(shape.planes.width, shape.small);
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    for (int row = band.from; row < band.to; row++) {
      load_input(x + band.cell(row) * shape.small, nullptr, values.row(0), values.count());
      spread(products, values.row(0), shape.planes.width, pair);
      for (int dy = 0; dy < 2; dy++) {
        const float *made = pair.row(dy);
        const size_t above = shape.above(band, row) + dy * shape.length();
        along(int(shape.length()), bias.period, [&](int at, int channel, int some) {
          const Floats sum = load_some(made + at, some) + bias.at(0, channel);
          const Floats both = sum + load_some(other + above + at, some);
          store_some(y + above + at, larger(both, Floats{}), some);
        });
      }
    }
  }
}

void enlarge_gradients(const Resampling &shape, int from, int to, const float *of_y, const float *y,
                       const float *x, const Product &product, float *g, float *of_x,
                       double *of_weights, double *of_bias) {
  const int width = shape.planes.width, small = shape.small;
  const int period = period_of(shape.large), length = int(shape.length());
  Pair pair(shape);
  Ring made(width, small);
  Correlation correlation(2, 1, small, shape.run());
  for (int number = from; number < to; number++) {
    const Band band(shape.planes, number);
    double *of_band = of_weights + size_t(number) * 2 * shape.run() * small;
    double *const sums[1] = {of_bias + size_t(number) * shape.large};
    for (int row = band.from; row < band.to; row++) {
      const size_t at_row = band.cell(row) * small;
      for (int dy = 0; dy < 2; dy++) {
        const size_t above = shape.above(band, row) + dy * shape.length();
        float *masked = pair.row(dy);
        along(length, period, [&](int at, int, int some) {
          const Floats found = load_some(of_y + above + at, some);
          const Floats kept = load_some(y + above + at, some) > 0.0f ? found : Floats{};
          store_some(masked + at, kept, some), store_some(g + above + at, kept, some);
        });
        add_by_channel<1>(
            length, shape.large, period, [&](int at, int, Floats *found) { *found = load(masked + at); },
            [&](int at, int, float *found) { *found = masked[at]; }, sums);
        correlation.add(x + at_row, masked, dy, width);
      }
      if ((correlation.cells += width) >= CELLS_IN_FP32) correlation.flush(of_band);
      const float *rows[2] = {pair.row(0), pair.row(1)};
      product.run(rows, width, made.row(0));
      std::copy(made.row(0), made.row(0) + made.count(), of_x + at_row);
    }
    correlation.flush(of_band);
  }
}

} // namespace

extern "C" int32_t halve_forward(const float *x, const float *weights, int32_t height, int32_t width,
                                 int32_t band, int32_t large, int32_t small, int32_t from, int32_t to,
                                 float *z, double *moments) {
  return guarded([&] {
    const Resampling shape{{height, width, band}, large, small};
    halve(shape, from, to, x, Product(2, shape.run(), shape.run(), small, weights), z, moments);
  });
}

extern "C" int32_t halve_backward(const float *g, const float *z, const float *of_gradient,
                                  const float *x, const float *weights, int32_t height, int32_t width,
                                  int32_t band, int32_t large, int32_t small, int32_t from, int32_t to,
                                  double *of_weights, float *of_x) {
  return guarded([&] {
    const Resampling shape{{height, width, band}, large, small};
    halve_gradients(shape, from, to, g, z, Table(of_gradient, 4, small), x, spreading(shape, weights),
                    of_weights, of_x);
  });
}

extern "C" int32_t double_forward(const float *x, const float *weights, const float *bias,
                                  const float *other, int32_t height, int32_t width, int32_t band,
                                  int32_t large, int32_t small, int32_t from, int32_t to, float *y) {
  return guarded([&] {
    const Resampling shape{{height, width, band}, large, small};
    enlarge(shape, from, to, x, spreading(shape, weights), Table(bias, 1, large), other, y);
  });
}

extern "C" int32_t double_backward(const float *of_y, const float *y, const float *x,
                                   const float *weights, int32_t height, int32_t width, int32_t band,
                                   int32_t large, int32_t small, int32_t from, int32_t to, float *g,
                                   float *of_x, double *of_weights, double *of_bias) {
  return guarded([&] {
    const Resampling shape{{height, width, band}, large, small};
    enlarge_gradients(shape, from, to, of_y, y, x, Product(2, shape.run(), shape.run(), small, weights),
                      g, of_x, of_weights, of_bias);
  });
}
