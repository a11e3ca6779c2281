// segnet-lite: its score of a canvas, and its loss and gradients on a crop. Called through ctypes by
// segnet_lite.py, which says what each argument is.
//
// Both walk over rows of 2x2 pooling windows, LANES channels in a vector. Images lie as rows of
// interleaved pixels with one of padding around, so that the window that begins at pixel x of row y
// sees pixels x - 1 to x + 2 of rows y - 1 to y + 2: a patch of 4x4, in which each of its four
// positions has a 3x3 neighbourhood of 27 values.
#include "border.h"
#include "lanes.h"
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int PAIR = 2;        // windows at once, which share the loading of each weight
constexpr int STRIP = 32;      // windows whose kept maxima stay in a core's nearest caches
constexpr int MAX_WIDTH = 512; // channels
constexpr int TAPS = 27;       // 3x3 pixels of 3 channels
constexpr int STEP = 6;        // floats from one window to the next
constexpr int SPARE = STEP * PAIR; // floats behind a row, for a window too many
constexpr int CLASSES = 3;
constexpr int NOWHERE = 4; // the position of a maximum that ReLU cuts off
constexpr int FOOTPRINT = 16;                // pixels of 4x4 that a kept maximum adds to
constexpr int KERNEL_ROWS = LANES == 16 ? 3 : 1; // whose sums stay in registers together

// A vector of channels of a 3x3 convolution at the four positions of PAIR windows.
struct Positions {
  Floats at[4][PAIR];

  inline Positions(const float *const rows[4], int left, const float *weights, Floats offset) {
    Floats a[PAIR], b[PAIR], c[PAIR], d[PAIR];
    for (int n = 0; n < PAIR; n++) a[n] = b[n] = c[n] = d[n] = offset;
    for (int row = 0; row < 3; row++)
      for (int k = 0; k < 9; k++) {
        const Floats weight = load(weights + (row * 9 + k) * LANES);
        const float *upper = rows[row] + left + k, *lower = rows[row + 1] + left + k;
#pragma GCC unroll 2
        for (int n = 0; n < PAIR; n++) {
          a[n] += weight * upper[STEP * n];
          b[n] += weight * upper[STEP * n + 3];
          c[n] += weight * lower[STEP * n];
          d[n] += weight * lower[STEP * n + 3];
        }
      }
    for (int n = 0; n < PAIR; n++) at[0][n] = a[n], at[1][n] = b[n], at[2][n] = c[n], at[3][n] = d[n];
  }

  // The first maximum of window n, and in `place` how many times `unit` its position is.
  inline Floats first_maximum(int n, Ints &place, int unit) const {
    const Ints base = place;
    Floats highest = at[0][n];
    for (int position = 1; position < 4; position++) {
      const Ints later = at[position][n] > highest;
      highest = later ? at[position][n] : highest;
      place = later ? base + position * unit : place;
    }
    return highest;
  }
};

void to_floats(const uint8_t *__restrict from, int count, float *__restrict to) {
  for (int at = 0; at < count; at++) to[at] = from[at];
}

} // namespace

