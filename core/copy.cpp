#include "copy.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
#if defined(__x86_64__)
namespace {

constexpr uint64_t kLine = 64;

__attribute__((target("avx512f"))) void stream_lines_avx512(std::byte* to, const std::byte* from, uint64_t lines) {
  for (; lines >= 4; lines -= 4, to += 4 * kLine, from += 4 * kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(from) + 1024, _MM_HINT_NTA);
    _mm_prefetch(reinterpret_cast<const char*>(from) + 1152, _MM_HINT_NTA);
    const __m512i a = _mm512_loadu_si512(from);
    const __m512i b = _mm512_loadu_si512(from + kLine);
    const __m512i c = _mm512_loadu_si512(from + 2 * kLine);
    const __m512i d = _mm512_loadu_si512(from + 3 * kLine);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + kLine), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 2 * kLine), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 3 * kLine), d);
  }
  for (; lines > 0; --lines, to += kLine, from += kLine) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
}

void stream_lines_sse2(std::byte* to, const std::byte* from, uint64_t lines) {
  for (; lines > 0; --lines, to += kLine, from += kLine) {
    for (uint64_t i = 0; i < kLine; i += 16) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), part);
    }
  }
}

const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;

}  // namespace

void copy_streaming(std::byte* to, const std::byte* from, uint64_t bytes) noexcept {
  // Stores past the caches need whole lines; what is left at both ends goes through them.
  const uint64_t head = std::min(bytes, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  const uint64_t lines = (bytes - head) / kLine;
  if (has_avx512) {
    stream_lines_avx512(to + head, from + head, lines);
  } else {
    stream_lines_sse2(to + head, from + head, lines);
  }
  const uint64_t done = head + lines * kLine;
  std::memcpy(to + done, from + done, bytes - done);
}

void end_streaming() noexcept { _mm_sfence(); }
#else
void copy_streaming(std::byte* to, const std::byte* from, uint64_t bytes) noexcept { std::memcpy(to, from, bytes); }

void end_streaming() noexcept {}
#endif

}  // namespace penstock
