// Score -> mask of the photograph's size; kinds of the canvas -> those of the mask's vessels. Called
// through ctypes by masks.py.
#include "border.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

// ---- a smaller mask

// The inputs that an output pixel is made of, as Pillow's bilinear filter has them: a triangle as
// wide as two pixels of the larger grid. `count` for each output; those that it has not weigh 0.
struct Taps {
  int count = 0;
  std::vector<int32_t> first;             // [to]
  std::vector<std::vector<float>> weight; // [count][to]

  Taps(int from, int to) : first(to) {
    const double scale = double(from) / to, reach = scale > 1 ? scale : 1;
    count = int(2 * reach) + 2;
    weight.assign(count, std::vector<float>(to, 0.0f));
    for (int at = 0; at < to; at++) {
      const double centre = (at + 0.5) * scale;
      const int start = std::max(0, int(centre - reach + 0.5));
      const int end = std::min(from, int(centre + reach + 0.5));
      double sum = 0;
      for (int x = start; x < end; x++) sum += triangle((x - centre + 0.5) / reach);
      for (int x = start; x < end; x++)
        weight[x - start][at] = float(triangle((x - centre + 0.5) / reach) / sum);
      first[at] = start;
    }
  }

  static double triangle(double x) { return std::max(0.0, 1 - std::fabs(x)); }
};

// out[x]: these rows of `plane`, weighed, then its columns. `column` has taps.count zeros behind.
template <typename Value>
void reduce_row(const Value *plane, int side, int width, const Taps &down, int y, const Taps &across,
                std::vector<float> &column, int to, float *__restrict out) {
  float *__restrict sum = column.data();
  std::memset(sum, 0, sizeof(float) * width);
  for (int k = 0; k < down.count; k++) {
    const float weight = down.weight[k][y];
    if (weight == 0) continue;
    const Value *__restrict row = plane + size_t(down.first[y] + k) * side;
    for (int x = 0; x < width; x++) sum[x] += weight * row[x];
  }
  std::memset(out, 0, sizeof(float) * to);
  const int32_t *__restrict first = across.first.data();
  for (int k = 0; k < across.count; k++) {
    const float *__restrict weight = across.weight[k].data();
    for (int x = 0; x < to; x++) out[x] += weight[x] * sum[first[x] + k];
  }
}

inline uint8_t class_of(float score, float fov, float threshold) {
  return fov > 127.0f ? (score >= threshold ? 1 : 2) : 0;
}

// ---- a larger mask

// Where an output pixel's centre lies among `from` input pixels: its left neighbour, and the right
// one's share. Beyond the outermost centres the edge goes on.
void neighbours(int from, int to, std::vector<int32_t> &left, std::vector<float> &share) {
  left.resize(to);
  share.resize(to);
  const double scale = double(from) / to;
  for (int at = 0; at < to; at++) {
    double place = (at + 0.5) * scale - 0.5;
    if (place < 0) place = 0;
    if (place > from - 1) place = from - 1;
    int first = int(place);
    if (first > from - 2) first = from > 1 ? from - 2 : 0;
    left[at] = first;
    share[at] = from > 1 ? float(place - first) : 0.0f;
  }
}

constexpr int STEP = 64;        // px of the photograph that are decided at once
constexpr int ROOM = STEP + 16; // for their values
constexpr float MARGIN = 1e-6f; // more than rounding adds to scores from 0 to 1
constexpr uint8_t OUTSIDE = 1, INSIDE = 2, BACKGROUND = 4, VESSEL = 8; // bits of what is sure

// Of a row of the canvas: what is sure of a pixel of the photograph all of whose neighbours have it.
void mark(const float *__restrict score, const uint8_t *__restrict fov, int width, float threshold,
          uint8_t *__restrict marks) {
  const float low = threshold - MARGIN, high = threshold + MARGIN;
  for (int x = 0; x < width; x++) {
    const float s = score[x];
    const uint8_t known = -uint8_t((s >= 0) & (s <= 1));
    const uint8_t field = fov[x] < 127 ? OUTSIDE : fov[x] > 127 ? INSIDE : 0;
    marks[x] = field | (known & ((s < low ? BACKGROUND : 0) | (s > high ? VESSEL : 0)));
  }
}

// What so many words of marks have in common.
uint8_t common(const uint8_t *marks, int words) {
  uint64_t all = ~uint64_t(0), word;
  for (int n = 0; n < words; n++) {
    std::memcpy(&word, marks + 8 * n, 8);
    all &= word;
  }
  all &= all >> 32, all &= all >> 16, all &= all >> 8;
  return uint8_t(all);
}

// Up to four pixels of a step, the first of them `at`, that have the same neighbours.
struct Four {
  int32_t left, right, at;
};

