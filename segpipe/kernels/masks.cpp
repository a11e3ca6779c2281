// Score -> mask of the photograph's size. Called through ctypes by masks.py.
#include "border.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

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

template <typename Value>
void enlarge_row(const Value *__restrict row, const int32_t *__restrict left,
                 const float *__restrict share, int last, int to, float *__restrict out) {
  for (int x = 0; x < to; x++) {
    const float a = row[left[x]], b = row[left[x] < last ? left[x] + 1 : last];
    out[x] = a + share[x] * (b - a);
  }
}

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
  const int width = geometry[1], top = geometry[2], left = geometry[3];
  const int box_height = geometry[4], box_width = geometry[5];
  const int scaled_height = geometry[6], scaled_width = geometry[7];
  std::vector<int32_t> above, before;
  std::vector<float> below_share, after_share;
  neighbours(scaled_height, box_height, above, below_share);
  neighbours(scaled_width, box_width, before, after_share);
  std::vector<float> rows[2][2]; // [score, fov][even, odd source row], enlarged to the box's width
  for (auto &plane : rows)
    for (auto &row : plane) row.resize(box_width);
  int held[2] = {-1, -1};
  std::memset(mask, 0, size_t(top) * width);
  for (int y = 0; y < box_height; y++) {
    const int first = above[y], second = first + 1 < scaled_height ? first + 1 : first;
    for (int source : {first, second})
      if (held[source & 1] != source) {
        const size_t at = size_t(source) * side;
        enlarge_row(score + at, before.data(), after_share.data(), scaled_width - 1, box_width,
                    rows[0][source & 1].data());
        enlarge_row(fov + at, before.data(), after_share.data(), scaled_width - 1, box_width,
                    rows[1][source & 1].data());
        held[source & 1] = source;
      }
    const float *__restrict s0 = rows[0][first & 1].data(), *__restrict s1 = rows[0][second & 1].data();
    const float *__restrict f0 = rows[1][first & 1].data(), *__restrict f1 = rows[1][second & 1].data();
    uint8_t *__restrict out = mask + size_t(top + y) * width;
    std::memset(out, 0, left);
    std::memset(out + left + box_width, 0, width - left - box_width);
    out += left;
    const float share = below_share[y];
    for (int x = 0; x < box_width; x++) {
      const float s = s0[x] + share * (s1[x] - s0[x]), f = f0[x] + share * (f1[x] - f0[x]);
      out[x] = class_of(s, f, threshold);
    }
  }
  const size_t done = size_t(top + box_height) * width;
  std::memset(mask + done, 0, size_t(geometry[0]) * width - done);
}

extern "C" int32_t native_mask(const float *score, const uint8_t *fov, int32_t side,
                               const int32_t *geometry, float threshold, uint8_t *mask) {
  const bool enlarges = geometry[6] <= geometry[4] && geometry[7] <= geometry[5];
  return guarded([&] { (enlarges ? enlarge : reduce)(score, fov, side, geometry, threshold, mask); });
}
