// Vessels -> their parts of some size, their centre lines, the boxes that hold them. Called through
// ctypes by lines.py.
#include "border.h"
#include "scan.h"
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// The next pixel of a vessel from here on; the end where there is none.
const uint8_t *next(const uint8_t *at, const uint8_t *end) {
  const void *found = std::memchr(at, 1, size_t(end - at));
  return found ? static_cast<const uint8_t *>(found) : end;
}

// ---- thinning: algorithm A1 of Guo and Hall 1989

// For each of both steps: whether a pixel goes that has these bits of pixels around it. Bits go
// clockwise from the upper left, the paper's p1 to p8.
using Goes = std::array<std::array<bool, 256>, 2>;

Goes table() {
  Goes goes{};
  for (int bits = 0; bits < 256; bits++) {
    const auto p = [bits](int number) { return (bits >> ((number - 1) & 7)) & 1; };
    int pieces = 0, pairs = 0, others = 0;
    for (int k = 2; k <= 8; k += 2) {
      pieces += !p(k) && (p(k + 1) || p(k + 2));
      pairs += p(k - 1) || p(k);
      others += p(k) || p(k + 1);
    }
    const int fewest = std::min(pairs, others);
    const bool loose = pieces == 1 && (fewest == 2 || fewest == 3);
    goes[0][bits] = loose && !((p(2) || p(3) || !p(5)) && p(4));
    goes[1][bits] = loose && !((p(6) || p(7) || !p(1)) && p(8));
  }
  return goes;
}

// vessel [height, width] of 0 and 1, empty along its border -> its centre lines.
void thin(const uint8_t *vessel, int height, int width, uint8_t *line) {
  static const Goes goes = table();
  const int around[8] = {-width - 1, -width, 1 - width, 1, width + 1, width, width - 1, -1};
  const size_t size = size_t(height) * width;
  std::vector<uint8_t> bits(size), is_edge(size);
  for (size_t at = width; at < size - width; at += width) {
    const uint8_t *__restrict row = vessel + at;
    uint8_t *__restrict to = &bits[at], *__restrict is = &is_edge[at];
    for (int x = 1; x < width - 1; x++) {
      uint8_t sum = 0;
#pragma GCC unroll 8
      for (int bit = 0; bit < 8; bit++) sum |= uint8_t(row[x + around[bit]] << bit);
      to[x] = sum, is[x] = row[x] & (sum != 255);
    }
  }
  std::copy(vessel, vessel + size, line);
  std::vector<int32_t> edge, gone; // what may go: the pixels with background beside them
  each_pixel(is_edge.data(), size, [&](int32_t pixel) { edge.push_back(pixel); });
  for (int step = 0, idle = 0; idle < 2; step++) { // steps of both kinds in which nothing went
    const auto &now = goes[step % 2];
    gone.resize(edge.size());
    size_t stay = 0, going = 0;
    for (const int32_t pixel : edge) { // without branches, which nothing foretells
      const bool goes_now = now[bits[pixel]];
      gone[going] = edge[stay] = pixel;
      going += goes_now, stay += !goes_now;
    }
    edge.resize(stay), gone.resize(going);
    for (const int32_t pixel : gone) {
      line[pixel] = 0;
      for (int bit = 0; bit < 8; bit++) {
        const int near = pixel + around[bit];
        if (bits[near] == 255) edge.push_back(near);
        bits[near] &= uint8_t(~(1 << ((bit + 4) & 7)));
      }
    }
    idle = gone.empty() ? idle + 1 : 0;
  }
}

// ---- connected parts

struct Run {
  int32_t row, from, to; // columns, the last one behind
  int32_t size() const { return to - from; }
};

// The 8-connected parts of vessel [height, width] of 0 and 1, as runs of its rows.
class Parts {
  std::vector<int32_t> above; // of each run another of its part, or itself

public:
  std::vector<Run> runs;
  int of(int run) { // the run that its part is called by
    while (above[run] != run) run = above[run] = above[above[run]];
    return run;
  }
  Parts(const uint8_t *vessel, int height, int width) {
    size_t begun = 0; // where the runs of the row above begin
    for (int y = 0; y < height; y++) {
      const uint8_t *row = vessel + size_t(y) * width, *end = row + width;
      size_t other = begun; // the first run of the row above that may reach the next one
      const size_t first = runs.size();
      for (const uint8_t *at = next(row, end); at != end;) {
        const uint8_t *last = std::find(at, end, 0);
        const Run run{y, int32_t(at - row), int32_t(last - row)};
        const int number = int(runs.size());
        runs.push_back(run), above.push_back(number);
        while (other < first && runs[other].to < run.from) other++;
        for (size_t k = other; k < first && runs[k].from <= run.to; k++) above[of(int(k))] = number;
        at = next(last, end);
      }
      begun = first;
    }
  }
};

