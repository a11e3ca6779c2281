// What all calls from Python pass: no exception goes on into C, each becomes a code of native.py.
#pragma once
#include <cstdint>
#include <new>
#include <stdexcept>

constexpr int32_t DONE = 0, NO_MEMORY = 1, FAILED = 2;

template <class Body> int32_t guarded(Body body) noexcept {
  try {
    body();
    return DONE;
  } catch (const std::bad_alloc &) {
    return NO_MEMORY;
  } catch (const std::length_error &) { // of a vector that no memory could hold
    return NO_MEMORY;
  } catch (...) {
    return FAILED;
  }
}
