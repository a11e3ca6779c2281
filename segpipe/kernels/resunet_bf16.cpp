// resunet's score of a canvas with bf16 products on AMX: whole tiles of cells and channels at once,
// their sums in single precision. Weights, and activations between layers, are rounded to bf16.
//
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#include "border.h"
#include "resunet.h"
#include "tiles.h"
#include <array>
#include <cmath>
#include <stdexcept>

#ifndef HAS_TILES

std::unique_ptr<Scorer> open_bf16(int, const std::vector<int> &, int, const double *) {
  throw std::runtime_error("no tiles");
}

extern "C" int32_t has_tiles() { return 0; }

#else

namespace {

constexpr int LINE = 16;     // sums of a tile's row
constexpr int DEPTH = 32;    // products of a sum, in one step
constexpr int ROWS = 16;     // of a tile
constexpr int SUM_TILES = 4; // that are found together

struct Bf16 {
  uint16_t bits;
};

Bf16 rounded(double value) { // to the nearest, ties to the even one
  const float narrow = float(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline __m512 widened(const Bf16 *from) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
inline __m512 widened(const float *from) { return _mm512_loadu_ps(from); }

inline void store_line(Bf16 *to, __m512 sums) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(sums));
}
inline void store_line(float *to, __m512 sums) { _mm512_storeu_ps(to, sums); }

// Numbers that a cell of some channels takes. Cell -1 of every row is at a multiple of 64 bytes: a tile
// whose rows lie across two lines of the cache takes five times as long to load.
constexpr int cell_of(int channels) { return channels <= 8 ? 8 : padded(channels, LINE); }

struct Scratch {
  alignas(64) float sums[2][SUM_TILES * ROWS * LINE]; // [turn][row][line]
  void shape(int) {}
};

using Rows = std::array<const Bf16 *, 3>; // where runs begin, in each row of a kernel

// A layer as products of runs of numbers, one run in each row of its kernel, with tiles of weights.
struct Layer {
  int rows, together;       // of a kernel; cells whose sums are of one run
  int stride, steps, lines; // numbers from a run to the next; DEPTHs of a run; LINEs of its sums
  Aligned<Bf16> weights;    // [group of two lines][row][step][line][DEPTH / 2][LINE][2]
  Floats64 bias;

  // plain [rows][columns][before][after]. `apart`: cells from what one cell sees to what the next does;
  // `lead`: cells of a run before the first that is seen.
  Layer(const std::vector<double> &plain, const std::vector<double> &plain_bias, int new_rows, int columns,
        int apart, int lead, int new_together)
      : rows(new_rows), together(new_together) {
    const int after = int(plain_bias.size()), before = int(plain.size()) / (rows * columns * after);
    const int from = cell_of(before), to = cell_of(after);
    stride = apart * together * from, lines = together * to / LINE;
    steps = padded((lead + columns + apart * (together - 1)) * from, DEPTH) / DEPTH;
    weights.assign(size_t(rows) * steps * lines * DEPTH * LINE), bias.assign(size_t(lines) * LINE);
    for (int cell = 0; cell < together; cell++)
      for (int out = 0; out < after; out++) {
        const int sum = cell * to + out;
        bias.data()[sum] = float(plain_bias[out]);
        for (int row = 0; row < rows; row++)
          for (int column = 0; column < columns; column++)
            for (int k = 0; k < before; k++)
              weights.data()[place(row, (lead + column + apart * cell) * from + k, sum)] =
                  rounded(plain[(size_t(row * columns + column) * before + k) * after + out]);
      }
  }

  // For `cells` cells, `to_stride` numbers from a run's sums to the next one's.
  template <class Number>
  void run(const Rows &from, int cells, Number *to, int to_stride, Then then, Scratch &scratch) const {
    for (int line = 0; line < lines; line += 2) {
      const Target<Number> target{to + line * LINE, to_stride, then};
      if (line + 1 < lines)
        run_lines<2>(from, cells / together, line, target, scratch);
      else
        run_lines<1>(from, cells / together, line, target, scratch);
    }
  }

private:
  template <class Number> struct Target {
    Number *to;
    int stride;
    Then then;
  };

  int in_group(int line) const { return std::min(2, lines - line / 2 * 2); }
  size_t of_group(int line) const { return size_t(line / 2 * 2) * rows * steps * DEPTH * LINE; }
  size_t place(int row, int k, int sum) const {
    const int line = sum / LINE, step = k / DEPTH;
    const size_t tile = size_t(row * steps + step) * in_group(line) + line % 2;
    return of_group(line) + tile * DEPTH * LINE + (k % DEPTH / 2 * LINE + sum % LINE) * 2 + k % 2;
  }