// The columns of the box among those of the canvas, step by step.
struct Columns {
  int from, to, steps, words = 0; // words: of marks, that the neighbours of a step's pixels take
  std::vector<int32_t> left;      // [to]
  std::vector<float> share;       // [to + 3]
  std::vector<Four> fours;
  std::vector<int32_t> first_four; // [steps + 1]

  Columns(int from, int to) : from(from), to(to), steps((to + STEP - 1) / STEP) {
    neighbours(from, to, left, share);
    share.resize(to + 3);
    for (int step = 0; step < steps; step++) {
      const int32_t *near = left.data() + step * STEP;
      first_four.push_back(int32_t(fours.size()));
      for (int x = 0; x < count(step); x++)
        if (x == 0 || near[x] != near[x - 1] || x - fours.back().at == 4)
          fours.push_back({near[x], std::min(near[x] + 1, from - 1), x});
      words = std::max(words, (near[count(step) - 1] - near[0] + 2 + 7) / 8);
    }
    first_four.push_back(int32_t(fours.size()));
  }

  int count(int step) const { return std::min(STEP, to - step * STEP); }

  // 3 values behind a step's are written to as well.
  template <typename Value>
  void enlarge(const Value *__restrict row, int step, float *__restrict out) const {
    const float *__restrict shares = share.data() + step * STEP;
    for (int n = first_four[step]; n < first_four[step + 1]; n++) {
      const Four four = fours[n];
      const float a = row[four.left], b = row[four.right];
      for (int x = four.at; x < four.at + 4; x++) out[x] = a + shares[x] * (b - a);
    }
  }
};

// A row of the canvas, enlarged to the box's width: each step when it is first asked for.
template <typename Value> class Enlarged {
  const Columns &columns;
  const Value *row = nullptr;
  std::vector<uint8_t> done;
  std::vector<float> values;

public:
  explicit Enlarged(const Columns &columns)
      : columns(columns), done(columns.steps), values(columns.steps * ROOM) {}

  void set(const Value *of_row) {
    row = of_row;
    std::fill(done.begin(), done.end(), 0);
  }

  const float *at(int step) {
    float *found = values.data() + step * ROOM;
    if (!done[step]) columns.enlarge(row, step, found);
    done[step] = 1;
    return found;
  }
};

// A row of scores and of the field, and what is sure of each step.
struct Row {
  const Columns &columns;
  int held = -1;
  Enlarged<float> scores;
  Enlarged<uint8_t> fields;
  std::vector<uint8_t> marks, sure;

  explicit Row(const Columns &columns)
      : columns(columns), scores(columns), fields(columns),
        marks(columns.from + 8 * columns.words, 0xff), sure(columns.steps) {}

  void set(int source, const float *score, const uint8_t *fov, float threshold) {
    held = source;
    scores.set(score), fields.set(fov);
    mark(score, fov, columns.from, threshold, marks.data());
    for (int step = 0; step < columns.steps; step++)
      sure[step] = common(marks.data() + columns.left[step * STEP], columns.words);
  }
};

// Two rows of values, and the lower one's share.
inline float between(const float *upper, const float *lower, float share, int x) {
  return upper[x] + share * (lower[x] - upper[x]);
}

inline void decide(Row &upper, Row &lower, int step, float share, float threshold, bool inside,
                   int count, uint8_t *__restrict out) {
  const float *__restrict s0 = upper.scores.at(step), *__restrict s1 = lower.scores.at(step);
  for (int x = 0; x < count; x++) out[x] = between(s0, s1, share, x) >= threshold ? 1 : 2;
  if (inside) return;
  const float *__restrict f0 = upper.fields.at(step), *__restrict f1 = lower.fields.at(step);
  for (int x = 0; x < count; x++) out[x] = between(f0, f1, share, x) > 127.0f ? out[x] : 0;
}

// ---- kinds

constexpr uint8_t BESIDE_VESSELS = 4;

// For each of `to` pixels the one of `from` that OpenCV's INTER_NEAREST takes, rounded as there.
std::vector<int32_t> nearest(int from, int to) {
  const double step = 1 / (double(to) / from);
  std::vector<int32_t> found(to);
  for (int at = 0; at < to; at++) found[at] = std::min(int(at * step), from - 1);
  return found;
}

// A row's classes, and kinds where they are of a vessel, -> its pixels of a picture of kinds.
void put_kinds(const uint8_t *__restrict mask, const uint8_t *__restrict kinds, int width,
               uint8_t *__restrict out) {
  for (int x = 0; x < width; x++) { // without branches, or compilers find no vectors in it
    const uint8_t of_vessel = -uint8_t(mask[x] == 1), beside = -uint8_t(mask[x] > 1);
    out[x] = (kinds[x] & of_vessel) | (BESIDE_VESSELS & beside);
  }
}

} // namespace

