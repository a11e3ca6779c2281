// Score -> grey picture of the photograph's size. Called through ctypes by scores.py.
#ifdef __clang__ // products are rounded before they are added, as Pillow's are
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include "border.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Two neighbours of an output pixel among `from` input pixels, and their shares, as Pillow's
// bilinear resize has them: triangles in double, scaled to a sum of 1.
struct Neighbours {
  int32_t first, last;
  double first_share, last_share;
};

std::vector<Neighbours> triangles(int from, int to) {
  std::vector<Neighbours> found;
  const double scale = double(from) / to;
  for (int at = 0; at < to; at++) {
    const double centre = (at + 0.5) * scale;
    const int first = std::max(int(centre - 0.5), 0), last = std::min(first + 1, from - 1);
    const double a = 1 - std::fabs(first - centre + 0.5);
    const double b = last > first ? std::max(1 - std::fabs(last - centre + 0.5), 0.0) : 0;
    found.push_back({first, last, a / (a + b), b / (a + b)});
  }
  return found;
}

// Up to four output pixels, the first of them `at`, that have the same neighbours.
struct Four {
  int32_t first, last, at, count;
  double first_share[4], last_share[4];
};

std::vector<Four> fours(const std::vector<Neighbours> &columns) {
  std::vector<Four> found;
  for (int x = 0; x < int(columns.size()); x++) {
    const Neighbours &near = columns[x];
    if (found.empty() || found.back().first != near.first || found.back().count == 4)
      found.push_back({near.first, near.last, x, 0, {}, {}});
    Four &four = found.back();
    four.first_share[four.count] = near.first_share;
    four.last_share[four.count++] = near.last_share;
  }
  return found;
}

// A row of the score -> as many pixels as there are columns; 3 behind them are written to as well.
void across(const float *__restrict row, const std::vector<Four> &columns, float *__restrict out) {
  for (const Four &four : columns) {
    const double first = row[four.first], last = row[four.last];
    for (int n = 0; n < 4; n++) // beyond its count are those of the next, which writes them anew
      out[four.at + n] = float(first * four.first_share[n] + last * four.last_share[n]);
  }
}

// Two such rows, and their shares, -> levels where the mask is not 0.
void down_exactly(const float *__restrict upper, const float *__restrict lower, double a, double b,
                  const uint8_t *__restrict inside, int width, uint8_t *__restrict out) {
  for (int x = 0; x < width; x++) {
    const float value = float(upper[x] * a + lower[x] * b);
    const float level = std::nearbyint(255.0f * std::min(1.0f, std::max(0.0f, value)));
    out[x] = inside[x] ? uint8_t(level) : 0;
  }
}

constexpr int STEP = 64; // pixels

// As down_exactly for STEP pixels of scores from 0 to 1, but in float, with shares times 255: less
// than 1e-4 off before it is rounded. Whether that makes no difference: none lies so near to the
// middle of two levels, or beyond 0 to 255.
bool down_quickly(const float *__restrict upper, const float *__restrict lower, float a, float b,
                  const uint8_t *__restrict inside, uint8_t *__restrict out) {
  constexpr float WHOLE = 12582912; // 1.5 * 2^23: a sum with it is rounded, its low bits the level
  constexpr int32_t WHOLE_BITS = 0x4b400000;
  int32_t unsure = 0;
  for (int x = 0; x < STEP; x++) {
    const float level = upper[x] * a + lower[x] * b, rounded = level + WHOLE;
    int32_t bits;
    std::memcpy(&bits, &rounded, 4);
    unsure |= (std::fabs(level - (rounded - WHOLE)) > 0.4999f) | ((bits ^ WHOLE_BITS) >> 8);
    out[x] = inside[x] ? uint8_t(bits) : 0;
  }
  return !unsure;
}

void down(const float *upper, const float *lower, double a, double b, const uint8_t *inside,
          int width, uint8_t *out) {
  int x = 0;
  for (; x + STEP <= width; x += STEP)
    if (!down_quickly(upper + x, lower + x, float(255 * a), float(255 * b), inside + x, out + x))
      down_exactly(upper + x, lower + x, a, b, inside + x, STEP, out + x);
  down_exactly(upper + x, lower + x, a, b, inside + x, width - x, out + x);
}

// score [side, side] with geometry's scaled box in the upper left corner, mask [H, W] -> levels
// [H, W].
void enlarge(const float *score, const uint8_t *mask, int32_t side, const int32_t *geometry,
             uint8_t *levels) {
  const int height = geometry[0], width = geometry[1], top = geometry[2], left = geometry[3];
  const int box_height = geometry[4], box_width = geometry[5];
  const std::vector<Neighbours> of_row = triangles(geometry[6], box_height);
  const std::vector<Four> columns = fours(triangles(geometry[7], box_width));
  std::vector<float> rows[2]; // even and odd source row, of the box's width
  for (auto &row : rows) row.resize(box_width + 3);
  int held[2] = {-1, -1};
  size_t done = 0; // levels
  const auto clear = [&](size_t end) { std::memset(levels + done, 0, end - done); };
  for (int y = 0; y < box_height; y++) {
    const Neighbours &near = of_row[y];
    for (int source : {near.first, near.last})
      if (held[source & 1] != source) {
        across(score + size_t(source) * side, columns, rows[source & 1].data());
        held[source & 1] = source;
      }
    const size_t at = size_t(top + y) * width + left;
    clear(at);
    down(rows[near.first & 1].data(), rows[near.last & 1].data(), near.first_share,
         near.last_share, mask + at, box_width, levels + at);
    done = at + box_width;
  }
  clear(size_t(height) * width);
}

} // namespace

extern "C" int32_t native_score(const float *score, const uint8_t *mask, int32_t side,
                                const int32_t *geometry, uint8_t *levels) {
  return guarded([&] { enlarge(score, mask, side, geometry, levels); });
}
