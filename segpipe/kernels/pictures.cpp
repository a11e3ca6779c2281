// A picture of bytes enlarged, bilinear, with the levels of Pillow's `resize`: its filter's weights
// in 22 bits behind the point, rows first, rounded to bytes between (its Resample.c).
#include "border.h"
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int BITS = 22, HALF = 1 << (BITS - 1);
constexpr int TAPS = 3; // inputs that an output may have, where nothing becomes smaller

struct Weights {
  std::vector<int32_t> first, weight[TAPS]; // [to * channels]: of each byte of a row

  // `channels` bytes a pixel that lie side by side.
  Weights(int from, int to, int channels) : first(size_t(to) * channels) {
    for (auto &one : weight) one.assign(size_t(to) * channels, 0);
    const double scale = double(from) / to;
    for (int at = 0; at < to; at++) {
      const double centre = (at + 0.5) * scale;
      const int start = std::max(0, int(centre - 0.5));
      const int count = std::min(from, int(centre + 1.5)) - start;
      double share[TAPS] = {}, sum = 0;
      for (int k = 0; k < count; k++)
        sum += share[k] = std::max(0.0, 1 - std::fabs(start + k - centre + 0.5));
      for (int c = 0; c < channels; c++) {
        first[size_t(at) * channels + c] = start * channels + c;
        for (int k = 0; k < count; k++)
          weight[k][size_t(at) * channels + c] = int32_t(0.5 + share[k] * (1 / sum) * (1 << BITS));
      }
    }
  }
};

// A row of `from` bytes -> one of `to`. `numbers` has 2 pixels behind it.
void widen(const uint8_t *row, int from, const Weights &across, int channels, int32_t *__restrict numbers,
           int to, uint8_t *__restrict out) {
  std::copy(row, row + from, numbers);
  const int32_t *__restrict first = across.first.data();
  const int32_t *__restrict a = across.weight[0].data(), *__restrict b = across.weight[1].data(),
                           *__restrict c = across.weight[2].data();
  for (int at = 0; at < to; at++) {
    const int32_t *near = numbers + first[at];
    out[at] = uint8_t((HALF + a[at] * near[0] + b[at] * near[channels] + c[at] * near[2 * channels]) >> BITS);
  }
}

} // namespace

extern "C" int32_t enlarge_levels(const uint8_t *picture, int32_t height, int32_t width,
                                  int32_t channels, int32_t to_height, int32_t to_width,
                                  uint8_t *enlarged) {
  return guarded([&] {
    const int from = width * channels, to = to_width * channels;
    const Weights across(width, to_width, channels), down(height, to_height, 1);
    std::vector<int32_t> numbers(from + 2 * channels);
    std::vector<uint8_t> wide(size_t(height + 2) * to);
    for (int y = 0; y < height; y++)
      widen(picture + size_t(y) * from, from, across, channels, numbers.data(), to, &wide[size_t(y) * to]);
    for (int y = 0; y < to_height; y++) {
      const uint8_t *__restrict near = &wide[size_t(down.first[y]) * to];
      const int32_t a = down.weight[0][y], b = down.weight[1][y], c = down.weight[2][y];
      uint8_t *__restrict out = enlarged + size_t(y) * to;
      if (c == 0) // nearly always
        for (int x = 0; x < to; x++) out[x] = uint8_t((HALF + a * near[x] + b * near[x + to]) >> BITS);
      else
        for (int x = 0; x < to; x++)
          out[x] = uint8_t((HALF + a * near[x] + b * near[x + to] + c * near[x + 2 * to]) >> BITS);
    }
  });
}