static void find_scores(const uint8_t *canvas, int32_t side, const int32_t *spans, int32_t width,
                        const float *encoder, const float *decoder, float bias, float *scores) {
  // Row r of the canvas, and what is summed up for it, lies in slot r & 3 with a pixel to its left:
  // a row of windows reads four rows and adds to four, of which two are then complete.
  std::vector<float> pixels[4], sums[4];
  for (int slot = 0; slot < 4; slot++) {
    pixels[slot].assign((side + 2) * 3 + SPARE, 0.0f);
    sums[slot].assign(side + 2, 0.0f);
  }
  const auto read_row = [&](int y) {
    float *to = pixels[y & 3].data() + 3;
    if (y < side)
      to_floats(canvas + size_t(y) * side * 3, side * 3, to);
    else
      std::memset(to, 0, sizeof(float) * side * 3);
    std::fill(sums[y & 3].begin(), sums[y & 3].end(), 0.0f);
  };
  alignas(64) float kept[STRIP][MAX_WIDTH];
  alignas(64) int32_t footprint[STRIP][MAX_WIDTH];
  std::memset(scores, 0, sizeof(float) * side * side);
  read_row(0);
  for (int i = 0; i <= side / 2; i++) { // rows of windows, and the end of the last
    read_row(2 * i + 1), read_row(2 * i + 2);
    const float *in[4];
    float *out[4];
    for (int row = 0; row < 4; row++) {
      in[row] = pixels[(2 * i - 1 + row) & 3].data();
      out[row] = sums[(2 * i - 1 + row) & 3].data();
    }
    const int end = i < side / 2 ? spans[2 * i + 1] : 0;
    for (int start = end ? spans[2 * i] : 0; start < end; start += STRIP) {
      const int count = end - start < STRIP ? end - start : STRIP;
      for (int block = 0; block < width / LANES; block++) {
        const float *weights = encoder + block * (TAPS + 1) * LANES;
        Ints at_first;
        for (int lane = 0; lane < LANES; lane++) at_first[lane] = (block * LANES + lane) * 4 * FOOTPRINT;
        for (int j = 0; j < count; j += PAIR) { // of an odd count one window too many
          const Positions sum(in, STEP * (start + j), weights, load(weights + TAPS * LANES));
#pragma GCC unroll 2
          for (int n = 0; n < PAIR; n++) {
            Ints at = at_first;
            const Floats highest = sum.first_maximum(n, at, FOOTPRINT);
            store(&kept[j + n][block * LANES], larger(highest, Floats{}));
            store(&footprint[j + n][block * LANES], at);
          }
        }
      }
      for (int j = 0; j < count; j++) {
        constexpr int PARTS = FOOTPRINT / LANES;
        Floats sum[4][PARTS] = {};
        for (int c = 0; c < width; c += 4)
#pragma GCC unroll 4
          for (int k = 0; k < 4; k++)
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; part++)
              sum[k][part] += load(decoder + footprint[j][c + k] + part * LANES) * kept[j][c + k];
        float window[FOOTPRINT];
        for (int part = 0; part < PARTS; part++)
          store(window + part * LANES, (sum[0][part] + sum[1][part]) + (sum[2][part] + sum[3][part]));
        for (int row = 0; row < 4; row++)
          for (int k = 0; k < 4; k++) out[row][2 * (start + j) + k] += window[row * 4 + k];
      }
    }
    for (int row = 0; row < 2; row++) { // 2 i - 1 and 2 i are complete
      const int y = 2 * i - 1 + row;
      if (y < 0 || y >= side) continue;
      const int first = 2 * spans[y / 2 * 2], columns = 2 * spans[y / 2 * 2 + 1] - first;
      float *to = scores + size_t(y) * side + first;
      for (int x = 0; x < columns; x++) to[x] = out[row][1 + first + x] + bias;
      if (columns > 0) sigmoid(to, columns);
    }
  }
}

