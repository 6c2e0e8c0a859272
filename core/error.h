// The core's one exception. bind/module.cpp maps each code to a class of penstock.errors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace penstock {

enum class ErrorCode : int {
  invalid_argument,  // a caller's bug, or input that can't be meant
  unit_too_large,    // needed, allowed
  deadline_exceeded,
  closed,
  out_of_memory,  // the kernel refuses the mapping
  bad_manifest,
  not_registered,  // from here on: transfers
  stale_descriptor,
  transfer_active,
  peer_unreachable,
  peer_refused,
  peer_lost,
  transport_unavailable,
};

struct Error : std::runtime_error {
  Error(ErrorCode error_code, const std::string& message, uint64_t needed_bytes = 0, uint64_t total_bytes = 0)
      : std::runtime_error(message), code(error_code), needed(needed_bytes), total(total_bytes) {}

  ErrorCode code;
  uint64_t needed;  // unit_too_large only
  uint64_t total;   // unit_too_large only
};

}  // namespace penstock
