// Planes of a training step, [image][row][cell][channel], and what is done to their rows.
//
// Planes are walked over in bands of rows, each of which is independent of the others: sums over cells
// are one number of each band, so that they do not depend on how many threads share the bands. Rows
// are copied to where zeros are around, and what is done to them comes about on that way.
#pragma once
#include "products.h"
#include <algorithm>
#include <vector>

namespace {

constexpr int SPARE = 20; // cells behind a row, which a block of products may touch

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
inline int period_of(int channels) {
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
  bool inside(int y) const { return y >= 0 && y < height; }
};

struct Band {
  size_t image;
  int from, to; // rows
  Band(const Planes &planes, int number)
      : image(number / planes.bands()), from(number % planes.bands() * planes.band),
        to(std::min(from + planes.band, planes.height)),
        first(image * planes.height * planes.width), width(planes.width) {}
  size_t cell(int y) const { return first + size_t(y) * width; } // the row's first

private:
  size_t first;
  int width;
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
inline void load_input(const float *from, const Table *norm, float *to, int count) {
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
inline void load_gradient(const float *g, const float *z, const Table &table, float *to, int count) {
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
inline void add_moved(const float *g, const float *z, const Table &mean, int count, int channels, double *to) {
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

} // namespace
