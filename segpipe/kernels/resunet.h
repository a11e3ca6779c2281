// resunet's order of layers, for any kind of numbers: those of resunet.cpp or resunet_bf16.cpp.
//
// Activations lie as rows of cells, a cell's channels side by side, so that the cells which a
// convolution sees in one row are one run of numbers, and every layer is a product of such runs with
// weights. Only the tiles of 4x4 cells are computed that the field of view's scores depend on.
#pragma once
#include "products.h"
#include "spans.h"
#include <algorithm>
#include <memory>
#include <vector>

// One network that is open, whatever its numbers.
struct Scorer {
  virtual ~Scorer() = default;
  virtual void run(const uint8_t *canvas, const uint8_t *fov, int side, int reach, float *scores) = 0;
};

// Throws where this library or CPU has no such arithmetic.
std::unique_ptr<Scorer> open_bf16(int block, const std::vector<int> &channels, int maps, const double *weights);

namespace {

constexpr int COLOURS = 3;

// ---- activations

// Rows of cells with zeros around, of which the newest `kept` are there.
template <class Number> struct Plane {
  int side = 0, channels = 0, kept = 0; // channels: numbers of a cell
  size_t length = 0;                    // numbers of a row
  Aligned<Number> numbers;

  // Behind the last row there are as many numbers as `spare` cells have.
  void shape(int new_side, int new_channels, int new_kept, int spare) {
    side = new_side, channels = new_channels, kept = std::min(new_kept, side);
    length = size_t(padded((padded(side, TILE) + 2) * channels, 64 / int(sizeof(Number))));
    numbers.assign(length * (kept + 1) + size_t(spare) * channels);
  }
  // Cell 0 of row y, which may also be one of zeros beyond the canvas; cells -1 and side are zeros.
  Number *row(int y) {
    const int place = y < 0 || y >= side ? kept : y % kept;
    return numbers.data() + place * length + channels;
  }
  // Zeros in a row of tiles outside of those `span` names.
  void clear_outside(int tile_row, const Spans &span) {
    const int end = std::min((tile_row + 1) * TILE, side);
    for (int y = tile_row * TILE; y < end; y++) {
      Number *cells = row(y);
      const int last = std::min(span.last[tile_row] * TILE, side);
      const int first = std::min(span.first[tile_row] * TILE, side);
      std::fill(cells, cells + size_t(first) * channels, Number{});
      std::fill(cells + size_t(std::max(first, last)) * channels, cells + size_t(side) * channels, Number{});
    }
  }
};

// The first cells of a row of tiles, and how many there are.
template <class Number> std::pair<int, int> cells_of(const Plane<Number> &out, int tile_row, const Spans &span) {
  const int first = span.first[tile_row] * TILE;
  return {first, std::max(std::min(span.last[tile_row] * TILE, out.side) - first, 0)};
}

// ---- weights

// What becomes of a sum: it is kept, or its positive part is, or what is there is added before.
enum Then { KEEP, RECTIFY, ADD };

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

// Of a transposed 2x2 convolution: the weights [in][column][out] of its upper and its lower row, and
// the biases of both columns, with zeros up to `cell` outputs.
struct Halves {
  std::vector<double> rows[2], bias;
  Halves(Reader &reader, int before, int after, int cell) {
    const std::vector<double> plain = reader.take(size_t(4) * before * after); // [row][in][column][out]
    const std::vector<double> all = filled(plain, 4 * before, 1, after, 1, cell);
    const auto middle = all.begin() + all.size() / 2;
    rows[0].assign(all.begin(), middle), rows[1].assign(middle, all.end());
    bias = filled(reader.take(size_t(2) * after), 2, 1, after, 1, cell);
  }
};

// ---- the network

template <class Form> struct Residual {
  typename Form::Convolution inner, outer;
  Residual(Reader &reader, int channels)
      : inner(reader, channels, channels), outer(reader, channels, channels) {}
};

// A Form has the numbers of a plane, how many of them a cell of some channels takes, and its layers.
template <class Form> struct Network : Scorer {
  using Number = typename Form::Number;
  int block;                 // px: each cell of the first level is a square of them
  std::vector<int> channels; // of each level, half as large as the one before
  int levels, maps;          // maps: scores of each pixel
  int shaped = 0;            // cells of the side that planes have room for
  std::vector<typename Form::Convolution> first, last; // one of each
  std::vector<Residual<Form>> down, up;                // of the first level first
  std::vector<typename Form::Smaller> smaller;
  std::vector<typename Form::Larger> larger; // to the first level first
  Plane<Number> colours;
  Plane<float> logits;
  std::vector<Plane<Number>> planes, inner; // of each level
  Aligned<Number> pixel_row;
  typename Form::Scratch scratch;

  Network(int new_block, const std::vector<int> &new_channels, int new_maps, const double *plain)
      : block(new_block), channels(new_channels), levels(int(channels.size())), maps(new_maps), planes(levels),
        inner(levels) {
    Reader reader{plain};
    first.emplace_back(reader, COLOURS * block * block, channels[0]);
    for (int count : channels) down.emplace_back(reader, count);
    for (int l = 1; l < levels; l++) smaller.emplace_back(reader, channels[l - 1], channels[l]);
    for (int l = 1; l < levels; l++) larger.emplace_back(reader, channels[l], channels[l - 1]);
    for (int l = 1; l < levels; l++) up.emplace_back(reader, channels[l - 1]);
    last.emplace_back(reader, channels[0], maps * block * block);
    scratch.shape(std::max(*std::max_element(channels.begin(), channels.end()), COLOURS * block * block));
  }

  void shape(int side) { // cells of the first level
    if (shaped == side) return;
    shaped = 0; // until all are: memory may not suffice for one of them
    constexpr int RING = 4 * TILE; // three rows of tiles are read, while a fourth is written
    constexpr int SPARE = Form::SPARE;
    colours.shape(side, Form::cell(COLOURS * block * block), RING, SPARE);
    logits.shape(side, Form::cell(maps * block * block), RING, SPARE);
    pixel_row.assign(size_t(side) * COLOURS * block + Form::WIDENED);
    for (int l = 0; l < levels; l++) {
      planes[l].shape(side >> l, Form::cell(channels[l]), side, SPARE);
      inner[l].shape(side >> l, Form::cell(channels[l]), RING, SPARE);
    }
    shaped = side;
  }

  // Both convolutions in place, row by row of tiles, from the moment that `before` made its input.
  template <class Before, class After>
  void run(const Residual<Form> &block, int level, const Spans &needed, Before before, After after) {
    Plane<Number> &plane = planes[level], &between = inner[level];
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

  void run(const uint8_t *canvas, const uint8_t *fov, int side, int reach, float *scores) override {
    [[maybe_unused]] const typename Form::Session session;
    const int cells = padded(side, block << (levels - 1)) / block; // zeros lie beyond the canvas
    shape(cells);
    std::memset(scores, 0, sizeof(float) * maps * side * side);
    // What is needed, from the scores backwards.
    const Spans scored = shrunk(grown(of_field(fov, side, cells * block), reach), block);
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
          smaller[l - 1].run(planes[l - 1], planes[l], r, span, scratch);
        else
          run_first(canvas, side, r, span);
      }, nothing);
    }
    const Spans score_span = tiles(scored);
    const int last_row = score_span.side() - 1;
    for (int l = levels - 2; l >= 0; l--) {
      const Spans span = tiles(grown(wanted_up[l], 2));
      run(up[l], l, wanted_up[l], [&](int r) { larger[l].run(planes[l + 1], planes[l], r, span, scratch); },
          [&](int r) {
            if (l == 0 && r > 0) run_last(r - 1, score_span, side, scores);
            if (l == 0 && r == last_row) run_last(r, score_span, side, scores);
          });
    }
  }

  void run_first(const uint8_t *canvas, int side, int tile_row, const Spans &span) {
    const int from = tile_row ? (tile_row + 1) * TILE : 0;
    for (int y = from; y < std::min((tile_row + 2) * TILE, shaped); y++) {
      int begin = shaped, end = 0; // of what the tiles around see
      for (int near = std::max(y / TILE - 1, 0); near < std::min(y / TILE + 2, span.side()); near++) {
        if (!span.any(near)) continue;
        begin = std::min(begin, std::max(span.first[near] * TILE - 1, 0));
        end = std::max(end, std::min(span.last[near] * TILE + 1, shaped));
      }
      if (begin < end) to_cells(canvas, side, y, begin, end);
    }
    first[0].run(colours, planes[0], tile_row, span, RECTIFY, scratch);
  }

  // The colours of a row of cells, as many numbers at once as hold those of one row of a cell.
  void to_cells(const uint8_t *canvas, int side, int y, int begin, int end) {
    const int beyond = y * block < side ? std::clamp(side / block, begin, end) : begin;
    std::fill_n(colours.row(y) + beyond * colours.channels, (end - beyond) * colours.channels, Number{});
    end = beyond;
    const int run = COLOURS * block, count = (end - begin) * run;
    for (int dy = 0; dy < block; dy++) {
      const uint8_t *pixels = canvas + (size_t(y * block + dy) * side * COLOURS + begin * run);
      Number *line = pixel_row.data(), *to = colours.row(y) + begin * colours.channels + dy * run;
      Form::widen(pixels, count, line);
      const int room = colours.channels - dy * run; // what is not of the run is padding, or comes next
      if (run <= 8 && room >= 8)
        copy_runs<8>(line, run, end - begin, to, colours.channels);
      else if (run <= 16 && room >= 16)
        copy_runs<16>(line, run, end - begin, to, colours.channels);
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
      for (int line = 0; line < maps * block; line++) { // of each cell, a map after the other
        const int map = line / block, dy = line % block;
        const float *from = logits.row(y) + size_t(first) * logits.channels + line * block;
        float *to = scores + (size_t(map) * side + y * block + dy) * side + first * block;
        switch (block) {
        case 2: copy_runs<2>(from, logits.channels, count, to, 2); break;
        case 4: copy_runs<4>(from, logits.channels, count, to, 4); break;
        default:
          for (int cell = 0; cell < count; cell++, from += logits.channels)
            std::copy(from, from + block, to + cell * block);
        }
        sigmoid(to, count * block);
      }
  }

  // RUN numbers of each cell, from one stride to another.
  template <int RUN, class Any>
  static void copy_runs(const Any *from, int stride, int cells, Any *to, int to_stride) {
    for (int cell = 0; cell < cells; cell++, from += stride, to += to_stride)
      std::memcpy(to, from, RUN * sizeof(Any));
  }
};

} // namespace
