// Picture -> what a PNG holds of it (RFC 1950, RFC 1951; PNG, third edition, section 9). Called through
// ctypes by scores.py.
#include "border.h"
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int SYMBOLS = 286, END = 256, LONGEST = 258;
constexpr int MATCH = 512; // with its length added, the token of a run
constexpr int CODE_BITS = 15, LENGTH_BITS = 7; // the longest codes, of symbols and of code lengths
constexpr size_t SAMPLE = 8;     // one of so many tokens is counted,
constexpr size_t FEW = 1 << 14; // but of fewer than these each
constexpr uint32_t ADLER = 65521, ADLER_STEP = 2048;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bits are stored eight bytes at a time");

struct Bits {
  uint8_t *out; // behind which 8 bytes may be written
  uint64_t held = 0;
  int count = 0; // below 8

  // Up to 56 bits, the lowest first.
  void put(uint64_t value, int bits) {
    held |= value << count;
    count += bits;
    std::memcpy(out, &held, 8);
    out += count >> 3;
    held >>= count & ~7;
    count &= 7;
  }

  void finish() {
    if (count) *out++ = uint8_t(held);
  }
};

struct Code {
  uint16_t bits[SYMBOLS];
  uint8_t length[SYMBOLS];
};

// Huffman's lengths for these counts, none above `most`: where one is, rarer symbols are made less
// rare and all is done again. A single symbol has a length of 1.
void code_lengths(const uint32_t *counts, int symbols, int most, uint8_t *length) {
  uint32_t weight[2 * SYMBOLS];
  int16_t parent[2 * SYMBOLS], leaves[SYMBOLS];
  int num = 0;
  for (int s = 0; s < symbols; s++) {
    length[s] = 0;
    if (counts[s]) leaves[num++] = int16_t(s);
  }
  if (num == 1) length[leaves[0]] = 1;
  if (num < 2) return;
  std::sort(leaves, leaves + num, [&](int a, int b) {
    return counts[a] != counts[b] ? counts[a] < counts[b] : a < b;
  });
  for (int halved = 0;; halved++) {
    for (int n = 0; n < num; n++) weight[n] = std::max(counts[leaves[n]] >> halved, 1u);
    int leaf = 0, node = num; // the lightest of either kind that has no parent yet
    for (int made = num; made < 2 * num - 1; made++) {
      weight[made] = 0;
      for (int child = 0; child < 2; child++) {
        const bool is_leaf = leaf < num && (node == made || weight[leaf] <= weight[node]);
        const int lightest = is_leaf ? leaf++ : node++;
        weight[made] += weight[lightest];
        parent[lightest] = int16_t(made);
      }
    }
    uint8_t depth[2 * SYMBOLS];
    depth[2 * num - 2] = 0;
    for (int n = 2 * num - 3; n >= 0; n--) depth[n] = uint8_t(depth[parent[n]] + 1);
    if (*std::max_element(depth, depth + num) > most) continue;
    for (int n = 0; n < num; n++) length[leaves[n]] = depth[n];
    return;
  }
}

// Canonical codes of these lengths, their bits turned round as the stream wants them.
void assign(Code &code, int symbols) {
  uint32_t next[CODE_BITS + 2] = {}, first = 0;
  for (int s = 0; s < symbols; s++) next[code.length[s] + 1] += code.length[s] > 0;
  for (int bits = 1; bits <= CODE_BITS; bits++) next[bits] = first = (first + next[bits]) << 1;
  for (int s = 0; s < symbols; s++) {
    uint32_t value = code.length[s] ? next[code.length[s]]++ : 0, turned = 0;
    for (int bit = 0; bit < code.length[s]; bit++, value >>= 1) turned = turned << 1 | (value & 1);
    code.bits[s] = uint16_t(turned);
  }
}

// Symbol, and number and value of further bits, of a run's length from 3 to 258.
struct Lengths {
  uint16_t symbol[LONGEST + 1];
  uint8_t bits[LONGEST + 1], value[LONGEST + 1];

