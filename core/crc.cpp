#include "crc.h"

#include <array>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
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
constexpr auto update_instruction = update_table;
#endif

#if defined(__x86_64__)

// Carry-less multiplication takes 64 bytes a step. Four registers, which together hold the last 256 bytes seen, stand
// for all bytes before them: moving a part of them on by some distance multiplies it by a power of x, and adding the
// bytes that lie there keeps the remainder (Gopal et al., "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel 2009). What is left in the end goes through the CRC instruction like plain bytes.
#define PENSTOCK_FOLD_TARGET __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

// x to the given power, modulo the polynomial; bits reversed like everything here.
constexpr uint32_t power_of_x(size_t exponent) {
  uint32_t value = 0x80000000;
  for (size_t i = 0; i < exponent; ++i) value = (value >> 1) ^ ((value & 1) ? kPolynomial : 0);
  return value;
}

// What moves the lower and the upper half of 128 bits on by `bits`. The 31 and -33 pay for where the product of two
// reversed words comes to lie: 32 bits because the factor has half a word, and one for a product of 127 bits.
constexpr uint32_t lower_factor(size_t bits) { return power_of_x(bits + 31); }
constexpr uint32_t upper_factor(size_t bits) { return power_of_x(bits - 33); }

template <size_t kBits>
PENSTOCK_FOLD_TARGET inline __m512i fold(__m512i state, __m512i next) {
  constexpr int64_t lower = lower_factor(kBits), upper = upper_factor(kBits);
  const __m512i factors = _mm512_set_epi64(upper, lower, upper, lower, upper, lower, upper, lower);
  const __m512i low = _mm512_clmulepi64_epi128(state, factors, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(state, factors, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // the sum of all three
}

PENSTOCK_FOLD_TARGET inline __m128i fold_lane(__m128i state, __m128i next) {
  constexpr int64_t lower = lower_factor(128), upper = upper_factor(128);
  const __m128i factors = _mm_set_epi64x(upper, lower);
  const __m128i low = _mm_clmulepi64_si128(state, factors, 0x00);
  const __m128i high = _mm_clmulepi64_si128(state, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

PENSTOCK_FOLD_TARGET inline uint32_t remainder_of(__m512i state) {
  __m128i lanes[4];
  _mm512_storeu_si512(lanes, state);
  const __m128i lane = fold_lane(fold_lane(fold_lane(lanes[0], lanes[1]), lanes[2]), lanes[3]);
  const auto crc = step_word(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
  return step_word(crc, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
}

PENSTOCK_FOLD_TARGET uint32_t update_folded(uint32_t crc, const unsigned char* data, size_t size) {
  constexpr size_t kWide = sizeof(__m512i);
  if (size >= 4 * kWide) {
    __m512i first = _mm512_loadu_si512(data);
    __m512i second = _mm512_loadu_si512(data + kWide);
    __m512i third = _mm512_loadu_si512(data + 2 * kWide);
    __m512i fourth = _mm512_loadu_si512(data + 3 * kWide);
    first = _mm512_xor_si512(first, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
    for (data += 4 * kWide, size -= 4 * kWide; size >= 4 * kWide; data += 4 * kWide, size -= 4 * kWide) {
      first = fold<4 * 512>(first, _mm512_loadu_si512(data));
      second = fold<4 * 512>(second, _mm512_loadu_si512(data + kWide));
      third = fold<4 * 512>(third, _mm512_loadu_si512(data + 2 * kWide));
      fourth = fold<4 * 512>(fourth, _mm512_loadu_si512(data + 3 * kWide));
    }
    fourth = fold<512>(fold<512>(fold<512>(first, second), third), fourth);
    for (; size >= kWide; data += kWide, size -= kWide) fourth = fold<512>(fourth, _mm512_loadu_si512(data));
    crc = remainder_of(fourth);
  }
  return update_instruction(crc, data, size);
}

bool can_fold() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("pclmul") && has_instruction();
}

#else
bool can_fold() { return false; }
constexpr auto update_folded = update_table;
#endif

std::vector<Crc32cImplementation> find_implementations() {
  std::vector<Crc32cImplementation> found;
  if (can_fold()) found.push_back({"vpclmulqdq", update_folded});
  if (has_instruction()) found.push_back({kInstruction, update_instruction});
  found.push_back({"table", update_table});
  return found;
}

}  // namespace

const std::vector<Crc32cImplementation>& crc32c_implementations() {
  static const std::vector<Crc32cImplementation> found = find_implementations();
  return found;
}

uint32_t crc32c(const void* data, size_t size, uint32_t value) {
  static const auto update = crc32c_implementations().front().update;
  return ~update(~value, static_cast<const unsigned char*>(data), size);
}

const char* crc32c_implementation() { return crc32c_implementations().front().name; }

}  // namespace penstock