namespace {

// A row of windows: what each channel keeps, and at which of its positions. [blocks][windows][LANES]
struct Kept {
  std::vector<float> values;
  std::vector<int32_t> positions;
  explicit Kept(size_t count) : values(count), positions(count) {}
};

// logits += what the kept maxima of a row of windows add to the 4x4 patches around them.
void scatter(const Kept &kept, int blocks, int room, int windows, const float *patches,
             float *const rows[4]) {
  constexpr int PATCH = FOOTPRINT * CLASSES, PARTS = PATCH / LANES;
  for (int j = 0; j < windows; j++) {
    Floats sum[2][PARTS] = {};
    for (int block = 0; block < blocks; block++) {
      const size_t place = (size_t(block) * room + j) * LANES;
      const float *of_block = patches + size_t(block) * LANES * 4 * PATCH;
#pragma GCC unroll 4
      for (int c = 0; c < LANES; c++) { // NOWHERE keeps 0 and may add it anywhere
        const int position = kept.positions[place + c] & 3;
        const float *from = of_block + (c * 4 + position) * PATCH;
        for (int part = 0; part < PARTS; part++)
          sum[c & 1][part] += load(from + part * LANES) * kept.values[place + c];
      }
    }
    float patch[PATCH];
    for (int part = 0; part < PARTS; part++)
      store(patch + part * LANES, sum[0][part] + sum[1][part]);
    for (int row = 0; row < 4; row++)
      for (int k = 0; k < 4 * CLASSES; k++)
        rows[row][STEP * j + k] += patch[row * 4 * CLASSES + k];
  }
}

// sums [27][LANES] += over a row of windows: a value times the 3x3x3 neighbourhood of its position.
void correlate(const float *values, const int32_t *positions, int windows,
               const float *const rows[4], double *sums) {
  for (int first = 0; first < 3; first += KERNEL_ROWS) {
    Floats sum[KERNEL_ROWS * 9] = {};
    for (int j = 0; j < windows; j++) {
      const Floats value = load(values + j * LANES);
      const Ints place = load(positions + j * LANES);
      for (int position = 0; position < 4; position++) {
        const Floats here = place == position ? value : Floats{};
        const int left = STEP * j + 3 * (position & 1);
#pragma GCC unroll 3
        for (int row = 0; row < KERNEL_ROWS; row++)
#pragma GCC unroll 9
          for (int k = 0; k < 9; k++)
            sum[row * 9 + k] += here * rows[position / 2 + first + row][left + k];
      }
    }
    for (int tap = 0; tap < KERNEL_ROWS * 9; tap++)
      for (int lane = 0; lane < LANES; lane++) sums[(first * 9 + tap) * LANES + lane] += sum[tap][lane];
  }
}

// A row of logits without their bias -> their gradients, p(class) less 1 for the true one, in place,
// with zeros around. Adds to the bias's gradient, and returns the sum of -log p(true class).
struct Softmax {
  std::vector<float> plane[CLASSES];
  explicit Softmax(int width) {
    for (auto &values : plane) values.resize(width + LANES);
  }

  double operator()(float *row, int stride, int width, const uint8_t *truth, const float *bias,
                    double *bias_gradient) {
    for (int k = 0; k < CLASSES; k++)
      for (int x = 0; x < width; x++) plane[k][x] = row[3 + 3 * x + k] + bias[k];
    double loss = 0;
    Floats product = all(1.0f), below = {};
    int factors = 0;
    for (int x = 0; x < width; x += LANES) {
      Ints classes;
      for (int lane = 0; lane < LANES; lane++) classes[lane] = x + lane < width ? truth[x + lane] : -1;
      Floats logit[CLASSES], power[CLASSES];
      for (int k = 0; k < CLASSES; k++) logit[k] = load(&plane[k][x]);
      const Floats top = larger(larger(logit[0], logit[1]), logit[2]);
      Floats total = {}, mine = top;
      for (int k = 0; k < CLASSES; k++) {
        power[k] = exponential(larger(logit[k] - top, all(-87.0f)));
        total += power[k];
        mine = classes == k ? logit[k] : mine;
      }
      for (int k = 0; k < CLASSES; k++)
        store(&plane[k][x], power[k] / total - (classes == k ? all(1.0f) : Floats{}));
      below += top - mine;
      product *= classes < 0 ? all(1.0f) : total;
      if (++factors == 64 || x + LANES >= width) { // 3 to the 64 is a float still
        for (int lane = 0; lane < LANES; lane++) loss += std::log(double(product[lane]));
        product = all(1.0f), factors = 0;
      }
    }
    for (int lane = 0; lane < LANES; lane++) loss += below[lane];
    std::fill(row, row + 3, 0.0f);
    std::fill(row + 3 + 3 * width, row + stride, 0.0f);
    for (int k = 0; k < CLASSES; k++) {
      float sum = 0;
      for (int x = 0; x < width; x++) row[3 + 3 * x + k] = plane[k][x], sum += plane[k][x];
      bias_gradient[k] += sum;
    }
    return loss;
  }
};

} // namespace

