// CRC-32C (Castagnoli): polynomial 0x1EDC6F41, reflected, initial and final value inverted (RFC 3720, section 12.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

// The checksum of `size` bytes that follow bytes whose checksum is `value` (0 to begin).
uint32_t crc32c(const void* data, size_t size, uint32_t value = 0);

// Which code does the work here: "vpclmulqdq", "sse4.2", "armv8" or "table".
const char* crc32c_implementation();

struct Crc32cImplementation {
  const char* name;
  // Carries the inverted checksum over more bytes.
  uint32_t (*update)(uint32_t inverted, const unsigned char* data, size_t size);
};

// All that this processor can run, the fastest first; the last one needs nothing of it.
const std::vector<Crc32cImplementation>& crc32c_implementations();

}  // namespace penstock
