// Vessels -> their parts of some size, their centre lines, the boxes that hold them. Called through
// ctypes by lines.py.
#include "border.h"
#include <algorithm>
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

using Word = uint64_t; // 64 pixels of a row, a bit each
constexpr int WORD = 64;

// A row of words by those above and below it -> which of its pixels one of both steps takes away.
// p1 to p8 are the paper's: the pixels around one, clockwise from the upper left. There is a word
// more at both ends of a row.
template <int STEP>
void peel(const Word *__restrict above, const Word *__restrict own, const Word *__restrict below,
          int words, Word *__restrict goes) {
  for (int k = 1; k <= words; k++) {
    const auto before = [k](const Word *row) { return row[k] << 1 | row[k - 1] >> (WORD - 1); };
    const auto behind = [k](const Word *row) { return row[k] >> 1 | row[k + 1] << (WORD - 1); };
    const Word p1 = before(above), p2 = above[k], p3 = behind(above), p4 = behind(own);
    const Word p5 = behind(below), p6 = below[k], p7 = before(below), p8 = before(own);
    // of four bits: one alone; two or more; all
    const auto one = [](Word a, Word b, Word c, Word d) {
      return (a ^ b ^ c ^ d) & ~(a & b | c & d);
    };
    const auto two = [](Word a, Word b, Word c, Word d) { return a & b | c & d | (a | b) & (c | d); };
    const Word pieces = one(~p2 & (p3 | p4), ~p4 & (p5 | p6), ~p6 & (p7 | p8), ~p8 & (p1 | p2));
    const Word a = p1 | p2, b = p3 | p4, c = p5 | p6, d = p7 | p8;
    const Word e = p2 | p3, f = p4 | p5, g = p6 | p7, h = p8 | p1;
    const Word few = ~(a & b & c & d & e & f & g & h);
    const Word held = STEP == 0 ? (p2 | p3 | ~p5) & p4 : (p6 | p7 | ~p1) & p8;
    goes[k] = own[k] & pieces & two(a, b, c, d) & two(e, f, g, h) & few & ~held;
  }
}

// vessel [height, width] of 0 and 1, empty along its border -> its centre lines.
void thin(const uint8_t *vessel, int height, int width, uint8_t *line) {
  const int words = (width + WORD - 1) / WORD, stride = words + 2;
  std::vector<Word> bits(size_t(height) * stride), going(2 * size_t(stride));
  const auto goes = [&](int y) { return &going[size_t(y % 2) * stride]; };
  for (int y = 0; y < height; y++) {
    const uint8_t *row = vessel + size_t(y) * width;
    Word *to = &bits[size_t(y) * stride + 1];
    int x = 0;
    for (; x + 8 <= width; x += 8) { // byte k of eight becomes bit k
      Word eight;
      std::memcpy(&eight, row + x, 8);
      to[x / WORD] |= (eight * 0x0102040810204080 >> 56) << x % WORD;
    }
    for (; x < width; x++) to[x / WORD] |= Word(row[x]) << x % WORD;
  }
  // The step in which a row changed last: where none of three did in the last two steps, the one
  // between them stays as it is. What goes of a row is in the one below's way: it goes after it.
  std::vector<int> changed(height);
  for (int step = 0, idle = 0; idle < 2; step++) { // steps of both kinds in which nothing went
    const auto take = [&](int y) {
      Word *row = &bits[size_t(y) * stride], *of = goes(y), any = 0;
      for (int k = 1; k <= words; k++) any |= of[k], row[k] ^= of[k];
      if (any) changed[y] = step, idle = 0;
    };
    idle++;
    bool before = false; // whether the row above waits for what goes of it
    for (int y = 1; y < height - 1; y++) {
      const int when = std::max({changed[y - 1], changed[y], changed[y + 1]});
      const bool now = when >= step - 2;
      const Word *row = &bits[size_t(y) * stride];
      if (now) (step % 2 ? peel<1> : peel<0>)(row - stride, row, row + stride, words, goes(y));
      if (before) take(y - 1);
      before = now;
    }
    if (before) take(height - 2);
  }
  std::fill(line, line + size_t(height) * width, 0);
  for (int y = 0; y < height; y++)
    for (int k = 0; k < words; k++)
      for (Word word = bits[size_t(y) * stride + 1 + k]; word; word &= word - 1)
        line[size_t(y) * width + size_t(k) * WORD + __builtin_ctzll(word)] = 1;
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
