// SPDX-License-Identifier: MIT
#pragma once

#include <sstream>
#include <stdexcept>

namespace openseg {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace openseg

// The message is the whole text that Python shows: it names the operator, the argument and the
// value. Never in cpu/*.cpp: code of a SIMD variant may not instantiate anything from std::.
#define OPENSEG_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) {               \
      ::openseg::fail(__VA_ARGS__);   \
    }                                 \
  } while (false)
