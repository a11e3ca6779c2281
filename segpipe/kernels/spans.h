// Which cells of a network's planes are needed: of each row one run.
#pragma once
#include "lanes.h"
#include <algorithm>
#include <cstddef>
#include <vector>

namespace {

constexpr int TILE = 4; // cells, side of what is computed together

// In each row the first and behind the last; (side, 0) in a row without any.
struct Spans {
  std::vector<int> first, last;
  explicit Spans(int side) : first(side, side), last(side, 0) {}
  int side() const { return int(first.size()); }
  bool any(int row) const { return first[row] < last[row]; }
  void add(int row, int from, int to) {
    first[row] = std::min(first[row], std::max(from, 0));
    last[row] = std::max(last[row], std::min(to, side()));
  }
};

// Of a field [side, side], in planes of `whole` rows and columns.
Spans of_field(const uint8_t *fov, int side, int whole) {
  Spans spans(whole);
  for (int y = 0; y < side; y++) {
    const uint8_t *row = fov + size_t(y) * side;
    const auto lit = [](uint8_t value) { return value != 0; };
    const int from = int(std::find_if(row, row + side, lit) - row);
    if (from == side) continue;
    int to = side;
    while (!row[to - 1]) to--;
    spans.add(y, from, to);
  }
  return spans;
}

// With all that is at most `by` rows and columns away.
Spans grown(const Spans &spans, int by) {
  const int side = spans.side();
  Spans wider(side);
  for (int y = 0; y < side; y++)
    for (int near = std::max(y - by, 0); spans.any(y) && near < std::min(y + by + 1, side); near++)
      wider.add(near, spans.first[y] - by, spans.last[y] + by);
  return wider;
}

// The blocks of 2x2 (or step x step) that hold them.
Spans shrunk(const Spans &spans, int step) {
  Spans smaller(padded(spans.side(), step) / step);
  for (int y = 0; y < spans.side(); y++)
    if (spans.any(y)) smaller.add(y / step, spans.first[y] / step, (spans.last[y] - 1) / step + 1);
  return smaller;
}

// What blocks of 2x2 hold, and the others.
Spans enlarged_with(const Spans &blocks, Spans spans) {
  for (int y = 0; y < spans.side(); y++)
    if (blocks.any(y / 2)) spans.add(y, 2 * blocks.first[y / 2], 2 * blocks.last[y / 2]);
  return spans;
}

Spans tiles(const Spans &spans) { return shrunk(spans, TILE); }

} // namespace
