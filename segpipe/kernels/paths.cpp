// Centre lines -> their segments in path order, lines without spurs, and what filters along segments
// and profiles across them take. Called through ctypes by paths.py.
#include "border.h"
#include "scan.h"
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <numeric>
#include <unordered_set>
#include <vector>

namespace {

// Of a segment: a pixel, and which way the segment leaves it.
struct End {
  int32_t pixel, way;
  int64_t key() const { return int64_t(pixel) * 8 + way; }
};

// A line [height, width] of 0 and 1, empty along its border, as pixels that are joined. Ways 0 to 3
// go right, down, right and down, left and down; 4 to 7 back.
class Line {
  int32_t step[8];
  std::vector<uint8_t> ways; // of each pixel, as bits
  int degree(int pixel) const { return __builtin_popcount(ways[pixel]); }
  int first_way(int pixel) const { return __builtin_ctz(ways[pixel]); }
  static int back(int way) { return way ^ 4; }

public:
  std::vector<int32_t> pixels; // of the line, row by row
  Line(const uint8_t *line, int height, int width)
      : step{1, width, width + 1, width - 1, -1, -width, -width - 1, 1 - width},
        ways(size_t(height) * width) {
    each_pixel(line, ways.size(), [&](int32_t pixel) {
      const uint8_t *at = line + pixel;
      const bool right = at[1], down = at[width]; // diagonals only where no pixel beside joins both
      const bool joined[4] = {right, down, at[width + 1] && !right && !down,
                              at[width - 1] && !at[-1] && !down};
      for (int way = 0; way < 4; way++)
        if (joined[way]) ways[pixel] |= 1 << way, ways[pixel + step[way]] |= 1 << back(way);
      pixels.push_back(pixel);
    });
  }
  bool is_fork(int pixel) const { return degree(pixel) >= 3; }
  bool is_free(int pixel) const { return degree(pixel) == 1; }
  bool is_between(int pixel) const { return degree(pixel) == 2; }
  bool diagonal(int way) const { return way & 2; }
  // That of a free end, or of a ring's pixel, from where it goes to the lesser of two pixels.
  End end_at(int pixel) const {
    const int one = first_way(pixel), other = 31 - __builtin_clz(ways[pixel]);
    return {pixel, step[one] < step[other] ? one : other};
  }
  // Those at forks: of all that go right or come from there, then of down, and so on.
  std::vector<End> ends_at_forks() const {
    std::vector<End> ends;
    for (int way = 0; way < 4; way++)
      for (const int32_t pixel : pixels) {
        if (!(ways[pixel] >> way & 1)) continue;
        const int near = pixel + step[way];
        if (is_fork(pixel)) ends.push_back({pixel, way});
        if (is_fork(near)) ends.push_back({near, back(way)});
      }
    return ends;
  }
  // Visits each pixel behind an end, with the way to it -> the other end; of a ring the same.
  template <class Visit> End walk(End from, Visit visit) const {
    int pixel = from.pixel, way = from.way;
    do {
      pixel += step[way];
      visit(pixel, way);
      if (!is_between(pixel)) return {pixel, back(way)};
      way = __builtin_ctz(ways[pixel] & ~(1 << back(way)));
    } while (pixel != from.pixel);
    return from;
  }
  void forget(int pixel) { ways[pixel] = 0; }
};

struct Segment {
  size_t begin, end; // where its points are, the last one behind
  bool at_fork, to_fork, closed;
};

// All segments of a line, each from one of its ends.
class Segments {
  Line line;
  std::unordered_set<int64_t> known; // ends of those that were found

