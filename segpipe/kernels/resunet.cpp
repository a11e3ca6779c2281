// resunet: its score of a canvas. Called through ctypes by resunet.py, which says what each argument
// is.
//
// Activations lie as rows of cells, a cell's channels side by side, so that the cells which a
// convolution sees in one row are one run of numbers, and every layer is a product of such runs with
// weights. Only the tiles of 4x4 cells are computed that the field of view's scores depend on.
#define EIGHT_LANES // cells of 8 channels half-fill wider ones, and those of 16 gain nothing
#include "border.h"
#include "products.h"
#include <algorithm>
#include <array>
#include <vector>

namespace {

constexpr int COLOURS = 3;
constexpr int TILE = 4; // cells, side of what is computed together

// ---- which cells are needed

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

Spans of_field(const uint8_t *fov, int side) {
  Spans spans(side);
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

// ---- activations

// Rows of cells with zeros around, of which the newest `kept` are there.
struct Plane {
  int side = 0, channels = 0, kept = 0;
  size_t length = 0; // floats of a row
  Floats64 floats;

  void shape(int new_side, int new_channels, int new_kept) {
    side = new_side, channels = padded(new_channels, LANES), kept = std::min(new_kept, side);
    length = size_t(padded(side, TILE) + 2) * channels;
    floats.assign(length * (kept + 1));
  }
  // Cell 0 of row y, which may also be one of zeros beyond the canvas; cells -1 and side are zeros.
  float *row(int y) {
    const int place = y < 0 || y >= side ? kept : y % kept;
    return floats.data() + place * length + channels;
  }
  // Zeros in a row of tiles outside of those `span` names.
  void clear_outside(int tile_row, const Spans &span) {
    const int end = std::min((tile_row + 1) * TILE, side);
    for (int y = tile_row * TILE; y < end; y++) {
      float *cells = row(y);
      const int last = std::min(span.last[tile_row] * TILE, side);
      const int first = std::min(span.first[tile_row] * TILE, side);
      std::fill(cells, cells + size_t(first) * channels, 0.0f);
      std::fill(cells + size_t(std::max(first, last)) * channels, cells + size_t(side) * channels, 0.0f);
    }
  }
};

// ---- products

// What becomes of a sum: it is kept, or its positive part is, or what is there is added before.
enum Then { KEEP, RECTIFY, ADD };

// A layer's weights: [group of vectors][row of the kernel][depth][vector], and its biases.
struct Layer {
  int rows = 0, depth = 0, stride = 0; // depth: floats of a run; stride: from a cell's to the next's
  int vectors = 0, groups = 0;         // of outputs; vectors of one group
  Floats64 weights, bias;

  // plain [rows][depth][outputs]
  void pack(const std::vector<double> &plain, const std::vector<double> &plain_bias, int new_rows,
            int new_stride) {
    const int outputs = int(plain_bias.size()), all = padded(outputs, LANES) / LANES;
    rows = new_rows, stride = new_stride, depth = int(plain.size() / outputs) / rows;
    vectors = in_group(all), groups = all / vectors;
    bias.assign(size_t(all) * LANES);
    std::copy(plain_bias.begin(), plain_bias.end(), bias.data());
    weights.assign(size_t(all) * LANES * rows * depth);
    const int together = vectors * LANES;
    for (int out = 0; out < outputs; out++)
      for (int k = 0; k < rows * depth; k++)
        weights.data()[(size_t(out / together) * rows * depth + k) * together + out % together] =
            float(plain[size_t(k) * outputs + out]);
  }

  // For `count` cells: to += or = the positive part, or the sum as it is.
  __attribute__((noinline)) void run(const std::array<const float *, 3> &from, int count, float *to, int to_stride,
           Then then) const {
    if (vectors == 4) run_groups<4>(from, count, to, to_stride, then);
    if (vectors == 3) run_groups<3>(from, count, to, to_stride, then);
    if (vectors == 2) run_groups<2>(from, count, to, to_stride, then);
    if (vectors == 1) run_groups<1>(from, count, to, to_stride, then);
  }

private:
  template <int VECTORS>
  __attribute__((noinline)) void run_groups(const std::array<const float *, 3> &from, int count, float *to, int to_stride,
                  Then then) const {
    constexpr int CELLS = SUMS / VECTORS;
    for (int group = 0; group < groups; group++) {
      int cell = 0;
      for (; cell + CELLS <= count; cell += CELLS)
        run_cells<VECTORS, CELLS>(from, cell, group, to, to_stride, then);
      for (; cell < count; cell++) run_cells<VECTORS, 1>(from, cell, group, to, to_stride, then);
    }
  }

  template <int VECTORS, int CELLS>
  void run_cells(const std::array<const float *, 3> &from, int cell, int group, float *to,
                 int to_stride, Then then) const {
    const int first = group * VECTORS * LANES;
    const float *of_group = weights.data() + size_t(first) * rows * depth;
    Floats sum[CELLS][VECTORS];
    for (int c = 0; c < CELLS; c++)
      for (int v = 0; v < VECTORS; v++) sum[c][v] = load(bias.data() + first + v * LANES);
    for (int row = 0; row < rows; row++)
      multiply(sum, from[row] + size_t(cell) * stride, stride, depth,
               of_group + size_t(row) * depth * VECTORS * LANES);
    for (int c = 0; c < CELLS; c++)
      for (int v = 0; v < VECTORS; v++) {
        float *at = to + size_t(cell + c) * to_stride + first + v * LANES;
        if (then == ADD) sum[c][v] += load(at);
        store(at, then == KEEP ? sum[c][v] : positive(sum[c][v]));
      }
  }
};

// Numbers in the order of resunet.py, one layer after the other.
struct Reader {
  const double *at;
  std::vector<double> take(size_t count) {
    at += count;
    return std::vector<double>(at - count, at);
  }
};

// [taps][before][after] -> the same with zeros for the channels that only fill a cell up.
std::vector<double> filled(const std::vector<double> &plain, int taps, int before, int after,
                           int wide_before, int wide_after) {
  std::vector<double> all(size_t(taps) * wide_before * wide_after);
  for (int tap = 0; tap < taps; tap++)
    for (int k = 0; k < before; k++)
      for (int out = 0; out < after; out++)
        all[(size_t(tap) * wide_before + k) * wide_after + out] =
            plain[(size_t(tap) * before + k) * after + out];
  return all;
}

// ---- layers

// A 3x3 convolution, by Winograd's minimal filtering F(4x4, 3x3): 36 products for 16 cells instead
// of 144 (Lavin and Gray, arXiv:1509.09308). A tile and the cells around it, 6x6, become 36 spots;
// in each spot channels are mixed by a matrix of its own, and of the 36 the tile is made again.
constexpr int PATCH = TILE + 2, SPOTS = PATCH * PATCH;
constexpr int STRIP = SUMS; // tiles at once, whose spots stay in a core's own caches
constexpr double KERNEL[PATCH][3] = {{1.0 / 4, 0, 0},
                                     {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                     {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                     {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                     {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                     {0, 0, 1}};

inline void to_spots(Floats (&x)[PATCH]) {
  const Floats even = x[4] - x[2] * 4.0f, odd = x[3] - x[1] * 4.0f;
  const Floats near = x[4] - x[2], far = (x[3] - x[1]) * 2.0f;
  x[0] = x[4] - x[2] * 5.0f + x[0] * 4.0f;
  x[5] = x[5] - x[3] * 5.0f + x[1] * 4.0f;
  x[1] = even + odd, x[2] = even - odd;
  x[3] = near + far, x[4] = near - far;
}

inline void from_spots(const Floats (&x)[PATCH], Floats (&to)[TILE]) {
  const Floats sum = x[1] + x[2], difference = x[1] - x[2];
  const Floats far_sum = x[3] + x[4], far_difference = x[3] - x[4];
  to[0] = x[0] + sum + far_sum;
  to[1] = difference + far_difference * 2.0f;
  to[2] = sum + far_sum * 4.0f;
  to[3] = difference + far_difference * 8.0f + x[5];
}

struct Scratch {
  Floats64 spots, sums; // [SPOTS][STRIP][channels], of the input and of a group of outputs
};

struct Convolution {
  int depth, vectors, groups; // channels before; vectors of outputs in each group
  Floats64 weights, bias;     // [group][spot][depth][vector]

  Convolution(Reader &reader, int before, int after) : depth(before) {
    const std::vector<double> plain = reader.take(size_t(9) * before * after);
    const std::vector<double> plain_bias = reader.take(after);
    const int all = padded(after, LANES) / LANES;
    vectors = in_group(all), groups = all / vectors;
    bias.assign(size_t(all) * LANES);
    std::copy(plain_bias.begin(), plain_bias.end(), bias.data());
    weights.assign(size_t(all) * LANES * SPOTS * depth);
    const int together = vectors * LANES;
    for (int spot = 0; spot < SPOTS; spot++)
      for (int k = 0; k < depth; k++)
        for (int out = 0; out < after; out++) {
          double sum = 0;
          for (int tap = 0; tap < 9; tap++)
            sum += KERNEL[spot / PATCH][tap / 3] * KERNEL[spot % PATCH][tap % 3] *
                   plain[(size_t(tap) * before + k) * after + out];
          const size_t row = (size_t(out / together) * SPOTS + spot) * depth + k;
          weights.data()[row * together + out % together] = float(sum);
        }
  }

  // A row of tiles.
  __attribute__((noinline)) void run(Plane &in, Plane &out, int tile_row, const Spans &span, Then then,
           Scratch &scratch) const {
    out.clear_outside(tile_row, span);
    for (int first = span.first[tile_row]; first < span.last[tile_row]; first += STRIP) {
      const int count = std::min(STRIP, span.last[tile_row] - first);
      spread(in, tile_row, first, count, scratch.spots.data());
      for (int group = 0; group < groups; group++) {
        mix(scratch.spots.data(), in.channels, count, group, scratch.sums.data());
        gather(scratch.sums.data(), group, out, tile_row, first, count, then);
      }
    }
  }

private:
  void spread(Plane &in, int tile_row, int first, int count, float *spots) const {
    const int channels = in.channels;
    const float *rows[PATCH];
    for (int i = 0; i < PATCH; i++)
      rows[i] = in.row(tile_row * TILE - 1 + i) + (first * TILE - 1) * channels;
    Floats half[PATCH][STRIP * TILE + 2], x[PATCH];
    for (int channel = 0; channel < channels; channel += LANES) {
      for (int column = 0; column < count * TILE + 2; column++) {
#pragma GCC unroll 6
        for (int i = 0; i < PATCH; i++) x[i] = load(rows[i] + column * channels + channel);
        to_spots(x);
#pragma GCC unroll 6
        for (int i = 0; i < PATCH; i++) half[i][column] = x[i];
      }
      for (int tile = 0; tile < count; tile++) {
        float *to = spots + tile * channels + channel;
        for (int i = 0; i < PATCH; i++) {
#pragma GCC unroll 6
          for (int j = 0; j < PATCH; j++) x[j] = half[i][tile * TILE + j];
          to_spots(x);
#pragma GCC unroll 6
          for (int j = 0; j < PATCH; j++) store(to + (i * PATCH + j) * STRIP * channels, x[j]);
        }
      }
    }
  }

  void mix(const float *spots, int stride, int count, int group, float *sums) const {
    if (vectors == 4) mix_in<4>(spots, stride, count, group, sums);
    if (vectors == 3) mix_in<3>(spots, stride, count, group, sums);
    if (vectors == 2) mix_in<2>(spots, stride, count, group, sums);
    if (vectors == 1) mix_in<1>(spots, stride, count, group, sums);
  }

  template <int VECTORS>
  __attribute__((noinline)) void mix_in(const float *spots, int stride, int count, int group, float *sums) const {
    constexpr int TILES = SUMS / VECTORS; // divides STRIP: what is too much has room
    for (int spot = 0; spot < SPOTS; spot++) {
      const float *of_spot =
          weights.data() + (size_t(group) * SPOTS + spot) * depth * VECTORS * LANES;
      for (int tile = 0; tile < count; tile += TILES) {
        Floats sum[TILES][VECTORS] = {};
        multiply(sum, spots + size_t(spot * STRIP + tile) * stride, stride, depth, of_spot);
        float *to = sums + size_t(spot * STRIP + tile) * VECTORS * LANES;
#pragma GCC unroll 24
        for (int t = 0; t < TILES; t++)
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; v++) store(to + (t * VECTORS + v) * LANES, sum[t][v]);
      }
    }
  }

  __attribute__((noinline)) void gather(const float *sums, int group, Plane &out, int tile_row, int first, int count,
              Then then) const {
    const int rows = std::min(TILE, out.side - tile_row * TILE);
    const int channels = out.channels, all = vectors;
    float *to[TILE];
    for (int i = 0; i < rows; i++) to[i] = out.row(tile_row * TILE + i);
    for (int tile = 0; tile < count; tile++) {
      const int left = (first + tile) * TILE, columns = std::min(TILE, out.side - left);
      for (int v = 0; v < all; v++) {
        const int channel = (group * all + v) * LANES;
        const float *from = sums + size_t(tile * all + v) * LANES;
        const Floats offset = load(bias.data() + channel);
        Floats half[TILE][PATCH], x[PATCH], y[TILE];
#pragma GCC unroll 6
        for (int j = 0; j < PATCH; j++) {
#pragma GCC unroll 6
          for (int i = 0; i < PATCH; i++) x[i] = load(from + (i * PATCH + j) * STRIP * all * LANES);
          if (j == 1) x[1] += offset; // which all 16 cells hold once
          from_spots(x, y);
#pragma GCC unroll 4
          for (int i = 0; i < TILE; i++) half[i][j] = y[i];
        }
        for (int i = 0; i < rows; i++) {
          from_spots(half[i], y);
          float *at = to[i] + left * channels + channel;
#pragma GCC unroll 4
          for (int j = 0; j < TILE; j++) {
            if (j == columns) break;
            if (then == ADD) y[j] += load(at + j * channels);
            store(at + j * channels, then == KEEP ? y[j] : positive(y[j]));
          }
        }
      }
    }
  }
};

struct Residual {
  Convolution inner, outer;
  Residual(Reader &reader, int channels)
      : inner(reader, channels, channels), outer(reader, channels, channels) {}
};

struct Smaller { // 2x2, stride 2
  Layer layer;

  Smaller(Reader &reader, int before, int after) {
    const int cell = padded(before, LANES);
    const std::vector<double> plain = reader.take(size_t(4) * before * after);
    layer.pack(filled(plain, 4, before, after, cell, after), reader.take(after), 2, 2 * cell);
  }

  void run(Plane &in, Plane &out, int tile_row, const Spans &span) const {
    out.clear_outside(tile_row, span);
    const int first = span.first[tile_row] * TILE;
    const int count = std::min(span.last[tile_row] * TILE, out.side) - first;
    for (int y = tile_row * TILE; count > 0 && y < std::min((tile_row + 1) * TILE, out.side); y++) {
      const int begin = 2 * first * in.channels;
      layer.run({in.row(2 * y) + begin, in.row(2 * y + 1) + begin, nullptr}, count,
                out.row(y) + size_t(first) * out.channels, out.channels, RECTIFY);
    }
  }
};

struct Larger { // transposed 2x2, stride 2, added to what is there
  std::vector<Layer> layers; // of the upper and the lower row of each 2x2

  Larger(Reader &reader, int before, int after) : layers(2) {
    const int cell = padded(after, LANES);
    const std::vector<double> plain = reader.take(size_t(4) * before * after); // [row][in][column][out]
    const std::vector<double> all = filled(plain, 4 * before, 1, after, 1, cell);
    const std::vector<double> bias = filled(reader.take(size_t(2) * after), 2, 1, after, 1, cell);
    const size_t half = all.size() / 2;
    for (int row = 0; row < 2; row++)
      layers[row].pack(std::vector<double>(&all[row * half], &all[row * half] + half), bias, 1,
                       padded(before, LANES));
  }

  void run(Plane &in, Plane &out, int tile_row, const Spans &span) const {
    const int first = span.first[tile_row] * TILE;
    const int count = std::min(span.last[tile_row] * TILE, out.side) - first;
    for (int y = tile_row * TILE; count > 0 && y < std::min((tile_row + 1) * TILE, out.side); y++) {
      layers[y & 1].run({in.row(y / 2) + size_t(first / 2) * in.channels, nullptr, nullptr},
                        count / 2, out.row(y) + size_t(first) * out.channels, 2 * out.channels, ADD);
    }
  }
};

// ---- the network

struct Network {
  int block;                 // px: each cell of the first level is a square of them
  std::vector<int> channels; // of each level, half as large as the one before
  int levels;
  int shaped = 0;            // cells of the side that planes have room for
  std::vector<Convolution> first, last; // one of each
  std::vector<Residual> down, up;       // of the first level first
  std::vector<Smaller> smaller;
  std::vector<Larger> larger; // to the first level first
  Plane colours, logits;
  std::vector<Plane> planes, inner; // of each level
  Floats64 pixel_row;
  Scratch scratch;

  Network(int new_block, const std::vector<int> &new_channels, const double *plain)
      : block(new_block), channels(new_channels), levels(int(channels.size())), planes(levels), inner(levels) {
    Reader reader{plain};
    first.emplace_back(reader, COLOURS * block * block, channels[0]);
    for (int count : channels) down.emplace_back(reader, count);
    for (int l = 1; l < levels; l++) smaller.emplace_back(reader, channels[l - 1], channels[l]);
    for (int l = 1; l < levels; l++) larger.emplace_back(reader, channels[l], channels[l - 1]);
    for (int l = 1; l < levels; l++) up.emplace_back(reader, channels[l - 1]);
    last.emplace_back(reader, channels[0], block * block);
    const int most = std::max(*std::max_element(channels.begin(), channels.end()), COLOURS * block * block);
    scratch.spots.assign(size_t(SPOTS) * STRIP * padded(most, LANES));
    scratch.sums.assign(SPOTS * STRIP * 4 * LANES);
  }

  void shape(int side) { // cells of the first level
    if (shaped == side) return;
    shaped = 0; // until all are: memory may not suffice for one of them
    constexpr int RING = 4 * TILE; // three rows of tiles are read, while a fourth is written
    colours.shape(side, COLOURS * block * block, RING);
    logits.shape(side, block * block, RING);
    pixel_row.assign(size_t(side) * COLOURS * block + LANES);
    for (int l = 0; l < levels; l++) {
      planes[l].shape(side >> l, channels[l], side);
      inner[l].shape(side >> l, channels[l], RING);
    }
    shaped = side;
  }

  // Both convolutions in place, row by row of tiles, from the moment that `before` made its input.
  template <class Before, class After>
  void run(const Residual &block, int level, const Spans &needed, Before before, After after) {
    Plane &plane = planes[level], &between = inner[level];
    const Spans outer_span = tiles(needed), inner_span = tiles(grown(needed, 1));
    const int rows = outer_span.side();
    for (int r = 0; r < rows + 2; r++) {
      if (r < rows) before(r);
      if (r >= 1 && r <= rows) block.inner.run(plane, between, r - 1, inner_span, RECTIFY, scratch);
      if (r < 2) continue;
      block.outer.run(between, plane, r - 2, outer_span, ADD, scratch); // the rows around have read it
      after(r - 2);
    }
  }

  void run(const uint8_t *canvas, const uint8_t *fov, int side, int reach, float *scores) {
    shape(side / block);
    std::memset(scores, 0, sizeof(float) * side * side);
    // What is needed, from the scores backwards.
    const Spans scored = shrunk(grown(of_field(fov, side), reach), block);
    std::vector<Spans> wanted_up, wanted_down; // the blocks' results
    Spans wanted = grown(scored, 1);
    for (int l = 0; l < levels - 1; l++) {
      wanted_up.push_back(wanted);
      wanted = shrunk(grown(wanted, 2), 2);
    }
    wanted_down.push_back(wanted);
    for (int l = levels - 2; l >= 0; l--)
      wanted_down.insert(wanted_down.begin(),
                         enlarged_with(grown(wanted_down[0], 2), grown(wanted_up[l], 2)));

    const auto nothing = [](int) {};
    for (int l = 0; l < levels; l++) {
      const Spans span = tiles(grown(wanted_down[l], 2));
      run(down[l], l, wanted_down[l], [&](int r) {
        if (l)
          smaller[l - 1].run(planes[l - 1], planes[l], r, span);
        else
          run_first(canvas, side, r, span);
      }, nothing);
    }
    const Spans score_span = tiles(scored);
    const int last_row = score_span.side() - 1;
    for (int l = levels - 2; l >= 0; l--) {
      const Spans span = tiles(grown(wanted_up[l], 2));
      run(up[l], l, wanted_up[l], [&](int r) { larger[l].run(planes[l + 1], planes[l], r, span); },
          [&](int r) {
            if (l == 0 && r > 0) run_last(r - 1, score_span, side, scores);
            if (l == 0 && r == last_row) run_last(r, score_span, side, scores);
          });
    }
  }

  void run_first(const uint8_t *canvas, int side, int tile_row, const Spans &span) {
    const int from = tile_row ? (tile_row + 1) * TILE : 0;
    for (int y = from; y < std::min((tile_row + 2) * TILE, side / block); y++) {
      int begin = side / block, end = 0; // of what the tiles around see
      for (int near = std::max(y / TILE - 1, 0); near < std::min(y / TILE + 2, span.side()); near++) {
        if (!span.any(near)) continue;
        begin = std::min(begin, std::max(span.first[near] * TILE - 1, 0));
        end = std::max(end, std::min(span.last[near] * TILE + 1, side / block));
      }
      if (begin < end) to_cells(canvas, side, y, begin, end);
    }
    first[0].run(colours, planes[0], tile_row, span, RECTIFY, scratch);
  }

  // The colours of a row of cells, as many floats at once as hold those of one row of a cell.
  void to_cells(const uint8_t *canvas, int side, int y, int begin, int end) {
    const int run = COLOURS * block, count = (end - begin) * run;
    for (int dy = 0; dy < block; dy++) {
      const uint8_t *pixels = canvas + (size_t(y * block + dy) * side * COLOURS + begin * run);
      float *line = pixel_row.data(), *to = colours.row(y) + begin * colours.channels + dy * run;
      for (int i = 0; i < count; i++) line[i] = pixels[i];
      if (run <= LANES && dy * run + LANES <= colours.channels) // the rest is padding, or comes next
        for (int x = 0; x < end - begin; x++, line += run, to += colours.channels)
          store(to, load(line));
      else
        for (int x = 0; x < end - begin; x++, line += run, to += colours.channels)
          std::copy(line, line + run, to);
    }
  }

  void run_last(int tile_row, const Spans &span, int side, float *scores) {
    last[0].run(planes[0], logits, tile_row, span, KEEP, scratch);
    const int cells = side / block, first = span.first[tile_row] * TILE;
    const int count = std::min(span.last[tile_row] * TILE, cells) - first;
    for (int y = tile_row * TILE; count > 0 && y < std::min((tile_row + 1) * TILE, cells); y++)
      for (int dy = 0; dy < block; dy++) {
        const float *from = logits.row(y) + size_t(first) * logits.channels + dy * block;
        float *to = scores + size_t(y * block + dy) * side + first * block;
        for (int x = 0; x < count; x++)
          for (int dx = 0; dx < block; dx++) to[x * block + dx] = from[x * logits.channels + dx];
        sigmoid(to, count * block);
      }
  }
};

} // namespace

extern "C" int32_t resunet_open(int32_t block, int32_t levels, const int32_t *channels,
                                const double *weights, void **network) {
  return guarded([&] {
    *network = new Network(block, std::vector<int>(channels, channels + levels), weights);
  });
}

extern "C" void resunet_close(void *network) { delete static_cast<Network *>(network); }

extern "C" int32_t resunet_scores(void *network, const uint8_t *canvas, const uint8_t *fov,
                                  int32_t side, int32_t reach, float *scores) {
  return guarded([&] { static_cast<Network *>(network)->run(canvas, fov, side, reach, scores); });
}