static void reduce(const float *score, const uint8_t *fov, int32_t side, const int32_t *geometry,
                   float threshold, uint8_t *mask) {
  const int width = geometry[1], top = geometry[2], left = geometry[3];
  const int box_height = geometry[4], box_width = geometry[5];
  const int scaled_height = geometry[6], scaled_width = geometry[7];
  const Taps down(scaled_height, box_height), across(scaled_width, box_width);
  std::vector<float> column(scaled_width + across.count), scores(box_width), fields(box_width);
  std::memset(mask, 0, size_t(geometry[0]) * width);
  for (int y = 0; y < box_height; y++) {
    reduce_row(score, side, scaled_width, down, y, across, column, box_width, scores.data());
    reduce_row(fov, side, scaled_width, down, y, across, column, box_width, fields.data());
    uint8_t *__restrict out = mask + size_t(top + y) * width + left;
    for (int x = 0; x < box_width; x++) out[x] = class_of(scores[x], fields[x], threshold);
  }
}

static void enlarge(const float *score, const uint8_t *fov, int32_t side, const int32_t *geometry,
                    float threshold, uint8_t *mask) {
  const int height = geometry[0], width = geometry[1], top = geometry[2], left = geometry[3];
  const int box_height = geometry[4], scaled_height = geometry[6];
  std::vector<int32_t> above;
  std::vector<float> below_share;
  neighbours(scaled_height, box_height, above, below_share);
  const Columns columns(geometry[7], geometry[5]);
  Row rows[2] = {Row(columns), Row(columns)}; // even and odd row of the canvas
  size_t done = 0; // px
  const auto clear = [&](size_t end) { std::memset(mask + done, 0, end - done); };
  for (int y = 0; y < box_height; y++) {
    const int first = above[y], second = std::min(first + 1, scaled_height - 1);
    for (int source : {first, second})
      if (rows[source & 1].held != source) {
        const size_t at = size_t(source) * side;
        rows[source & 1].set(source, score + at, fov + at, threshold);
      }
    Row &upper = rows[first & 1], &lower = rows[second & 1];
    const size_t at = size_t(top + y) * width + left;
    clear(at);
    for (int step = 0; step < columns.steps; step++) {
      uint8_t *out = mask + at + step * STEP;
      const int count = columns.count(step);
      const uint8_t sure = upper.sure[step] & lower.sure[step];
      if (sure & OUTSIDE)
        std::memset(out, 0, count);
      else if ((sure & INSIDE) && (sure & (BACKGROUND | VESSEL)))
        std::memset(out, sure & VESSEL ? 1 : 2, count);
      else if (count == STEP)
        decide(upper, lower, step, below_share[y], threshold, sure & INSIDE, STEP, out);
      else
        decide(upper, lower, step, below_share[y], threshold, sure & INSIDE, count, out);
    }
    done = at + columns.to;
  }
  clear(size_t(height) * width);
}

static void enlarge_kinds(const uint8_t *plane, const uint8_t *mask, int32_t side,
                          const int32_t *geometry, uint8_t *picture) {
  const int width = geometry[1], top = geometry[2], left = geometry[3];
  const int box_height = geometry[4], box_width = geometry[5];
  const std::vector<int32_t> rows = nearest(geometry[6], box_height);
  const std::vector<int32_t> columns = nearest(geometry[7], box_width);
  std::vector<uint8_t> outside(width, BESIDE_VESSELS), kinds(outside);
  int held = -1;
  for (int y = 0; y < geometry[0]; y++) {
    const bool within = y >= top && y < top + box_height;
    if (within && rows[y - top] != held) {
      held = rows[y - top];
      const uint8_t *row = plane + size_t(held) * side;
      for (int x = 0; x < box_width; x++) kinds[left + x] = row[columns[x]];
    }
    const size_t at = size_t(y) * width;
    put_kinds(mask + at, (within ? kinds : outside).data(), width, picture + at);
  }
}

extern "C" int32_t native_mask(const float *score, const uint8_t *fov, int32_t side,
                               const int32_t *geometry, float threshold, uint8_t *mask) {
  const bool enlarges = geometry[6] <= geometry[4] && geometry[7] <= geometry[5];
  return guarded([&] { (enlarges ? enlarge : reduce)(score, fov, side, geometry, threshold, mask); });
}

extern "C" int32_t native_kinds(const uint8_t *plane, const uint8_t *mask, int32_t side,
                                const int32_t *geometry, uint8_t *picture) {
  return guarded([&] { enlarge_kinds(plane, mask, side, geometry, picture); });
}
