// The pixels of a plane of 0 and 1 that are 1.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

// Visits them row by row; eight zeros are passed over at once.
template <class Visit> inline void each_pixel(const uint8_t *plane, size_t size, Visit visit) {
  size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    uint64_t word;
    std::memcpy(&word, plane + at, 8);
    for (; word; word &= word - 1) visit(int32_t(at + (__builtin_ctzll(word) >> 3)));
  }
  for (; at < size; at++)
    if (plane[at]) visit(int32_t(at));
}

// The same from the last to the first.
template <class Visit> inline void each_pixel_back(const uint8_t *plane, size_t size, Visit visit) {
  size_t at = size;
  for (; at % 8; at--)
    if (plane[at - 1]) visit(int32_t(at - 1));
  for (; at; at -= 8) {
    uint64_t word;
    std::memcpy(&word, plane + at - 8, 8);
    for (int last; word; word ^= uint64_t(1) << last) {
      last = 63 - __builtin_clzll(word);
      visit(int32_t(at - 8 + (last >> 3)));
    }
  }
}

} // namespace
