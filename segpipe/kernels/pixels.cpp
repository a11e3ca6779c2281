// What a training step begins and ends with on a CPU: pixels as cells, and the loss. Called through
// ctypes by layers.py, which says what each argument is.
#include "border.h"
#include "planes.h"
#include <cmath>

namespace {

constexpr int CLASSES = 3;

// The pixels of a row of cells, square by square: a class's logits after the other's, and what its
// probability is to be; of a pixel that is not counted that is 0 for all.
template <int SQUARE> struct Pixels {
  static constexpr int EACH = SQUARE * SQUARE; // of a cell
  int width, stride, count; // stride: floats of a cell
  const float *targets; // of each label, those of its classes
  Floats64 logits[CLASSES], truth[CLASSES];

  Pixels(int new_width, int new_stride, const float *new_targets)
      : width(new_width), stride(new_stride), count(width * EACH), targets(new_targets) {
    for (auto &plane : logits) plane.assign(padded(count, LANES));
    for (auto &plane : truth) plane.assign(padded(count, LANES));
  }

  void read(const float *row, const uint8_t *labels) {
    for (int k = 0; k < CLASSES; k++)
      for (int x = 0; x < width; x++)
        std::memcpy(logits[k].data() + x * EACH, row + x * stride + k * EACH, sizeof(float) * EACH);
    float *to[CLASSES];
    for (int k = 0; k < CLASSES; k++) to[k] = truth[k].data();
    for (int x = 0; x < width; x++)
      for (int dy = 0; dy < SQUARE; dy++)
        for (int dx = 0; dx < SQUARE; dx++) {
          const float *target = targets + labels[(dy * width + x) * SQUARE + dx] * CLASSES;
          for (int k = 0; k < CLASSES; k++) *to[k]++ = target[k];
        }
  }

  // p(class), less what it is to be, in the logits' place -> the sum of the cross entropies.
  double differentiate() {
    double loss = 0;
    Floats product = all(1.0f), below = {};
    int factors = 0;
    for (int at = 0; at < count; at += LANES) {
      Floats logit[CLASSES], power[CLASSES], target[CLASSES];
      for (int k = 0; k < CLASSES; k++)
        logit[k] = load(logits[k].data() + at), target[k] = load(truth[k].data() + at);
      const Floats top = larger(larger(logit[0], logit[1]), logit[2]);
      const Floats counted = target[0] + target[1] + target[2];
      Floats total = {}, mine = {};
      for (int k = 0; k < CLASSES; k++) {
        power[k] = exponential(larger(logit[k] - top, all(-87.0f)));
        total += power[k];
        mine += target[k] * logit[k];
      }
      const Floats scale = counted / total;
      for (int k = 0; k < CLASSES; k++)
        store(logits[k].data() + at, power[k] * scale - target[k]);
      below += top * counted - mine;
      product *= counted > 0.0f ? total : all(1.0f);
      if (++factors == 64 || at + LANES >= count) { // 3 to the 64 is a float still
        for (int lane = 0; lane < LANES; lane++) loss += std::log(double(product[lane]));
        product = all(1.0f), factors = 0;
      }
    }
    for (int lane = 0; lane < LANES; lane++) loss += below[lane];
    return loss;
  }

  void write(float *row) const {
    for (int k = 0; k < CLASSES; k++)
      for (int x = 0; x < width; x++)
        std::memcpy(row + x * stride + k * EACH, logits[k].data() + x * EACH, sizeof(float) * EACH);
    for (int k = CLASSES * EACH; k < stride; k++)
      for (int x = 0; x < width; x++) row[x * stride + k] = 0;
  }
};

template <int SQUARE>
void differentiate(const Planes &planes, int from, int to, const float *logits, const uint8_t *labels,
                   const float *targets, int channels, float *gradient, double *loss) {
  Pixels<SQUARE> pixels(planes.width, channels, targets);
  for (int number = from; number < to; number++) {
    const Band rows(planes, number);
    for (int y = rows.from; y < rows.to; y++) {
      const size_t cell = rows.cell(y);
      pixels.read(logits + cell * channels, labels + cell * SQUARE * SQUARE);
      loss[number] += pixels.differentiate();
      pixels.write(gradient + cell * channels);
    }
  }
}

template <int SQUARE>
void make_cells(const Planes &planes, int from, int to, const uint8_t *image, int channels, float *cells) {
  constexpr int EACH = SQUARE * SQUARE, COLOURS = 3;
  const size_t length = size_t(planes.width) * SQUARE * COLOURS; // of a row of pixels
  for (int number = from; number < to; number++) {
    const Band rows(planes, number);
    for (int y = rows.from; y < rows.to; y++) {
      const uint8_t *pixels = image + rows.cell(y) * EACH * COLOURS;
      float *at = cells + rows.cell(y) * channels;
      for (int x = 0; x < planes.width; x++, pixels += SQUARE * COLOURS, at += channels) {
        for (int colour = 0; colour < COLOURS; colour++)
          for (int dy = 0; dy < SQUARE; dy++)
            for (int dx = 0; dx < SQUARE; dx++)
              at[colour * EACH + dy * SQUARE + dx] =
                  float(pixels[dy * length + dx * COLOURS + colour]) / 255.0f;
        for (int k = COLOURS * EACH; k < channels; k++) at[k] = 0;
      }
    }
  }
}

} // namespace

// The gradient of the cross entropy, summed over all pixels, and that sum, of each band; square is 1
// or 2.
extern "C" int32_t likelihood(const float *logits, const uint8_t *labels, const float *targets,
                              int32_t square, int32_t height, int32_t width, int32_t band, int32_t channels,
                              int32_t from, int32_t to, float *gradient, double *loss) {
  return guarded([&] {
    const auto run = square == 1 ? differentiate<1> : differentiate<2>;
    run({height, width, band}, from, to, logits, labels, targets, channels, gradient, loss);
  });
}

// Squares of pixels as cells, a colour's pixels after the other's, and zeros; square is 1 or 2.
extern "C" int32_t square_cells(const uint8_t *image, int32_t square, int32_t height, int32_t width,
                                int32_t band, int32_t channels, int32_t from, int32_t to,
                                float *cells) {
  return guarded([&] {
    const auto run = square == 1 ? make_cells<1> : make_cells<2>;
    run({height, width, band}, from, to, image, channels, cells);
  });
}