  // What is found in tiles is finished while the next ones are found.
  template <int LINES, class Number>
  __attribute__((noinline)) void run_lines(const Rows &from, int runs, int line, const Target<Number> &target,
                                           Scratch &scratch) const {
    constexpr int MANY = SUM_TILES / LINES * ROWS;
    int turn = 0;
    for (int first = 0; first < runs; first += MANY, turn ^= 1) {
      multiply<LINES>(from, first, std::min(MANY, runs - first), line, scratch.sums[turn]);
      if (first) finish<LINES>(scratch.sums[turn ^ 1], target, first - MANY, MANY);
    }
    const int last = (runs - 1) / MANY * MANY;
    finish<LINES>(scratch.sums[turn ^ 1], target, last, runs - last);
  }

  // Tiles 0 to 3 have the sums, 4 and 5 the runs, 6 and 7 the weights.
  template <int LINES>
  inline void multiply(const Rows &from, int first, int some, int line, float *sums) const {
    const float *offset = bias.data() + line * LINE;
    const Bf16 *weight = weights.data() + of_group(line);
    const size_t bytes = sizeof(Bf16) * stride;
    constexpr int ROW = LINES * LINE;
    written();
    if constexpr (LINES == 1) {
      const int tiles = (some + ROWS - 1) / ROWS;
      _tile_loadd(0, offset, 0); // its line in every row
      if (tiles > 1) _tile_loadd(1, offset, 0);
      if (tiles > 2) _tile_loadd(2, offset, 0);
      if (tiles > 3) _tile_loadd(3, offset, 0);
      for (int row = 0; row < rows; row++) {
        const Bf16 *at = from[row] + size_t(first) * stride;
        for (int step = 0; step < steps; step++, at += DEPTH, weight += DEPTH * LINE) {
          _tile_loadd(6, weight, 2 * DEPTH);
          _tile_loadd(4, at, bytes);
          _tile_dpbf16ps(0, 4, 6);
          if (tiles > 1) {
            _tile_loadd(5, at + ROWS * stride, bytes);
            _tile_dpbf16ps(1, 5, 6);
          }
          if (tiles > 2) {
            _tile_loadd(4, at + 2 * ROWS * stride, bytes);
            _tile_dpbf16ps(2, 4, 6);
          }
          if (tiles > 3) {
            _tile_loadd(5, at + 3 * ROWS * stride, bytes);
            _tile_dpbf16ps(3, 5, 6);
          }
        }
      }
      _tile_stored(0, sums, sizeof(float) * ROW);
      if (tiles > 1) _tile_stored(1, sums + ROWS * ROW, sizeof(float) * ROW);
      if (tiles > 2) _tile_stored(2, sums + 2 * ROWS * ROW, sizeof(float) * ROW);
      if (tiles > 3) _tile_stored(3, sums + 3 * ROWS * ROW, sizeof(float) * ROW);
    } else {
      const bool second = some > ROWS;
      _tile_loadd(0, offset, 0);
      _tile_loadd(1, offset + LINE, 0);
      if (second) _tile_loadd(2, offset, 0);
      if (second) _tile_loadd(3, offset + LINE, 0);
      for (int row = 0; row < rows; row++) {
        const Bf16 *at = from[row] + size_t(first) * stride;
        for (int step = 0; step < steps; step++, at += DEPTH, weight += 2 * DEPTH * LINE) {
          _tile_loadd(4, at, bytes);
          _tile_loadd(6, weight, 2 * DEPTH);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, weight + DEPTH * LINE, 2 * DEPTH);
          _tile_dpbf16ps(1, 4, 7);
          if (second) {
            _tile_loadd(5, at + ROWS * stride, bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
          }
        }
      }
      _tile_stored(0, sums, sizeof(float) * ROW);
      _tile_stored(1, sums + LINE, sizeof(float) * ROW);
      if (second) _tile_stored(2, sums + ROWS * ROW, sizeof(float) * ROW);
      if (second) _tile_stored(3, sums + ROWS * ROW + LINE, sizeof(float) * ROW);
    }
  }

