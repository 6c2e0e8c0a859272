// The floors that transfers are measured against: plain copies between two mappings, and the system calls that
// copy between two processes. Called through ctypes by copies.py.
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {
constexpr size_t kMostPieces = 1024;  // of one process_vm call

#if defined(__x86_64__)
void stream(uint8_t* to, const uint8_t* from, size_t length) {
  size_t head = std::min(length, (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64);
  std::memcpy(to, from, head);
  to += head, from += head, length -= head;
  for (; length >= 64; to += 64, from += 64, length -= 64) {
    for (int part = 0; part < 64; part += 16) {
      __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + part), piece);
    }
  }
  std::memcpy(to, from, length);
}
#endif
}  // namespace

extern "C" {
// rows: to, from, length
void copy_rows(const uint64_t* rows, size_t count) {
  for (size_t row = 0; row < count; ++row, rows += 3)
    std::memcpy(reinterpret_cast<void*>(rows[0]), reinterpret_cast<const void*>(rows[1]), rows[2]);
}

void stream_rows(const uint64_t* rows, size_t count) {
#if defined(__x86_64__)
  for (size_t row = 0; row < count; ++row, rows += 3)
    stream(reinterpret_cast<uint8_t*>(rows[0]), reinterpret_cast<const uint8_t*>(rows[1]), rows[2]);
  _mm_sfence();
#else
  copy_rows(rows, count);
#endif
}

// local and remote: (address, length), as iovec has it. 0, or errno.
int process_rows(int pid, int write, const iovec* local, const iovec* remote, size_t count) {
  for (size_t done = 0; done < count;) {
    size_t some = std::min(count - done, kMostPieces), bytes = 0;
    for (size_t row = 0; row < some; ++row) bytes += local[done + row].iov_len;
    ssize_t moved = write ? process_vm_writev(pid, local + done, some, remote + done, some, 0)
                          : process_vm_readv(pid, local + done, some, remote + done, some, 0);
    if (moved < 0) return errno;
    if (static_cast<size_t>(moved) != bytes) return EIO;  // our rows are far below what one call can move
    done += some;
  }
  return 0;
}
}