  constexpr Lengths() : symbol(), bits(), value() {
    int length = 3;
    for (int s = 257; s < 285; s++) {
      const int extra = s < 265 ? 0 : (s - 261) / 4;
      for (int n = 0; n < 1 << extra && length < LONGEST; n++, length++)
        symbol[length] = uint16_t(s), bits[length] = uint8_t(extra), value[length] = uint8_t(n);
    }
    symbol[LONGEST] = 285;
  }
};
constexpr Lengths LENGTHS;

// A row, and the one above it, -> Paeth's differences, after the byte that names that filter.
void by_paeth(const uint8_t *__restrict row, const uint8_t *__restrict above, int width,
            uint8_t *__restrict out) {
  out[0] = 4;
  out[1] = uint8_t(row[0] - above[0]); // left of it is 0, so that what is above is nearest
  for (int x = 1; x < width; x++) {
    // a + b - c is |b - c| from a and |a - c| from b; from c it is further than both where a and b
    // lie on one side of c, else as far as these two differ. So bytes are enough.
    // Without branches, or compilers find no vectors in it.
    const uint8_t a = row[x - 1], b = above[x], c = above[x - 1];
    const uint8_t to_a = std::max(b, c) - std::min(b, c), to_b = std::max(a, c) - std::min(a, c);
    const uint8_t one_side = -uint8_t((b > c) == (a > c));
    const uint8_t to_c = one_side | (std::max(to_a, to_b) - std::min(to_a, to_b));
    const uint8_t take_a = -uint8_t((to_a <= to_b) & (to_a <= to_c));
    const uint8_t take_b = ~take_a & -uint8_t(to_b <= to_c);
    const uint8_t nearest = (a & take_a) | (b & take_b) | (c & ~(take_a | take_b));
    out[x + 1] = row[x] - nearest;
  }
}

// The same of bytes that hold several pixels: what a row differs by from the one above.
void upwards(const uint8_t *__restrict row, const uint8_t *__restrict above, size_t size,
             uint8_t *__restrict out) {
  out[0] = 2;
  for (size_t at = 0; at < size; at++) out[at + 1] = row[at] - above[at];
}

// A row's pixels -> bytes, in which the first are the uppermost bits.
template <int BITS> void join(const uint8_t *__restrict row, int width, uint8_t *__restrict out) {
  constexpr int MANY = 8 / BITS;
  const int whole = width / MANY;
  for (int at = 0; at < whole; at++) {
    uint8_t byte = 0;
    for (int n = 0; n < MANY; n++) byte |= row[at * MANY + n] << (8 - BITS - BITS * n);
    out[at] = byte;
  }
  if (width % MANY) out[whole] = 0;
  for (int x = whole * MANY; x < width; x++) out[whole] |= row[x] << (8 - BITS - BITS * (x % MANY));
}

// Rows of an image as a PNG has them, one after the other.
class Rows {
  const uint8_t *next;
  int width, bits;
  std::vector<uint8_t> above, joined;

public:
  const size_t pitch; // bytes of a row, its filter's included

  Rows(const uint8_t *image, int width, int bits)
      : next(image), width(width), bits(bits), above(width), joined(width),
        pitch((size_t(width) * bits + 7) / 8 + 1) {}

  void filter(uint8_t *out) {
    if (bits == 8) {
      by_paeth(next, above.data(), width, out);
      std::memcpy(above.data(), next, width);
    } else {
      (bits == 4 ? join<4> : join<2>)(next, width, joined.data());
      upwards(joined.data(), above.data(), pitch - 1, out);
      above.swap(joined);
    }
    next += width;
  }
};

// Of eight bytes those that differ from the one before: there the result has bytes that are not 0.
uint64_t changes(const uint8_t *at) {
  uint64_t now, before;
  std::memcpy(&now, at, 8), std::memcpy(&before, at - 1, 8);
  return now ^ before;
}

