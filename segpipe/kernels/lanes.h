// As many floats at once as a register has: GCC's and Clang's vector types become whatever it is. A
// source that defines EIGHT_LANES has 8 at most, so nothing here is shared between sources.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__) && !defined(EIGHT_LANES)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

constexpr int padded(int count, int step) { return (count + step - 1) / step * step; }

inline Floats load(const float *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline Ints load(const int32_t *from) {
  Ints lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename Lanes> inline void store(void *to, const Lanes &lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

inline Floats all(float value) { return Floats{} + value; }

// Of the two; where a is no number, a.
inline Floats larger(const Floats &a, const Floats &b) { return a < b ? b : a; }
inline Floats smaller(const Floats &a, const Floats &b) { return a > b ? b : a; }

// exp(x) for x in [-87, 87]: 2^n * 2^f with Cephes' expf polynomial, relative error below 2e-7.
inline Floats exponential(const Floats &x) {
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

inline Floats sigmoid(const Floats &values) {
  const Floats x = smaller(larger(-values, all(-87.0f)), all(87.0f));
  return 1.0f / (1.0f + exponential(x));
}

// In place: 1 / (1 + exp(-x)).
inline void sigmoid(float *values, int count) {
  int at = 0;
  for (; at + LANES <= count; at += LANES) store(values + at, sigmoid(load(values + at)));
  if (at == count) return;
  float lanes[LANES] = {};
  std::memcpy(lanes, values + at, sizeof(float) * (count - at));
  store(lanes, sigmoid(load(lanes)));
  std::memcpy(values + at, lanes, sizeof(float) * (count - at));
}

} // namespace
