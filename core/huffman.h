// Huffman codes and the bits that they stand in, as JPEG files have them (ITU-T T.81, annexes C and F).
//
// Threads: a table may be read by many, a BitReader belongs to one.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace penstock {

// How many bits a table is asked with at once. Longer codes are rare (1 in 120), and the tables of a file together
// stay in the first-level cache.
constexpr int kLookupBits = 10;

// What a code stands for: a symbol, whose low four bits say how many bits of a number follow, and the others how many
// coefficients before that number are zero.
struct Symbol {
  uint8_t code_bits;  // 0: no such code
  uint8_t number_bits;
  uint8_t advance;  // how many coefficients it settles; at its end a block has at least kEndOfBlock

  static constexpr int kEndOfBlock = 128;
  bool exists() const { return code_bits != 0; }
  unsigned all_bits() const { return static_cast<unsigned>(code_bits) + number_bits; }
};

// One of a file's codes.
class HuffmanTable {
 public:
  // `counts[n]` codes have n bits, n from 1 to 16; `symbols` are in the order of their codes. False: there is no such
  // code. An equal table is kept as it is: most files of a dataset come from the same encoder.
  bool assign(const uint8_t* counts, const uint8_t* symbols);
  // Whether it is what these were assigned to.
  bool holds(const uint8_t* counts, const uint8_t* symbols) const;

  // What the bits, highest first, begin with.
  Symbol find(uint64_t bits) const {
    const Symbol symbol = short_[bits >> (64 - kLookupBits)];
    return symbol.exists() ? symbol : find_long(bits);
  }
  // No symbol tells of coefficients that are zero: what the codes of first coefficients must be like.
  bool numbers_only() const { return numbers_only_; }

 private:
  friend class HuffmanPairs;
  Symbol find_long(uint64_t bits) const;

  std::array<Symbol, 1 << kLookupBits> short_{};
  int32_t code_end_[17] = {};  // codes of n bits are below it, and
  int32_t first_[17] = {};     // their symbols lie from here on, counted from code 0
  uint8_t counts_[17] = {};
  uint8_t symbols_[256] = {};
  bool numbers_only_ = false;
  bool assigned_ = false;
};

// The number that stands at the top of `bits`: of its range of `count` bits, the lower half is for negative ones
// (T.81, figure F.12).
inline int16_t number_at(uint64_t bits, unsigned count) {
  const auto value = static_cast<int64_t>(bits >> 1 >> (63 - count));
  const int64_t negative = ~(static_cast<int64_t>(bits) >> 63);
  return static_cast<int16_t>(value + (negative & (1 - (int64_t{1} << count))));
}

// The same code, two symbols at a time where the first with its number and the second lie within kLookupBits: each look
// at a table has to wait for the one before, and this way there are a third fewer. The last number of an entry is still
// to be read: it may be long, and nothing waits for it.
class HuffmanPairs {
 public:
  bool assign(const uint8_t* counts, const uint8_t* symbols);  // see HuffmanTable::assign()

  class Entry {  // packed; 0: a longer code, or none
   public:
    Entry() = default;
    explicit Entry(Symbol only);
    Entry(Symbol first, int16_t first_number, Symbol second);
    bool exists() const { return packed_ != 0; }
    unsigned all_bits() const { return at(0); }
    int first_advance() const { return static_cast<int>(at(8)); }
    int second_advance() const { return static_cast<int>(at(16)); }  // 0 where there is only one
    unsigned last_number_bits() const { return at(24); }
    unsigned bits_before_last_number() const { return at(32); }
    unsigned first_bits() const { return at(40); }
    int16_t first_number() const { return static_cast<int16_t>(packed_ >> 48); }  // 0 where there is only one

   private:
    unsigned at(int shift) const { return static_cast<unsigned>(packed_ >> shift & 0xFF); }
    uint64_t packed_ = 0;
  };

  Entry find(uint64_t bits) const { return entries_[bits >> (64 - kLookupBits)]; }
  Entry find_long(uint64_t bits) const;

 private:
  std::array<Entry, 1 << kLookupBits> entries_{};
  HuffmanTable table_;
};

// The bits of entropy-coded data, without the zero bytes that are stuffed after each 0xFF. At a marker or the end it
// goes on with zeros; overrun() tells.
class BitReader {
 public:
  BitReader() = default;
  BitReader(const uint8_t* data, const uint8_t* end) : at_(data), end_(end) {}

  static constexpr int kAtLeast = 56;  // bits there are after fill()

  void fill() {
    if (end_ - at_ >= 8) [[likely]] {
      uint64_t word;
      std::memcpy(&word, at_, 8);
      if (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
      constexpr uint64_t kOnes = 0x0101010101010101;
      const uint64_t ff = (~word - kOnes) & word & (kOnes << 7);  // the first that is set stands at or before an 0xFF
      const int wanted = (63 - count_) >> 3;
      if (ff == 0 || __builtin_clzll(ff) >> 3 >= wanted) [[likely]] {
        bits_ |= word >> count_;
        at_ += wanted;
        count_ |= 56;
        return;
      }
    }
    *this = filled_slowly(*this);  // by value, so that all else can stay in registers
  }
  uint64_t bits() const { return bits_; }
  int count() const { return count_; }
  void drop(unsigned count) {
    bits_ <<= count;
    count_ -= static_cast<int>(count);
  }
  // More was taken than there was.
  bool overrun() const { return padding_ > count_; }
  // Goes on behind the restart marker of this number, 0 to 7. False: something else stands there.
  bool restart(int number);

 private:
  static BitReader filled_slowly(BitReader reader);

  const uint8_t* at_ = nullptr;
  const uint8_t* end_ = nullptr;
  uint64_t bits_ = 0;  // highest first
  int count_ = 0;
  int padding_ = 0;  // how many of all bits ever given were made up
};

}  // namespace penstock