// vessel [height, width] of 0 and 1: parts of less than `least` pixels go -> how many stay.
int remove_specks(uint8_t *vessel, int height, int width, double least) {
  Parts parts(vessel, height, width);
  const std::vector<Run> &runs = parts.runs;
  std::vector<int32_t> area(runs.size());
  for (size_t k = 0; k < runs.size(); k++) area[parts.of(int(k))] += runs[k].size();
  int stay = 0;
  for (size_t k = 0; k < runs.size(); k++) {
    const Run &run = runs[k];
    const int part = parts.of(int(k));
    stay += part == int(k) && area[part] >= least;
    uint8_t *row = vessel + size_t(run.row) * width;
    if (area[part] < least) std::fill(row + run.from, row + run.to, 0);
  }
  return stay;
}

// vessel [height, width] of 0 and 1 -> how many parts it has, and how many pixels are of those that
// reach over `least` rows or columns.
void count_parts(const uint8_t *vessel, int height, int width, int least, int32_t *counts) {
  struct Box {
    int top = INT32_MAX, bottom = 0, left = INT32_MAX, right = 0, area = 0;
  };
  Parts parts(vessel, height, width);
  std::vector<Box> boxes(parts.runs.size());
  for (size_t k = 0; k < boxes.size(); k++) {
    const Run &run = parts.runs[k];
    Box &box = boxes[parts.of(int(k))];
    box.top = std::min(box.top, run.row), box.bottom = std::max(box.bottom, run.row + 1);
    box.left = std::min(box.left, run.from), box.right = std::max(box.right, run.to);
    box.area += run.size();
  }
  for (const Box &box : boxes) {
    counts[0] += box.area > 0;
    if (std::max(box.bottom - box.top, box.right - box.left) >= least) counts[1] += box.area;
  }
}

// ---- boxes that hold vessel

// cells [height, width] of 0 and 1: how many boxes of a grid of this side hold any, the mean over
// the grid's places, `offsets` along each axis.
class Boxes {
  int height, width;
  std::vector<int32_t> sums; // of the cells above and to the left of a corner
  // Where boxes begin and end along an axis of `size` cells.
  static std::vector<int32_t> edges(int size, int side, int from) {
    std::vector<int32_t> found{0};
    for (int at = from; at < size; at += side)
      if (at > 0) found.push_back(at);
    found.push_back(size);
    return found;
  }
  int count(int side, int down, int right) const { // a box begins there
    const std::vector<int32_t> rows = edges(height, side, down), columns = edges(width, side, right);
    int held = 0;
    for (size_t r = 1; r < rows.size(); r++) {
      const int32_t *upper = &sums[size_t(rows[r - 1]) * (width + 1)];
      const int32_t *lower = &sums[size_t(rows[r]) * (width + 1)];
      int32_t before = 0;
      for (size_t c = 1; c < columns.size(); c++) {
        const int32_t so_far = lower[columns[c]] - upper[columns[c]];
        held += so_far > before, before = so_far;
      }
    }
    return held;
  }

public:
  Boxes(const uint8_t *cells, int height, int width)
      : height(height), width(width), sums(size_t(height + 1) * (width + 1)) {
    for (int y = 0; y < height; y++)
      for (int x = 0, row = 0; x < width; x++) {
        row += cells[size_t(y) * width + x];
        sums[size_t(y + 1) * (width + 1) + x + 1] = sums[size_t(y) * (width + 1) + x + 1] + row;
      }
  }
  double mean(int side, int offsets) const {
    int held = 0, grids = 0;
    for (int a = 0; a < offsets; a++)
      for (int b = 0; b < offsets; b++) {
        const int down = side * a / offsets, right = side * b / offsets;
        const bool again = (a && down == side * (a - 1) / offsets) ||
                           (b && right == side * (b - 1) / offsets);
        if (again) continue;
        held += count(side, down, right), grids++;
      }
    return double(held) / grids;
  }
};

} // namespace

extern "C" int32_t box_counts(const uint8_t *cells, int32_t height, int32_t width,
                              const int32_t *sides, int32_t num, int32_t offsets, double *means) {
  return guarded([&] {
    const Boxes boxes(cells, height, width);
    for (int k = 0; k < num; k++) means[k] = boxes.mean(sides[k], offsets);
  });
}

extern "C" int32_t thin_lines(const uint8_t *vessel, int32_t height, int32_t width, uint8_t *line) {
  return guarded([&] { thin(vessel, height, width, line); });
}

extern "C" int32_t without_specks(uint8_t *vessel, int32_t height, int32_t width, double least,
                                  int32_t *stay) {
  return guarded([&] { *stay = remove_specks(vessel, height, width, least); });
}

extern "C" int32_t long_parts(const uint8_t *vessel, int32_t height, int32_t width, int32_t least,
                              int32_t *counts) {
  return guarded([&] { count_parts(vessel, height, width, least, counts); });
}
