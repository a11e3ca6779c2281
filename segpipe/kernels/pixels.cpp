// What a training step begins and ends with on a CPU: pixels as cells, and the loss. Called through
// ctypes by layers.py, which says what each argument is.
#include "border.h"
#include "planes.h"
#include <cmath>

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
    const Planes planes{height, width, band};
    Pixels pixels(square, width, channels);
    for (int number = from; number < to; number++) {
      const Band rows(planes, number);
      for (int y = rows.from; y < rows.to; y++) {
        const size_t cell = rows.cell(y);
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
    const Planes planes{height, width, band};
    const int each = square * square;
    for (int number = from; number < to; number++) {
      const Band rows(planes, number);
      for (int y = rows.from; y < rows.to; y++) {
        const size_t cell = rows.cell(y);
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
