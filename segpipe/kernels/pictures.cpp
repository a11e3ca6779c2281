// A picture of bytes in another size, bilinear, with the levels of Pillow's `resize`: its filter's
// weights in 22 bits behind the point, rows first, rounded to bytes between (its Resample.c).
#include "border.h"
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int BITS = 22, HALF = 1 << (BITS - 1);

// Of each output the inputs that it is made of, in one direction.
struct Weights {
  int taps; // of the output that has most: 3, or 5 where the picture becomes smaller
  std::vector<int32_t> first, weight; // [to]; [taps][to]

  // The part of `from` pixels from `begin` to `end` becomes `to` of them.
  Weights(int from, float begin, float end, int to) : first(to) {
    const double scale = double(end - begin) / to, wide = std::max(scale, 1.0);
    taps = 2 * int(std::ceil(wide)) + 1;
    weight.assign(size_t(taps) * to, 0);
    std::vector<double> share(taps);
    for (int at = 0; at < to; at++) {
      const double centre = begin + (at + 0.5) * scale;
      first[at] = std::max(0, int(centre - wide + 0.5));
      const int count = std::min(from, int(centre + wide + 0.5)) - first[at];
      double sum = 0;
      for (int k = 0; k < count; k++)
        sum += share[k] = std::max(0.0, 1 - std::fabs((first[at] + k - centre + 0.5) * (1 / wide)));
      for (int k = 0; k < count; k++)
        weight[size_t(k) * to + at] = int32_t(0.5 + share[k] * (1 / sum) * (1 << BITS));
      first[at] = std::max(0, std::min(first[at], from - 1));
    }
  }

  // The same for each of the bytes that a pixel has side by side.
  void of_bytes(int channels) {
    const int to = int(first.size());
    const std::vector<int32_t> pixels = std::move(first), shares = std::move(weight);
    first.resize(size_t(to) * channels), weight.resize(size_t(taps) * to * channels);
    for (int at = 0; at < to * channels; at++) {
      first[at] = pixels[at / channels] * channels + at % channels;
      for (int k = 0; k < taps; k++)
        weight[size_t(k) * to * channels + at] = shares[size_t(k) * to + at / channels];
    }
  }

  // How many inputs the output has, at most `taps`.
  int count(int at) const {
    int some = taps;
    while (some > 1 && !this->at(some - 1, at)) some--;
    return some;
  }
  int32_t at(int tap, int to) const { return weight[size_t(tap) * first.size() + to]; }
};

// A row of numbers -> one of `to` bytes. There are TAPS pixels behind it.
template <int TAPS>
void across(const int32_t *__restrict numbers, const Weights &weights, int channels, int to,
            uint8_t *__restrict out) {
  const int32_t *__restrict first = weights.first.data(), *__restrict weight = weights.weight.data();
  for (int at = 0; at < to; at++) {
    const int32_t *near = numbers + first[at];
    int32_t sum = HALF;
#pragma GCC unroll 5
    for (int k = 0; k < TAPS; k++) sum += weight[size_t(k) * to + at] * near[k * channels];
    out[at] = uint8_t(sum >> BITS);
  }
}

// Rows of `to` bytes, `near` the first of them -> the row y of the result.
template <int TAPS>
void down(const uint8_t *__restrict near, const Weights &weights, int y, int to, uint8_t *__restrict out) {
  int32_t weight[TAPS];
  for (int k = 0; k < TAPS; k++) weight[k] = weights.at(k, y);
  for (int x = 0; x < to; x++) {
    int32_t sum = HALF;
#pragma GCC unroll 5
    for (int k = 0; k < TAPS; k++) sum += weight[k] * near[x + size_t(k) * to];
    out[x] = uint8_t(sum >> BITS);
  }
}

} // namespace

extern "C" int32_t resized_levels(const uint8_t *picture, int32_t height, int32_t width,
                                  int32_t channels, const float *box, int32_t to_height,
                                  int32_t to_width, uint8_t *resized) {
  return guarded([&] {
    const int from = width * channels, to = to_width * channels;
    Weights columns(width, box[0], box[2], to_width);
    const Weights rows(height, box[1], box[3], to_height);
    columns.of_bytes(channels);
    std::vector<int32_t> numbers(from + size_t(columns.taps) * channels);
    std::vector<uint8_t> wide(size_t(height + rows.taps) * to);
    const int end = std::min(height, rows.first.back() + rows.taps);
    for (int y = rows.first.front(); y < end; y++) {
      std::copy(picture + size_t(y) * from, picture + size_t(y + 1) * from, numbers.data());
      uint8_t *out = &wide[size_t(y) * to];
      if (columns.taps == 3)
        across<3>(numbers.data(), columns, channels, to, out);
      else
        across<5>(numbers.data(), columns, channels, to, out);
    }
    for (int y = 0; y < to_height; y++) {
      const uint8_t *near = &wide[size_t(rows.first[y]) * to];
      uint8_t *out = resized + size_t(y) * to;
      switch (rows.count(y)) { // nearly always two, where nothing becomes smaller
      case 1:
      case 2: down<2>(near, rows, y, to, out); break;
      case 3: down<3>(near, rows, y, to, out); break;
      case 4: down<4>(near, rows, y, to, out); break;
      default: down<5>(near, rows, y, to, out);
      }
    }
  });
}
