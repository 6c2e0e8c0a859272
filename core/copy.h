// Copying between mapped memories.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

// From about this many bytes on, going past the caches is faster than through them (docs/benchmarks.md); it leaves
// the caches to those who compute.
inline constexpr uint64_t kStreamingBytes = 6 << 20;

// As memcpy, with stores that don't go through the caches. After the last one call `end_streaming()`.
void copy_streaming(std::byte* to, const std::byte* from, uint64_t bytes) noexcept;
void end_streaming() noexcept;

}  // namespace penstock