  void add(End first) {
    if (known.count(first.key())) return;
    const size_t begin = points.size();
    points.push_back(first.pixel);
    const End last = line.walk(first, [&](int pixel, int) { points.push_back(pixel); });
    const bool closed = last.key() == first.key();
    if (closed) points.pop_back(); // its first pixel came again
    known.insert(first.key()), known.insert(last.key());
    const bool at_fork = line.is_fork(first.pixel), to_fork = line.is_fork(last.pixel);
    found.push_back({begin, points.size(), at_fork, to_fork, closed});
    for (size_t k = begin; k < points.size(); k++)
      if (line.is_between(points[k])) line.forget(points[k]);
  }

public:
  std::vector<int32_t> points, forks;
  std::vector<Segment> found; // those that begin at free ends, and rings, row by row; then others
  Segments(const uint8_t *plane, int height, int width) : line(plane, height, width) {
    for (const int32_t pixel : line.pixels) {
      if (line.is_free(pixel)) add(line.end_at(pixel));
      if (line.is_fork(pixel)) forks.push_back(pixel);
    }
    for (const End end : line.ends_at_forks()) add(end);
    for (const int32_t pixel : line.pixels) // what is left are rings
      if (line.is_between(pixel)) add(line.end_at(pixel));
    const auto place = [&](const Segment &one) {
      return one.at_fork ? INT32_MAX : points[one.begin];
    };
    std::stable_sort(found.begin(), found.end(), [&](const Segment &a, const Segment &b) {
      return place(a) < place(b);
    });
  }
};

struct Traced {
  int32_t *points, *starts;
  uint8_t *kinds; // of each segment whether it begins at a fork, ends at one, is a ring
  int32_t *forks, *counts;
};

void trace(const uint8_t *plane, int height, int width, Traced out) {
  const Segments all(plane, height, width);
  int32_t *at = out.points;
  for (const Segment &one : all.found) {
    *out.starts++ = int32_t(at - out.points);
    at = std::copy(&all.points[one.begin], &all.points[one.end - 1] + 1, at);
    for (const bool kind : {one.at_fork, one.to_fork, one.closed}) *out.kinds++ = kind;
  }
  std::copy(all.forks.begin(), all.forks.end(), out.forks);
  out.counts[0] = int32_t(at - out.points);
  out.counts[1] = int32_t(all.found.size()), out.counts[2] = int32_t(all.forks.size());
}

// A branch with one free end goes where it is too short for the half width at its fork.
void remove_spurs(uint8_t *plane, int height, int width, const float *depth, double least,
                  double corner) {
  const Line line(plane, height, width);
  for (const int32_t pixel : line.pixels) {
    if (!line.is_free(pixel)) continue;
    const End from = line.end_at(pixel);
    int steps = 0, diagonal = 0;
    const auto count = [&](int, int way) { steps++, diagonal += line.diagonal(way); };
    const End last = line.walk(from, count);
    const double half = depth[last.pixel];
    const double length = steps - diagonal + std::sqrt(2.0) * diagonal;
    if (!line.is_fork(last.pixel) || length >= std::max(half + least, corner * half + 1)) continue;
    plane[pixel] = 0;
    line.walk(from, [&](int near, int) { plane[near] &= near == last.pixel; });
  }
}

using Point = std::complex<double>;

// Every segment's points by a filter [2 reach + 1] along it. Beyond its ends a segment goes on as its
// reflection through them, a ring goes round.
void filter(const Point *points, const int64_t *starts, const int64_t *lasts, const uint8_t *closed,
            int num, const double *weights, int reach, Point *filtered) {
  std::vector<double> real, imag, sums[2];
  for (int k = 0; k < num; k++) {
    const int64_t first = starts[k], last = lasts[k], size = last - first + 1;
    real.clear(), imag.clear();
    for (int64_t at = first - reach; at <= last + reach; at++) {
      const int64_t end = std::clamp(at, first, last);
      Point point = points[end];
      if (at != end && closed[k])
        point = points[first + ((at - first) % size + size) % size];
      else if (at != end)
        point = 2.0 * point - points[std::clamp(2 * end - at, first, last)];
      real.push_back(point.real()), imag.push_back(point.imag());
    }
    for (int part = 0; part < 2; part++) {
      const double *__restrict from = part ? imag.data() : real.data();
      sums[part].assign(size, 0);
      double *__restrict to = sums[part].data();
      for (int tap = 2 * reach; tap >= 0; tap--, from++)
        for (int64_t x = 0; x < size; x++) to[x] += from[x] * weights[tap];
    }
    for (int64_t x = 0; x < size; x++) filtered[first + x] = {sums[0][x], sums[1][x]};
  }
}

// Levels of cover from a centre line outwards, `size` of each profile: behind the first `core` they
// rise no more, and are 0 from where they would by more than `rise` -> their sums by trapezoids, NaN
// of one that ends above `most`.
void sum_cover(const uint8_t *levels, int num, int size, int core, int rise, int most,
               double *sums) {
  for (int k = 0; k < num; k++, levels += size) {
    int lowest = *std::max_element(levels, levels + core);
    int sum = std::accumulate(levels, levels + core, 0), end = 0;
    for (int at = core; at < size; at++) {
      lowest = std::min<int>(lowest, levels[at]);
      if (levels[at] - lowest > rise) {
        end = 0;
        break;
      }
      sum += end = lowest;
    }
    sums[k] = end > most ? NAN : sum - (levels[0] + end) / 2.0;
  }
}

} // namespace

extern "C" int32_t filtered_paths(const double *points, const int64_t *starts, const int64_t *lasts,
                                  const uint8_t *closed, int32_t num, const double *weights,
                                  int32_t reach, double *filtered) {
  return guarded([&] {
    filter(reinterpret_cast<const Point *>(points), starts, lasts, closed, num, weights, reach,
           reinterpret_cast<Point *>(filtered));
  });
}

extern "C" int32_t cover_sums(const uint8_t *levels, int32_t num, int32_t size, int32_t core,
                              int32_t rise, int32_t most, double *sums) {
  return guarded([&] { sum_cover(levels, num, size, core, rise, most, sums); });
}

extern "C" int32_t trace_lines(const uint8_t *line, int32_t height, int32_t width, int32_t *points,
                               int32_t *starts, uint8_t *kinds, int32_t *forks, int32_t *counts) {
  return guarded([&] { trace(line, height, width, {points, starts, kinds, forks, counts}); });
}

extern "C" int32_t without_spurs(uint8_t *line, int32_t height, int32_t width, const float *depth,
                                 double least, double corner) {
  return guarded([&] { remove_spurs(line, height, width, depth, least, corner); });
}
