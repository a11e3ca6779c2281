// The inner loops of bulk segmentation, for any CPU: GCC's and Clang's vector types become whatever
// the machine has. Called through ctypes by __init__.py, which says what each argument is.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int PAIR = 2;        // windows at once, which share the loading of each weight
constexpr int STRIP = 32;      // windows whose kept maxima stay in a core's nearest caches
constexpr int MAX_WIDTH = 512; // channels
constexpr int TAPS = 27;       // 3x3 pixels of 3 channels
constexpr int SPARE = 6 * PAIR; // floats behind a row, for a window too many

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

Floats load(const float *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename Lanes> void store(void *to, const Lanes &lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

Floats select(const Ints &condition, const Floats &yes, const Floats &no) {
  return condition ? yes : no;
}

// exp(x) for x in [-87, 87]: 2^n * 2^f with Cephes' expf polynomial, relative error below 2e-7.
Floats exponential(const Floats &x) {
  const Floats n_float = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23 rounds to a whole number
  const Floats n = n_float - 12582912.0f;
  const Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

void sigmoid(float *values, int count) {
  for (int at = 0; at < count; at += LANES) {
    float lanes[LANES] = {};
    const int some = count - at < LANES ? count - at : LANES;
    std::memcpy(lanes, values + at, sizeof(float) * some);
    Floats x = -load(lanes);
    x = select(x < -87.0f, x * 0 - 87.0f, x);
    x = select(x > 87.0f, x * 0 + 87.0f, x);
    store(lanes, 1.0f / (1.0f + exponential(x)));
    std::memcpy(values + at, lanes, sizeof(float) * some);
  }
}

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

} // namespace

extern "C" void segnet_lite_scores(const uint8_t *canvas, int32_t side, const int32_t *spans,
                                   int32_t width, const float *encoder, const float *decoder,
                                   float bias, float *scores) {
  // Row r of the canvas, and what is summed up for it, lies in slot r & 3 with a pixel to its left:
  // a row of windows reads four rows and adds to four, of which two are then complete.
  std::vector<float> pixels[4], sums[4];
  for (int slot = 0; slot < 4; slot++) {
    pixels[slot].assign((side + 2) * 3 + SPARE, 0.0f);
    sums[slot].assign(side + 2, 0.0f);
  }
  const auto read_row = [&](int y) {
    float *__restrict to = pixels[y & 3].data() + 3;
    if (y < side) {
      const uint8_t *__restrict from = canvas + size_t(y) * side * 3;
      for (int x = 0; x < side * 3; x++) to[x] = from[x];
    } else {
      std::memset(to, 0, sizeof(float) * side * 3);
    }
    std::fill(sums[y & 3].begin(), sums[y & 3].end(), 0.0f);
  };
  alignas(64) float kept[STRIP][MAX_WIDTH];
  alignas(64) int32_t footprint[STRIP][MAX_WIDTH];
  std::memset(scores, 0, sizeof(float) * side * side);
  read_row(0);
  for (int i = 0; i <= side / 2; i++) { // rows of windows, and the end of the last
    read_row(2 * i + 1), read_row(2 * i + 2);
    const float *in[4];
    float *out[4];
    for (int row = 0; row < 4; row++) {
      in[row] = pixels[(2 * i - 1 + row) & 3].data();
      out[row] = sums[(2 * i - 1 + row) & 3].data();
    }
    const int end = i < side / 2 ? spans[2 * i + 1] : 0;
    for (int start = end ? spans[2 * i] : 0; start < end; start += STRIP) {
      const int count = end - start < STRIP ? end - start : STRIP;
      for (int block = 0; block < width / LANES; block++) {
        const float *weights = encoder + block * (TAPS + 1) * LANES;
        const Floats offset = load(weights + TAPS * LANES);
        Ints at_first;
        for (int lane = 0; lane < LANES; lane++) at_first[lane] = (block * LANES + lane) * 4 * 16;
        for (int j = 0; j < count; j += PAIR) { // of an odd count one window too many
          const int left = 2 * (start + j) * 3;
          Floats a[PAIR], b[PAIR], c[PAIR], d[PAIR];
          for (int n = 0; n < PAIR; n++) a[n] = b[n] = c[n] = d[n] = offset;
          for (int row = 0; row < 3; row++)
            for (int k = 0; k < 9; k++) {
              const Floats weight = load(weights + (row * 9 + k) * LANES);
              const float *upper = in[row] + left + k, *lower = in[row + 1] + left + k;
#pragma GCC unroll 2
              for (int n = 0; n < PAIR; n++) {
                a[n] += weight * upper[6 * n];
                b[n] += weight * upper[6 * n + 3];
                c[n] += weight * lower[6 * n];
                d[n] += weight * lower[6 * n + 3];
              }
            }
#pragma GCC unroll 2
          for (int n = 0; n < PAIR; n++) {
            Floats highest = a[n];
            Ints at = at_first, later = b[n] > highest;
            highest = later ? b[n] : highest, at = later ? at_first + 16 : at;
            later = c[n] > highest;
            highest = later ? c[n] : highest, at = later ? at_first + 32 : at;
            later = d[n] > highest;
            highest = later ? d[n] : highest, at = later ? at_first + 48 : at;
            store(&kept[j + n][block * LANES], select(highest > 0.0f, highest, highest * 0));
            store(&footprint[j + n][block * LANES], at);
          }
        }
      }
      for (int j = 0; j < count; j++) {
        Floats sum[4] = {};
        for (int c = 0; c < width; c += 4)
#pragma GCC unroll 4
          for (int k = 0; k < 4; k++)
            sum[k] += load(decoder + footprint[j][c + k]) * kept[j][c + k];
        float window[16];
        store(window, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        for (int row = 0; row < 4; row++)
          for (int k = 0; k < 4; k++) out[row][2 * (start + j) + k] += window[row * 4 + k];
      }
    }
    for (int row = 0; row < 2; row++) { // 2 i - 1 and 2 i are complete
      const int y = 2 * i - 1 + row;
      if (y < 0 || y >= side) continue;
      const int first = 2 * spans[y / 2 * 2], columns = 2 * spans[y / 2 * 2 + 1] - first;
      float *to = scores + size_t(y) * side + first;
      for (int x = 0; x < columns; x++) to[x] = out[row][1 + first + x] + bias;
      if (columns > 0) sigmoid(to, columns);
    }
  }
}

extern "C" void native_mask(const float *score, const uint8_t *fov, int32_t side,
                            const int32_t *geometry, float threshold, uint8_t *mask) {
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
      out[x] = f > 127.0f ? (s >= threshold ? 1 : 2) : 0;
    }
  }
  const size_t done = size_t(top + box_height) * width;
  std::memset(mask + done, 0, size_t(geometry[0]) * width - done);
}