constexpr size_t COPIED = 32; // bytes at once: so many are read, and written, beyond the last

// Tokens of bytes; their end.
uint16_t *put_bytes(const uint8_t *__restrict from, size_t count, uint16_t *__restrict tokens) {
  for (size_t at = 0; at < count; at += COPIED)
    for (size_t n = at; n < at + COPIED; n++) tokens[n] = from[n];
  return tokens + count;
}

// Tokens of a run of any length; their end.
uint16_t *put_run(uint8_t byte, size_t length, uint16_t *tokens) {
  for (; length > LONGEST; length -= LONGEST) *tokens++ = MATCH + LONGEST;
  if (length >= 3) {
    *tokens++ = uint16_t(MATCH + length);
  } else {
    while (length--) *tokens++ = byte;
  }
  return tokens;
}

// A row's bytes -> tokens, a byte or MATCH + the length of a run of the byte before it; their end.
// Runs are looked for by eight bytes, from the second of the row on: the codes of shorter ones are
// hardly longer than a run's own. `edges` becomes where eight that are of a run follow others, and
// where others follow them. Before the row are 8 bytes of 0; the one behind it is made to end runs.
uint16_t *tokenize(uint8_t *row, size_t size, uint32_t *edges, uint16_t *tokens) {
  row[size] = ~row[size - 1];
  size_t num = 0, at = 1;
  for (bool inside = false; at < size; at += 8) {
    const bool same = !changes(row + at);
    edges[num] = uint32_t(at); // written over if it is none: no branch, which were hard to foresee
    num += same != inside;
    inside = same;
  }
  edges[num] = uint32_t(at); // if the row ends with a run
  size_t from = 0;
  for (size_t n = 0; n < num; n += 2) {
    const size_t start = edges[n] - __builtin_clzll(changes(row + edges[n] - 8)) / 8;
    const size_t end = edges[n + 1] + __builtin_ctzll(changes(row + edges[n + 1])) / 8;
    tokens = put_bytes(row + from, start - from, tokens);
    tokens = put_run(row[start], end - start, tokens);
    from = end;
  }
  return put_bytes(row + from, size - from, tokens);
}

// How often each symbol is used; of many tokens about how often, and at least once.
void count(const uint16_t *tokens, size_t num, uint32_t *counts) {
  uint32_t seen[MATCH + LONGEST + 1] = {};
  const size_t step = num < FEW ? 1 : SAMPLE;
  for (size_t n = 0; n < num; n += step) seen[tokens[n]] += step;
  std::fill(counts, counts + SYMBOLS, num < FEW ? 0 : 1);
  counts[END] = 1;
  for (int byte = 0; byte < 256; byte++) counts[byte] += seen[byte];
  for (int run = 3; run <= LONGEST; run++) counts[LENGTHS.symbol[run]] += seen[MATCH + run];
}

