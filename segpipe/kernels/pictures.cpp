// A picture of bytes in another size, bilinear or by means in boxes, with the levels of Pillow's
// `resize`: its filter's weights in 22 bits behind the point, rows first, rounded to bytes between
// (its Resample.c).
#include "border.h"
#include "lanes.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr int BITS = 22, HALF = 1 << (BITS - 1);

// Bytes of a picture: from one of its rows to the next, and from one of its pixels to the next.
struct Bytes {
  const uint8_t *first;
  int64_t row_step;
  int32_t pixel_step, height, width, channels;
  const uint8_t *row(int y) const { return first + y * row_step; }
};

constexpr int ROWS = LANES / 4; // that are worked on at once, a pixel of each side by side
typedef uint8_t Levels __attribute__((vector_size(LANES)));
typedef uint16_t Sums __attribute__((vector_size(2 * LANES)));

// By way of 16 bits: GCC 12 takes levels straight to 32 one by one.
inline Sums load(const uint32_t *pixels) {
  Levels levels;
  std::memcpy(&levels, pixels, sizeof levels);
  return __builtin_convertvector(levels, Sums);
}

inline void put(const Ints &levels, uint32_t *pixels) {
  store(pixels, __builtin_convertvector(__builtin_convertvector(levels, Sums), Levels));
}

// ROWS rows from y on -> pixels of four bytes [width][ROWS]; behind the last row that one again.
void widen(const Bytes &picture, int y, uint32_t *pixels) {
  const int last = picture.width - 1, step = picture.pixel_step;
  for (int k = 0; k < ROWS; k++) {
    const uint8_t *row = picture.row(std::min(y + k, picture.height - 1));
    for (int x = 0; x < last; x++) std::memcpy(pixels + x * ROWS + k, row + size_t(x) * step, 4);
    std::memcpy(pixels + last * ROWS + k, row + size_t(last) * step, picture.channels);
  }
}

// Pixels [to][ROWS] -> rows of the first `channels` bytes of each; those behind a row are spoilt.
void narrow(const uint32_t *pixels, int channels, int to, uint8_t *out, size_t stride) {
  for (int k = 0; k < ROWS; k++, out += stride)
    for (int x = 0; x < to; x++) std::memcpy(out + size_t(x) * channels, pixels + x * ROWS + k, 4);
}

// Of each output the inputs that it is made of, in one direction.
struct Weights {
  int taps = 2; // of the output that has most: 2 to 5
  std::vector<int32_t> first, weight; // [to]; [taps][to]

  // The part of `from` pixels from `begin` to `end` becomes `to` of them.
  Weights(int from, float begin, float end, int to) : first(to) {
    const double scale = double(end - begin) / to, wide = std::max(scale, 1.0);
    std::vector<int> counts(to);
    for (int at = 0; at < to; at++) {
      const double centre = begin + (at + 0.5) * scale;
      first[at] = std::max(0, int(centre - wide + 0.5));
      counts[at] = std::min(from, int(centre + wide + 0.5)) - first[at];
      taps = std::max(taps, counts[at]);
    }
    weight.assign(size_t(taps) * to, 0);
    std::vector<double> share(taps);
    for (int at = 0; at < to; at++) {
      const double centre = begin + (at + 0.5) * scale;
      double sum = 0;
      for (int k = 0; k < counts[at]; k++)
        sum += share[k] = std::max(0.0, 1 - std::fabs((first[at] + k - centre + 0.5) * (1 / wide)));
      for (int k = 0; k < counts[at]; k++)
        weight[size_t(k) * to + at] = int32_t(0.5 + share[k] * (1 / sum) * (1 << BITS));
      first[at] = std::max(0, std::min(first[at], from - 1));
    }
  }

  int to() const { return int(first.size()); }

  // How many inputs the output has, at most `taps`.
  int count(int at) const {
    int some = taps;
    while (some > 1 && !this->at(some - 1, at)) some--;
    return some;
  }
  int32_t at(int tap, int to) const { return weight[size_t(tap) * first.size() + to]; }
};

// Pixels [width + TAPS][ROWS] -> [to][ROWS].
template <int TAPS> void across(const uint32_t *pixels, const Weights &weights, uint32_t *out) {
  const int to = weights.to();
  const int32_t *first = weights.first.data(), *weight = weights.weight.data();
  for (int at = 0; at < to; at++) {
    const uint32_t *near = pixels + size_t(first[at]) * ROWS;
    Ints sum = Ints{} + HALF;
#pragma GCC unroll 5
    for (int k = 0; k < TAPS; k++) {
      const int32_t share = weight[size_t(k) * to + at];
      if (k > 2 && !share) break; // of most a few
      sum += share * __builtin_convertvector(load(near + k * ROWS), Ints);
    }
    put(sum >> BITS, out + size_t(at) * ROWS);
  }
}

