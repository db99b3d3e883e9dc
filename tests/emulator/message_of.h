// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <string>

inline std::string last_message;

// The text of the exception that run() throws, till there is another, or null.
template <typename Run>
const char* message_of(const Run& run) {
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    last_message = error.what();
    return last_message.c_str();
  }
}