void put_block(Bits &stream, const uint16_t *tokens, size_t num, bool last) {
  static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                    11, 4,  12, 3, 13, 2, 14, 1, 15};
  Code code, of_lengths;
  uint32_t counts[SYMBOLS];
  count(tokens, num, counts);
  code_lengths(counts, SYMBOLS, CODE_BITS, code.length);
  assign(code, SYMBOLS);
  uint32_t used[19] = {};
  for (int s = 0; s < SYMBOLS; s++) used[code.length[s]]++;
  used[1] += 2; // the distances
  code_lengths(used, 19, LENGTH_BITS, of_lengths.length);
  assign(of_lengths, 19);
  stream.put(last, 1);
  stream.put(2, 2); // its own codes
  stream.put(SYMBOLS - 257, 5);
  stream.put(2 - 1, 5); // distances 1, and 2, without which the code would not be whole
  stream.put(19 - 4, 4);
  for (int s : order) stream.put(of_lengths.length[s], 3);
  for (int s = 0; s < SYMBOLS; s++)
    stream.put(of_lengths.bits[code.length[s]], of_lengths.length[code.length[s]]);
  for (int n = 0; n < 2; n++) stream.put(of_lengths.bits[1], of_lengths.length[1]);
  struct {
    uint32_t bits, length;
  } of[MATCH + LONGEST + 1]; // tokens
  for (int token = 0; token < 256; token++) of[token] = {code.bits[token], code.length[token]};
  for (int run = 3; run <= LONGEST; run++) { // with the distance, a bit of 0
    const uint32_t symbol = LENGTHS.symbol[run], length = code.length[symbol];
    of[MATCH + run] = {code.bits[symbol] | uint32_t(LENGTHS.value[run]) << length,
                       length + LENGTHS.bits[run] + 1};
  }
  Bits local = stream; // in registers: what it writes could be its own fields
  size_t n = 0;
  for (; n + 4 <= num; n += 4) {
    const auto a = of[tokens[n]], b = of[tokens[n + 1]];
    const auto c = of[tokens[n + 2]], d = of[tokens[n + 3]];
    const uint32_t first = a.length + b.length, length = first + c.length + d.length;
    const uint64_t early = a.bits | uint64_t(b.bits) << a.length;
    const uint64_t late = c.bits | uint64_t(d.bits) << c.length;
    if (length <= 56) {
      local.put(early | late << first, int(length));
    } else {
      local.put(early, int(first)), local.put(late, int(length - first));
    }
  }
  for (; n < num; n++) local.put(of[tokens[n]].bits, of[tokens[n]].length);
  stream = local;
  stream.put(code.bits[END], code.length[END]);
}

struct Adler { // the sums of RFC 1950
  uint32_t low = 1, high = 0;

  void add(const uint8_t *bytes, size_t size) {
    for (size_t at = 0; at < size; at += ADLER_STEP) {
      const uint32_t step = uint32_t(std::min(size - at, size_t(ADLER_STEP)));
      uint32_t sum = 0, weighted = 0;
      for (uint32_t n = 0; n < step; n++) {
        sum += bytes[at + n];
        weighted += bytes[at + n] * (step - n);
      }
      high = uint32_t((high + uint64_t(step) * low + weighted) % ADLER);
      low = (low + sum) % ADLER;
    }
  }
};

// image [height, width] -> a zlib stream of its rows, filtered, of so many bits a pixel, in blocks
// of `block` rows; the stream's size. `out` must have twice the bytes of all rows, as no code is
// longer than 15 bits, 512 for each block, and 64.
int64_t pack(const uint8_t *image, int32_t height, int32_t width, int32_t bits, int32_t block,
             uint8_t *out) {
  Bits stream{out + 2};
  out[0] = 0x78, out[1] = 0x01; // deflate with a window of 32 KiB, packed in haste
  Adler check;
  Rows rows(image, width, bits);
  const size_t pitch = rows.pitch;
  std::vector<uint8_t> room(8 + pitch + COPIED);
  uint8_t *filtered = room.data() + 8;
  std::vector<uint32_t> edges(pitch / 8 + 2);
  std::vector<uint16_t> tokens(pitch * block + COPIED);
  for (int y = 0; y < height; y += block) {
    const int end = std::min(height, y + block);
    uint16_t *next = tokens.data();
    for (int at = y; at < end; at++) {
      rows.filter(filtered);
      check.add(filtered, pitch);
      next = tokenize(filtered, pitch, edges.data(), next);
    }
    put_block(stream, tokens.data(), size_t(next - tokens.data()), end == height);
  }
  stream.finish();
  for (int shift : {24, 16, 8, 0}) *stream.out++ = uint8_t((check.high << 16 | check.low) >> shift);
  return stream.out - out;
}

} // namespace

extern "C" int32_t packed_rows(const uint8_t *image, int32_t height, int32_t width, int32_t bits,
                               int32_t block, uint8_t *out, int64_t *size) {
  return guarded([&] { *size = pack(image, height, width, bits, block, out); });
}
