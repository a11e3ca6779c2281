// A smaller picture whose pixels are means over areas, with the levels of OpenCV's INTER_AREA: sums
// in float, along rows first (its resize.cpp, ResizeArea_Invoker); whole numbers where areas are
// blocks of pixels. Called through ctypes by
// pictures.py.
#ifdef __clang__ // products are rounded before they are added
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include "border.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr double LEAST = 1e-3; // of a pixel that counts

// Of each of `to` outputs the inputs among `from` that its area covers, and their shares of it.
struct Areas {
  int taps = 0;
  std::vector<int32_t> input; // [taps][to]; the first input, of share 0, where there are fewer
  std::vector<float> share;
  std::vector<int32_t> count; // [to]

  Areas(int from, int to) : count(to) {
    const double scale = double(from) / to;
    taps = int(std::ceil(scale)) + 1;
    input.resize(size_t(taps) * to), share.resize(size_t(taps) * to);
    for (int at = 0; at < to; at++) {
      const double begin = at * scale, end = begin + scale, cell = std::min(scale, from - begin);
      const int last = std::min(int(std::floor(end)), from - 1);
      const int first = std::min(int(std::ceil(begin)), last);
      const auto add = [&](int one, double of) {
        const size_t place = size_t(count[at]++) * to + at;
        input[place] = one, share[place] = float(of / cell);
      };
      if (first - begin > LEAST) add(first - 1, first - begin);
      for (int one = first; one < last; one++) add(one, 1);
      if (end - last > LEAST) add(last, std::min(std::min(end - last, 1.0), cell));
    }
  }
};

// A row of numbers -> its sums over areas. At most TAPS inputs of each are looked at.
template <int TAPS>
void across(const float *__restrict numbers, const Areas &areas, float *__restrict sums) {
  const int to = int(areas.count.size());
  const int32_t *__restrict input = areas.input.data();
  const float *__restrict share = areas.share.data();
  for (int x = 0; x < to; x++) {
    float sum = 0;
#pragma GCC unroll 8
    for (int tap = 0; tap < TAPS; tap++)
      sum += numbers[input[size_t(tap) * to + x]] * share[size_t(tap) * to + x];
    sums[x] = sum;
  }
}

// Every CHANNELS-th level of a row.
template <int CHANNELS>
void widen(const uint8_t *__restrict row, int width, float *__restrict numbers) {
  for (int x = 0; x < width; x++) numbers[x] = row[x * CHANNELS];
}

void average(const uint8_t *picture, int width, int channels, const Areas &rows,
             const Areas &columns, uint8_t *out) {
  const int to_height = int(rows.count.size()), to = int(columns.count.size());
  std::vector<float> numbers(width), sums(to), sum(to);
  int done = -1;
  const auto of_row = [&](int y) {
    if (done == y) return; // the last row of an area is the first of the next
    done = y;
    const uint8_t *row = picture + size_t(y) * width * channels;
    switch (channels) {
    case 1: widen<1>(row, width, numbers.data()); break;
    case 3: widen<3>(row, width, numbers.data()); break;
    default:
      for (int x = 0; x < width; x++) numbers[x] = row[size_t(x) * channels];
    }
    switch (columns.taps) {
    case 2: across<2>(numbers.data(), columns, sums.data()); break;
    case 3: across<3>(numbers.data(), columns, sums.data()); break;
    case 4: across<4>(numbers.data(), columns, sums.data()); break;
    default:
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int x = 0; x < to; x++)
        for (int tap = 0; tap < columns.count[x]; tap++) {
          const size_t place = size_t(tap) * to + x;
          sums[x] += numbers[columns.input[place]] * columns.share[place];
        }
    }
  };
  for (int y = 0; y < to_height; y++, out += to) {
    for (int k = 0; k < rows.count[y]; k++) {
      const size_t place = size_t(k) * to_height + y;
      of_row(rows.input[place]);
      const float weight = rows.share[place];
      for (int x = 0; x < to; x++) sum[x] = k ? sum[x] + weight * sums[x] : weight * sums[x];
    }
    for (int x = 0; x < to; x++)
      out[x] = uint8_t(std::clamp(std::nearbyint(sum[x]), 0.0f, 255.0f));
  }
}

// Of each channel the sums of `side` pixels beside each other. CHANNELS is 0 where it is not known.
template <int CHANNELS>
void add_across(const uint32_t *__restrict sums, int channels, int to, int side,
                uint32_t *__restrict blocks) {
  const int num = CHANNELS ? CHANNELS : channels;
  for (int x = 0; x < to; x++, blocks += num) {
    std::fill_n(blocks, num, 0);
    for (int k = 0; k < side; k++, sums += num)
      for (int channel = 0; channel < num; channel++) blocks[channel] += sums[channel];
  }
}

// picture [height, width, channels] -> the means of its blocks of `side` x `side`, all channels; a
// half is rounded to the even level.
void average_blocks(const uint8_t *picture, int height, int width, int channels, int side,
                    uint8_t *out) {
  const int run = width * channels, to = width / side;
  std::vector<uint32_t> sums(run), blocks(size_t(to) * channels);
  for (int y = 0; y < height / side; y++) {
    std::fill(sums.begin(), sums.end(), 0);
    for (int k = 0; k < side; k++, picture += run)
      for (int x = 0; x < run; x++) sums[x] += picture[x];
    switch (channels) {
    case 1: add_across<1>(sums.data(), 1, to, side, blocks.data()); break;
    case 3: add_across<3>(sums.data(), 3, to, side, blocks.data()); break;
    default: add_across<0>(sums.data(), channels, to, side, blocks.data());
    }
    for (const uint32_t sum : blocks)
      *out++ = uint8_t(std::nearbyint(float(sum) * (1.0f / (side * side))));
  }
}

} // namespace

extern "C" int32_t block_levels(const uint8_t *picture, int32_t height, int32_t width,
                                int32_t channels, int32_t side, uint8_t *averaged) {
  return guarded([&] { average_blocks(picture, height, width, channels, side, averaged); });
}

extern "C" int32_t averaged_levels(const uint8_t *picture, int32_t height, int32_t width,
                                   int32_t channels, int32_t to_height, int32_t to_width,
                                   uint8_t *averaged) {
  return guarded([&] {
    average(picture, width, channels, Areas(height, to_height), Areas(width, to_width), averaged);
  });
}
