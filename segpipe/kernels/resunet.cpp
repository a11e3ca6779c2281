// resunet: its score of a canvas, in single precision. Called through ctypes by resunet.py, which says
// what each argument is.
#define EIGHT_LANES // cells of 8 channels half-fill wider ones, and those of 16 gain nothing
#include "resunet.h"
#include "border.h"
#include <array>

namespace {

// ---- products

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
  void shape(int most_channels) {
    spots.assign(size_t(SPOTS) * STRIP * padded(most_channels, LANES));
    sums.assign(SPOTS * STRIP * 4 * LANES);
  }
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
  __attribute__((noinline)) void run(Plane<float> &in, Plane<float> &out, int tile_row, const Spans &span, Then then,
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
  void spread(Plane<float> &in, int tile_row, int first, int count, float *spots) const {
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

  __attribute__((noinline)) void gather(const float *sums, int group, Plane<float> &out, int tile_row, int first, int count,
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

struct Smaller { // 2x2, stride 2
  Layer layer;

  Smaller(Reader &reader, int before, int after) {
    const int cell = padded(before, LANES);
    const std::vector<double> plain = reader.take(size_t(4) * before * after);
    layer.pack(filled(plain, 4, before, after, cell, after), reader.take(after), 2, 2 * cell);
  }

  void run(Plane<float> &in, Plane<float> &out, int tile_row, const Spans &span, Scratch &) const {
    out.clear_outside(tile_row, span);
    const auto [first, count] = cells_of(out, tile_row, span);
    for (int y = tile_row * TILE; count && y < std::min((tile_row + 1) * TILE, out.side); y++) {
      const int begin = 2 * first * in.channels;
      layer.run({in.row(2 * y) + begin, in.row(2 * y + 1) + begin, nullptr}, count,
                out.row(y) + size_t(first) * out.channels, out.channels, RECTIFY);
    }
  }
};

struct Larger { // transposed 2x2, stride 2, added to what is there
  std::vector<Layer> layers; // of the upper and the lower row of each 2x2

  Larger(Reader &reader, int before, int after) : layers(2) {
    const Halves halves(reader, before, after, padded(after, LANES));
    for (int row = 0; row < 2; row++) layers[row].pack(halves.rows[row], halves.bias, 1, padded(before, LANES));
  }

  void run(Plane<float> &in, Plane<float> &out, int tile_row, const Spans &span, Scratch &) const {
    const auto [first, count] = cells_of(out, tile_row, span);
    for (int y = tile_row * TILE; count && y < std::min((tile_row + 1) * TILE, out.side); y++) {
      layers[y & 1].run({in.row(y / 2) + size_t(first / 2) * in.channels, nullptr, nullptr},
                        count / 2, out.row(y) + size_t(first) * out.channels, 2 * out.channels, ADD);
    }
  }
};

struct Fp32 {
  using Number = float;
  using Convolution = ::Convolution;
  using Smaller = ::Smaller;
  using Larger = ::Larger;
  using Scratch = ::Scratch;
  struct Session {};
  static constexpr int SPARE = 0, WIDENED = LANES;
  static constexpr int cell(int channels) { return padded(channels, LANES); }
  static void widen(const uint8_t *pixels, int count, float *to) { std::copy(pixels, pixels + count, to); }
};

} // namespace

extern "C" int32_t resunet_open(int32_t block, int32_t levels, const int32_t *channels, int32_t maps,
                                const double *weights, int32_t bf16, void **network) {
  return guarded([&] {
    const std::vector<int> all(channels, channels + levels);
    std::unique_ptr<Scorer> opened =
        bf16 ? open_bf16(block, all, maps, weights) : std::make_unique<Network<Fp32>>(block, all, maps, weights);
    *network = opened.release();
  });
}

extern "C" void resunet_close(void *network) { delete static_cast<Scorer *>(network); }

extern "C" int32_t resunet_scores(void *network, const uint8_t *canvas, const uint8_t *fov,
                                  int32_t side, int32_t reach, float *scores) {
  return guarded([&] { static_cast<Scorer *>(network)->run(canvas, fov, side, reach, scores); });
}
