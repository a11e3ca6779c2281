// How far pixels are from the background, and which marked one is nearest: OpenCV's chamfer
// distances by masks of 5x5 (its distransform.cpp), in its order where two are as near. Called
// through ctypes by distances.py.
#include "border.h"
#include "scan.h"
#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

template <class Number> struct Moves {
  Number straight, diagonal, knight;
};
constexpr Moves<float> PX{1, 1.4f, 2.1969f};
constexpr Moves<int32_t> PARTS{65536, 91750, 143976}; // the same in parts of px
constexpr int32_t FAR = 1 << 30;                      // such parts
constexpr int MARGIN = 2;

// vessel [height, width] of 0 and 1, empty along MARGIN px of its border -> px to the background;
// `depth` is 0 to begin with.
void measure(const uint8_t *vessel, int height, int width, float *depth) {
  int last = -1;
  float before = 0;
  // By the pixels above and before, or those behind: `side` is -1 or 1.
  const auto nearer = [&](int pixel, int side, float so_far) {
    const float *at = depth + pixel;
    const int row = side * width;
    const float knight = std::min(std::min(at[2 * row - 1], at[2 * row + 1]),
                                  std::min(at[row - 2], at[row + 2]));
    const float diagonal = std::min(at[row - 1], at[row + 1]);
    const float near = std::min(std::min(knight + PX.knight, diagonal + PX.diagonal),
                                std::min(at[row] + PX.straight, so_far));
    before = std::min(near, (last == pixel + side ? before : 0) + PX.straight);
    last = pixel;
    return before;
  };
  const size_t size = size_t(height) * width;
  each_pixel(vessel, size, [&](int32_t at) { depth[at] = nearer(at, -1, float(FAR)); });
  each_pixel_back(vessel, size, [&](int32_t at) { depth[at] = nearer(at, 1, depth[at]); });
}

// ---- which is nearest

// Of each pixel of a row, MARGIN around it: how far the nearest is that is known, and its label.
struct Row {
  int32_t *away, *label;
};

// A row by the two rows before it, the nearer one first, then by the pixel beside: of those that
// are as near the first in OpenCV's order. SIDE: 1 from left to right, -1 back.
template <int SIDE> void spread(Row row, Row near, Row far, int width) {
  struct Move {
    int rows, columns;
    int32_t parts;
  };
  constexpr Move MOVES[7] = {{2, -1, PARTS.knight},  {2, 1, PARTS.knight},
                             {1, -2, PARTS.knight},  {1, -1, PARTS.diagonal},
                             {1, 0, PARTS.straight}, {1, 1, PARTS.diagonal},
                             {1, 2, PARTS.knight}};
  int32_t *__restrict away = row.away, *__restrict label = row.label;
  for (int x = 0; x < width; x++) {
    int32_t best = away[x], of = label[x];
#pragma GCC unroll 7
    for (const Move &move : MOVES) {
      const Row &other = move.rows == 1 ? near : far;
      const int at = x + SIDE * move.columns;
      const int32_t by = other.away[at] + move.parts, its = other.label[at];
      of = by < best ? its : of;
      best = by < best ? by : best;
    }
    away[x] = best, label[x] = of;
  }
  int32_t lead = INT32_MAX, its = 0; // how far a pixel before is, less the way to it
  for (int k = 0, x = SIDE == 1 ? 0 : width - 1; k < width; k++, x += SIDE) {
    const int32_t own = away[x] - k * PARTS.straight;
    its = lead < own ? its : label[x];
    lead = lead < own ? lead : own;
    away[x] = lead + k * PARTS.straight;
    label[x] = its;
  }
}

// label [height, width]: 0 where there is none -> everywhere that of the nearest.
void label_nearest(int32_t *label, int height, int width) {
  const size_t wide = size_t(width) + 2 * MARGIN, size = wide * (height + 2 * MARGIN);
  std::vector<int32_t> away(size, FAR), labels(size);
  const auto row = [&](int y) {
    const size_t at = (y + MARGIN) * wide + MARGIN;
    return Row{&away[at], &labels[at]};
  };
  for (int y = 0; y < height; y++) {
    const int32_t *given = label + size_t(y) * width;
    const Row own = row(y);
    std::copy(given, given + width, own.label);
    for (int x = 0; x < width; x++) own.away[x] = given[x] ? 0 : FAR;
    spread<1>(own, row(y - 1), row(y - 2), width);
  }
  for (int y = height - 1; y >= 0; y--) {
    const Row own = row(y);
    spread<-1>(own, row(y + 1), row(y + 2), width);
    std::copy(own.label, own.label + width, label + size_t(y) * width);
  }
}

} // namespace

extern "C" int32_t vessel_depth(const uint8_t *vessel, int32_t height, int32_t width,
                                float *depth) {
  return guarded([&] { measure(vessel, height, width, depth); });
}

extern "C" int32_t nearest_labels(int32_t *label, int32_t height, int32_t width) {
  return guarded([&] { label_nearest(label, height, width); });
}