  template <int LINES, class Number>
  inline void finish(const float *sums, const Target<Number> &target, int first, int some) const {
    Number *to = target.to + size_t(first) * target.stride;
    const auto each = [&](auto became) {
      for (int run = 0; run < some; run++, to += target.stride)
#pragma GCC unroll 2
        for (int l = 0; l < LINES; l++, sums += LINE)
          store_line(to + l * LINE, became(_mm512_load_ps(sums), to + l * LINE));
    };
    if (target.then == ADD)
      each([&](__m512 sum, const Number *at) { return positive(_mm512_add_ps(sum, widened(at))); });
    else if (target.then == RECTIFY)
      each([&](__m512 sum, const Number *) { return positive(sum); });
    else
      each([](__m512 sum, const Number *) { return sum; });
  }
};

struct Convolution { // 3x3
  Layer layer;

  Convolution(Reader &reader, int before, int after) // within braces the weights are read first
      : layer{reader.take(size_t(9) * before * after), reader.take(after), 3, 3, 1, 0, cell_of(after) < 32 ? 2 : 1} {}

  template <class Number>
  void run(Plane<Bf16> &in, Plane<Number> &out, int tile_row, const Spans &span, Then then,
           Scratch &scratch) const {
    out.clear_outside(tile_row, span);
    const auto [first, count] = cells_of(out, tile_row, span);
    for (int y = tile_row * TILE; count && y < std::min((tile_row + 1) * TILE, out.side); y++) {
      Rows from;
      for (int row = 0; row < 3; row++) from[row] = in.row(y - 1 + row) + (first - 1) * in.channels;
      layer.run(from, count, out.row(y) + first * out.channels, layer.together * out.channels, then, scratch);
    }
  }
};

struct Smaller { // 2x2, stride 2
  int lead;
  Layer layer;

  Smaller(Reader &reader, int before, int after)
      : lead(cell_of(before) < 32),
        layer{reader.take(size_t(4) * before * after), reader.take(after), 2, 2, 2, lead, cell_of(after) < 16 ? 2 : 1} {}

  void run(Plane<Bf16> &in, Plane<Bf16> &out, int tile_row, const Spans &span, Scratch &scratch) const {
    out.clear_outside(tile_row, span);
    const auto [first, count] = cells_of(out, tile_row, span);
    const int begin = (2 * first - lead) * in.channels;
    for (int y = tile_row * TILE; count && y < std::min((tile_row + 1) * TILE, out.side); y++)
      layer.run({in.row(2 * y) + begin, in.row(2 * y + 1) + begin, nullptr}, count,
                out.row(y) + first * out.channels, layer.together * out.channels, RECTIFY, scratch);
  }
};

struct Larger { // transposed 2x2, stride 2, added to what is there
  std::vector<Layer> layers; // of the upper and the lower row of each 2x2

  Larger(Reader &reader, int before, int after) {
    const Halves halves(reader, before, after, cell_of(after));
    for (const auto &plain : halves.rows) layers.emplace_back(plain, halves.bias, 1, 1, 1, 0, 1);
  }

  void run(Plane<Bf16> &in, Plane<Bf16> &out, int tile_row, const Spans &span, Scratch &scratch) const {
    const auto [first, count] = cells_of(out, tile_row, span);
    for (int y = tile_row * TILE; count && y < std::min((tile_row + 1) * TILE, out.side); y++)
      layers[y & 1].run({in.row(y / 2) + first / 2 * in.channels, nullptr, nullptr}, count / 2,
                        out.row(y) + first * out.channels, 2 * out.channels, ADD, scratch);
  }
};

struct Tiled {
  using Number = Bf16;
  using Convolution = ::Convolution;
  using Smaller = ::Smaller;
  using Larger = ::Larger;
  using Scratch = ::Scratch;
  using Session = Tiles;
  static constexpr int SPARE = 2 * (SUM_TILES * ROWS + 1) + DEPTH, WIDENED = LINE;
  static constexpr int cell(int channels) { return cell_of(channels); }
  static void widen(const uint8_t *pixels, int count, Bf16 *to) { // of 8 bits, so exactly
    for (int i = 0; i < count; i += LINE) {
      const __mmask16 there = count - i < LINE ? (1 << (count - i)) - 1 : 0xffff;
      const __m512i wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, pixels + i));
      store_line(to + i, _mm512_cvtepi32_ps(wide));
    }
  }
};

} // namespace

std::unique_ptr<Scorer> open_bf16(int block, const std::vector<int> &channels, int maps, const double *weights) {
  if (!ask_for_tiles()) throw std::runtime_error("no tiles");
  if (cell_of(channels.back()) < 32) throw std::runtime_error("cells in pairs where sides may be odd");
  return std::make_unique<Network<Tiled>>(block, channels, maps, weights);
}

extern "C" int32_t has_tiles() { return ask_for_tiles(); }

#endif