void across(const uint32_t *pixels, const Weights &weights, uint32_t *out) {
  switch (weights.taps) {
  case 2: across<2>(pixels, weights, out); break;
  case 3: across<3>(pixels, weights, out); break;
  case 4: across<4>(pixels, weights, out); break;
  default: across<5>(pixels, weights, out);
  }
}

// Rows of one channel, of which long runs are of one level, as a mask's: a level stays as it is
// where it meets no other.
class Runs {
  const Weights &weights;
  // [width]: the first output made of what is behind pixel x, the one behind the last made of what
  // is not: between them lie those made of both.
  std::vector<int32_t> begin, end;

  uint8_t level(const uint8_t *row, int at) const {
    int32_t sum = HALF;
    const uint8_t *near = row + weights.first[at];
    for (int k = 0, num = weights.count(at); k < num; k++) sum += weights.at(k, at) * near[k];
    return uint8_t(sum >> BITS);
  }

public:
  Runs(const Weights &weights, int width)
      : weights(weights), begin(width, weights.to()), end(width, 0) {
    for (int at = weights.to() - 1; at >= 0; at--)
      if (const int last = weights.first[at] + weights.count(at) - 1; last > 0) begin[last - 1] = at;
    for (int at = 0; at < weights.to(); at++) end[weights.first[at]] = at + 1;
    for (int x = width - 2; x >= 0; x--) begin[x] = std::min(begin[x], begin[x + 1]);
    for (int x = 1; x < width; x++) end[x] = std::max(end[x], end[x - 1]);
  }

  void across(const uint8_t *row, uint8_t *out) const {
    const int last = int(begin.size()) - 1;
    int done = 0;
    const auto fill = [&](int to, uint8_t level) {
      if (to > done) std::memset(out + done, level, to - done), done = to;
    };
    for (int x = end_of_run(row, 0, last); x < last; x = end_of_run(row, x + 1, last)) {
      fill(begin[x], row[x]);
      for (; done < end[x]; done++) out[done] = level(row, done);
    }
    fill(weights.to(), row[last]);
  }

private:
  // The last pixel from x on that has x's level.
  static int end_of_run(const uint8_t *row, int x, int last) {
    for (uint64_t near, next; x + 8 <= last; x += 8) {
      std::memcpy(&near, row + x, 8), std::memcpy(&next, row + x + 1, 8);
      if (near != next) break;
    }
    while (x < last && row[x] == row[x + 1]) x++;
    return x;
  }
};

// Rows of `to` bytes -> the row y of the result.
template <int TAPS>
void down(const uint8_t *const *rows, const Weights &weights, int y, int to, uint8_t *__restrict out) {
  int32_t weight[TAPS];
  const uint8_t *near[TAPS];
  for (int k = 0; k < TAPS; k++) weight[k] = weights.at(k, y), near[k] = rows[k];
  for (int x = 0; x < to; x++) {
    int32_t sum = HALF;
#pragma GCC unroll 5
    for (int k = 0; k < TAPS; k++) sum += weight[k] * near[k][x];
    out[x] = uint8_t(sum >> BITS);
  }
}

void down(const uint8_t *const *rows, const Weights &weights, int y, int to, uint8_t *out) {
  switch (weights.count(y)) {
  case 1:
  case 2: down<2>(rows, weights, y, to, out); break; // nearly always, where nothing becomes smaller
  case 3: down<3>(rows, weights, y, to, out); break;
  case 4: down<4>(rows, weights, y, to, out); break;
  default: down<5>(rows, weights, y, to, out);
  }
}

