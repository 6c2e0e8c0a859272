#include "crc.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#endif

namespace penstock {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // 0x1EDC6F41 with its bits reversed

using Table = std::array<uint32_t, 256>;

constexpr Table make_byte_table() {
  Table table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

constexpr Table kByteTable = make_byte_table();

uint32_t update_table(uint32_t crc, const unsigned char* data, size_t size) {
  for (size_t i = 0; i < size; ++i) crc = (crc >> 8) ^ kByteTable[(crc ^ data[i]) & 0xFF];
  return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)

// The CRC instruction has a latency of three cycles and a throughput of one, so three streams run side by side and
// are joined at the end. Joining needs the state of a stream moved past the bytes of the next one; that is linear
// over GF(2), so its value for each byte of the state is looked up.
class Shift {
 public:
  explicit Shift(size_t bytes) {
    std::array<uint32_t, 32> column;
    for (size_t bit = 0; bit < 32; ++bit) {
      uint32_t crc = uint32_t{1} << bit;
      for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kByteTable[crc & 0xFF];
      column[bit] = crc;
    }
    for (size_t byte = 0; byte < 4; ++byte) {
      for (uint32_t value = 0; value < 256; ++value) {
        uint32_t crc = 0;
        for (size_t bit = 0; bit < 8; ++bit) {
          if (value >> bit & 1) crc ^= column[byte * 8 + bit];
        }
        tables_[byte][value] = crc;
      }
    }
  }

  uint32_t operator()(uint32_t crc) const {
    return tables_[0][crc & 0xFF] ^ tables_[1][crc >> 8 & 0xFF] ^ tables_[2][crc >> 16 & 0xFF] ^ tables_[3][crc >> 24];
  }

 private:
  std::array<Table, 4> tables_;
};

#if defined(__x86_64__)
#define PENSTOCK_CRC_TARGET __attribute__((target("sse4.2")))
PENSTOCK_CRC_TARGET inline uint32_t step_word(uint32_t crc, uint64_t word) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, word));
}
PENSTOCK_CRC_TARGET inline uint32_t step_byte(uint32_t crc, unsigned char byte) { return _mm_crc32_u8(crc, byte); }
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
constexpr const char* kInstruction = "sse4.2";
#else
#define PENSTOCK_CRC_TARGET __attribute__((target("+crc")))
PENSTOCK_CRC_TARGET inline uint32_t step_word(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
PENSTOCK_CRC_TARGET inline uint32_t step_byte(uint32_t crc, unsigned char byte) { return __crc32cb(crc, byte); }
bool has_instruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
constexpr const char* kInstruction = "armv8";
#endif

inline uint64_t load_word(const unsigned char* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

template <size_t kStream>
PENSTOCK_CRC_TARGET uint32_t update_three(uint32_t crc, const unsigned char*& data, size_t& size) {
  static const Shift shift(kStream);
  while (size >= 3 * kStream) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      crc = step_word(crc, load_word(data + i));
      second = step_word(second, load_word(data + kStream + i));
      third = step_word(third, load_word(data + 2 * kStream + i));
    }
    crc = shift(shift(crc) ^ second) ^ third;
    data += 3 * kStream;
    size -= 3 * kStream;
  }
  return crc;
}

PENSTOCK_CRC_TARGET uint32_t update_instruction(uint32_t crc, const unsigned char* data, size_t size) {
  crc = update_three<4096>(crc, data, size);
  crc = update_three<256>(crc, data, size);
  for (; size >= 8; data += 8, size -= 8) crc = step_word(crc, load_word(data));
  for (; size > 0; ++data, --size) crc = step_byte(crc, *data);
  return crc;
}

#else
bool has_instruction() { return false; }
constexpr const char* kInstruction = "table";
uint32_t update_instruction(uint32_t crc, const unsigned char* data, size_t size) {
  return update_table(crc, data, size);
}
#endif

const bool kUseInstruction = has_instruction();

}  // namespace

uint32_t crc32c(const void* data, size_t size, uint32_t value) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  const auto update = kUseInstruction ? update_instruction : update_table;
  return ~update(~value, bytes, size);
}

const char* crc32c_implementation() { return kUseInstruction ? kInstruction : "table"; }

}  // namespace penstock