static double find_gradients(const uint8_t *image, const uint8_t *label, int32_t height,
                             int32_t width, int32_t channels, const float *encoder,
                             const float *decoder, const float *patches, const float *bias,
                             double *encoder_gradient, double *decoder_gradient,
                             double *bias_gradient) {
  const int stride = (width + 2) * 3 + SPARE, windows = width / 2, blocks = channels / LANES;
  const int room = windows + PAIR;
  std::vector<float> pixels(size_t(height + 2) * stride), logits(size_t(height + 2) * stride);
  std::vector<float> gradient(size_t(room) * LANES);
  Kept rows_kept[2] = {Kept(size_t(blocks) * room * LANES), Kept(size_t(blocks) * room * LANES)};
  Softmax softmax(width);
  for (int y = 0; y < height; y++)
    to_floats(image + size_t(y) * width * 3, width * 3, &pixels[size_t(y + 1) * stride + 3]);
  double loss = 0;
  const float *in[4];
  float *out[4];
  for (int i = 0; i <= height / 2; i++) { // forward in row i, then backward in the row above
    if (i < height / 2) {
      Kept &kept = rows_kept[i & 1];
      for (int row = 0; row < 4; row++) {
        in[row] = &pixels[size_t(2 * i + row) * stride];
        out[row] = &logits[size_t(2 * i + row) * stride];
      }
      for (int block = 0; block < blocks; block++) {
        const float *weights = encoder + block * (TAPS + 1) * LANES;
        for (int j = 0; j < windows; j += PAIR) {
          const Positions sum(in, STEP * j, weights, load(weights + TAPS * LANES));
#pragma GCC unroll 2
          for (int n = 0; n < PAIR; n++) {
            Ints at = {};
            const Floats highest = sum.first_maximum(n, at, 1);
            const size_t place = (size_t(block) * room + j + n) * LANES;
            store(&kept.values[place], larger(highest, Floats{}));
            store(&kept.positions[place], highest > 0.0f ? at : at * 0 + NOWHERE);
          }
        }
      }
      scatter(kept, blocks, room, windows, patches, out);
    }
    for (int y = 2 * i - 1; y <= 2 * i; y++) { // the rows that are complete now
      float *row = &logits[size_t(y + 1) * stride];
      if (y < 0 || y >= height)
        std::fill(row, row + stride, 0.0f);
      else
        loss += softmax(row, stride, width, label + size_t(y) * width, bias, bias_gradient);
    }
    if (i == 0) continue;
    for (int row = 0; row < 4; row++) {
      in[row] = &pixels[size_t(2 * i - 2 + row) * stride];
      out[row] = &logits[size_t(2 * i - 2 + row) * stride];
    }
    for (int block = 0; block < blocks; block++) {
      const float *values = &rows_kept[(i - 1) & 1].values[size_t(block) * room * LANES];
      const int32_t *positions = &rows_kept[(i - 1) & 1].positions[size_t(block) * room * LANES];
      Floats bias_sum = {};
      for (int j = 0; j < windows; j += PAIR) {
        const Positions sum(out, STEP * j, decoder + block * TAPS * LANES, Floats{});
#pragma GCC unroll 2
        for (int n = 0; n < PAIR; n++) {
          const Ints place = load(positions + (j + n) * LANES);
          Floats here = {};
          for (int position = 0; position < 4; position++)
            here = place == position ? sum.at[position][n] : here;
          if (j + n >= windows) here = Floats{};
          store(&gradient[(j + n) * LANES], here);
          bias_sum += here;
        }
      }
      double *sums = encoder_gradient + block * (TAPS + 1) * LANES;
      correlate(gradient.data(), positions, windows, in, sums);
      for (int lane = 0; lane < LANES; lane++) sums[TAPS * LANES + lane] += bias_sum[lane];
      correlate(values, positions, windows, out, decoder_gradient + block * TAPS * LANES);
    }
  }
  return loss;
}

extern "C" int32_t segnet_lite_lanes() { return LANES; }

extern "C" int32_t segnet_lite_scores(const uint8_t *canvas, int32_t side, const int32_t *spans,
                                      int32_t width, const float *encoder, const float *decoder,
                                      float bias, float *scores) {
  return guarded(
      [&] { find_scores(canvas, side, spans, width, encoder, decoder, bias, scores); });
}

extern "C" int32_t segnet_lite_gradients(const uint8_t *image, const uint8_t *label, int32_t height,
                                         int32_t width, int32_t channels, const float *encoder,
                                         const float *decoder, const float *patches,
                                         const float *bias, double *encoder_gradient,
                                         double *decoder_gradient, double *bias_gradient,
                                         double *loss) {
  return guarded([&] {
    *loss = find_gradients(image, label, height, width, channels, encoder, decoder, patches, bias,
                           encoder_gradient, decoder_gradient, bias_gradient);
  });
}