// Each row of the picture is made as wide as the result's once, and kept while it is needed.
void resize(const Bytes &picture, const float *box, int to_height, int to_width, uint8_t *out,
            int64_t out_step) {
  constexpr int KEPT = 16; // five of a pixel's rows begin and end amid ROWS
  const int channels = picture.channels, to = to_width * channels;
  const Weights columns(picture.width, box[0], box[2], to_width);
  const Weights rows(picture.height, box[1], box[3], to_height);
  const Runs runs(columns, picture.width);
  std::vector<uint32_t> pixels(size_t(picture.width + columns.taps) * ROWS), made(to_width * ROWS);
  const size_t stride = to + sizeof(uint32_t);
  std::vector<uint8_t> kept(KEPT * stride);
  const auto make = [&](int y) { // ROWS of them
    uint8_t *wide = &kept[y % KEPT * stride];
    if (channels == 1) {
      for (int k = 0; k < std::min(ROWS, picture.height - y); k++)
        runs.across(picture.row(y + k), wide + k * stride);
      return;
    }
    widen(picture, y, pixels.data());
    across(pixels.data(), columns, made.data());
    narrow(made.data(), channels, to_width, wide, stride);
  };
  int next = rows.first.front() / ROWS * ROWS;
  for (int y = 0; y < to_height; y++, out += out_step) {
    const int first = rows.first[y], end = first + rows.count(y);
    const uint8_t *near[5];
    for (; next < end; next += ROWS) make(next);
    for (int k = 0; k < 5; k++) near[k] = &kept[(first + k) % KEPT * stride];
    down(near, rows, y, to, out);
  }
}

// Of each output the inputs that lie in it, all of one weight, as Pillow's BOX has them.
struct Boxes {
  std::vector<int32_t> first, count, weight; // [to]

  Boxes(int from, int to) : first(to), count(to), weight(to) {
    const double scale = double(from) / to, half = 0.5 * scale;
    const auto inside = [&](double away) { return away > -0.5 && away <= 0.5; };
    for (int at = 0; at < to; at++) {
      const double centre = (at + 0.5) * scale;
      const int end = std::min(from, int(centre + half + 0.5));
      first[at] = -1;
      for (int one = std::max(0, int(centre - half + 0.5)); one < end; one++)
        if (inside((one - centre + 0.5) * (1 / scale))) {
          if (!count[at]++) first[at] = one;
        }
      weight[at] = int32_t(0.5 + 1.0 / count[at] * (1 << BITS));
    }
  }

  int to() const { return int(first.size()); }
};

// Pixels [width][ROWS] -> their means in boxes [to][ROWS].
void means_across(const uint32_t *pixels, const Boxes &boxes, uint32_t *out) {
  for (int at = 0; at < boxes.to(); at++) {
    const uint32_t *near = pixels + size_t(boxes.first[at]) * ROWS;
    Sums sum = {};
    for (int k = 0; k < boxes.count[at]; k++)
      sum += load(near + k * ROWS);
    const Ints mean = (boxes.weight[at] * __builtin_convertvector(sum, Ints) + HALF) >> BITS;
    put(mean, out + size_t(at) * ROWS);
  }
}

void means_of_boxes(const Bytes &picture, int to_height, int to_width, uint8_t *out) {
  const int channels = picture.channels, to = to_width * channels;
  const Boxes columns(picture.width, to_width), rows(picture.height, to_height);
  std::vector<uint32_t> pixels(size_t(picture.width) * ROWS), made(to_width * ROWS), sums(to);
  const size_t stride = to + sizeof(uint32_t);
  std::vector<uint8_t> wide(ROWS * stride);
  int done = -1;
  for (int y = 0; y < to_height; y++, out += to) {
    std::fill(sums.begin(), sums.end(), 0);
    for (int k = 0; k < rows.count[y]; k++) {
      const int at = rows.first[y] + k;
      if (at / ROWS != done) {
        done = at / ROWS;
        widen(picture, done * ROWS, pixels.data());
        means_across(pixels.data(), columns, made.data());
        narrow(made.data(), channels, to_width, wide.data(), stride);
      }
      const uint8_t *row = &wide[at % ROWS * stride];
      for (int x = 0; x < to; x++) sums[x] += row[x];
    }
    const uint32_t weight = rows.weight[y];
    for (int x = 0; x < to; x++) out[x] = uint8_t((HALF + weight * sums[x]) >> BITS);
  }
}

} // namespace

extern "C" int32_t resized_levels(const uint8_t *picture, int64_t row_step, int32_t pixel_step,
                                  int32_t height, int32_t width, int32_t channels,
                                  const float *box, int32_t to_height, int32_t to_width,
                                  uint8_t *resized, int64_t resized_step) {
  return guarded([&] {
    resize({picture, row_step, pixel_step, height, width, channels}, box, to_height, to_width,
           resized, resized_step);
  });
}

extern "C" int32_t box_levels(const uint8_t *picture, int64_t row_step, int32_t pixel_step,
                              int32_t height, int32_t width, int32_t channels, int32_t to_height,
                              int32_t to_width, uint8_t *means) {
  return guarded([&] {
    means_of_boxes({picture, row_step, pixel_step, height, width, channels}, to_height, to_width,
                   means);
  });
}
