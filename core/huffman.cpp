#include "huffman.h"

#include <algorithm>
#include <numeric>

namespace penstock {
namespace {

Symbol symbol_of(int code_bits, uint8_t value) {
  const int number_bits = value & 15;
  const int zeros = value >> 4;
  // Of the symbols without a number only that of 15 zeros and one more doesn't end the block (T.81, F.1.2.2.1).
  const int advance = number_bits == 0 && zeros != 15 ? Symbol::kEndOfBlock : zeros + 1;
  return {static_cast<uint8_t>(code_bits), static_cast<uint8_t>(number_bits), static_cast<uint8_t>(advance)};
}

}  // namespace

bool HuffmanTable::assign(const uint8_t* counts, const uint8_t* symbols) {
  if (holds(counts, symbols)) return true;
  const int total = std::accumulate(counts + 1, counts + 17, 0);
  if (total > 256) return false;
  const auto size = static_cast<size_t>(total);
  assigned_ = false;
  std::copy_n(counts + 1, 16, counts_ + 1);
  std::copy_n(symbols, size, symbols_);
  short_.fill({});
  int32_t code = 0;
  int32_t index = 0;
  for (int length = 1; length <= 16; ++length) {
    first_[length] = index - code;
    for (int i = 0; i < counts[length]; ++i, ++code, ++index) {
      if (code >= 1 << length) return false;
      if (length > kLookupBits) continue;
      const int repeat = 1 << (kLookupBits - length);
      std::fill_n(short_.begin() + code * repeat, repeat, symbol_of(length, symbols[index]));
    }
    if (counts[length] > 0 && code >= 1 << length) return false;  // no code is all ones (T.81, annex C)
    code_end_[length] = code;
    code <<= 1;
  }
  numbers_only_ = std::all_of(symbols_, symbols_ + size, [](uint8_t symbol) { return symbol < 16; });
  assigned_ = true;
  return true;
}

bool HuffmanTable::holds(const uint8_t* counts, const uint8_t* symbols) const {
  return assigned_ && std::equal(counts + 1, counts + 17, counts_ + 1) &&
         std::equal(symbols, symbols + std::accumulate(counts + 1, counts + 17, 0), symbols_);
}

Symbol HuffmanTable::find_long(uint64_t bits) const {
  for (int length = kLookupBits + 1; length <= 16; ++length) {
    const auto code = static_cast<int32_t>(bits >> (64 - length));
    if (code < code_end_[length]) return symbol_of(length, symbols_[first_[length] + code]);
  }
  return {};
}

HuffmanPairs::Entry::Entry(Symbol only) : Entry(only, 0, {}) {
  packed_ |= uint64_t{only.number_bits} << 24 | uint64_t{only.code_bits} << 32;
}

HuffmanPairs::Entry::Entry(Symbol first, int16_t first_number, Symbol second) {
  const bool both = second.exists();
  packed_ = uint64_t{first.all_bits() + second.all_bits()} | uint64_t{first.advance} << 8 |
            uint64_t{second.advance} << 16 | uint64_t{second.number_bits} << 24 |
            uint64_t{both ? first.all_bits() + second.code_bits : 0} << 32 | uint64_t{first.all_bits()} << 40 |
            uint64_t{static_cast<uint16_t>(first_number)} << 48;
}

bool HuffmanPairs::assign(const uint8_t* counts, const uint8_t* symbols) {
  if (table_.holds(counts, symbols)) return true;
  if (!table_.assign(counts, symbols)) return false;
  for (size_t index = 0; index < entries_.size(); ++index) {
    const uint64_t bits = uint64_t{index} << (64 - kLookupBits);
    const Symbol first = table_.short_[index];
    entries_[index] = first.exists() ? Entry(first) : Entry();
    if (first.all_bits() >= kLookupBits || first.advance >= Symbol::kEndOfBlock) continue;
    const Symbol second = table_.short_[bits << first.all_bits() >> (64 - kLookupBits)];
    if (!second.exists() || first.all_bits() + second.code_bits > kLookupBits) continue;
    entries_[index] = {first, number_at(bits << first.code_bits, first.number_bits), second};
  }
  return true;
}

HuffmanPairs::Entry HuffmanPairs::find_long(uint64_t bits) const {
  const Symbol symbol = table_.find(bits);
  return symbol.exists() ? Entry(symbol) : Entry();
}

BitReader BitReader::filled_slowly(BitReader reader) {
  // A fill may have left parts of the next byte behind the counted bits.
  reader.bits_ = reader.count_ == 0 ? 0 : reader.bits_ >> (64 - reader.count_) << (64 - reader.count_);
  while (reader.count_ < kAtLeast) {
    uint64_t byte = 0;
    if (reader.at_ < reader.end_ && *reader.at_ != 0xFF) {
      byte = *reader.at_++;
    } else if (reader.end_ - reader.at_ >= 2 && reader.at_[1] == 0) {
      byte = 0xFF;
      reader.at_ += 2;
    } else {
      reader.padding_ += 8;
    }
    reader.bits_ |= byte << (56 - reader.count_);
    reader.count_ += 8;
  }
  return reader;
}

bool BitReader::restart(int number) {
  // Whole bytes that were fetched but not taken have no place before a marker.
  const int fetched = count_ - padding_;
  if (fetched < 0 || fetched >= 8) return false;
  while (end_ - at_ >= 2 && at_[0] == 0xFF && at_[1] == 0xFF) ++at_;  // fill bytes
  if (end_ - at_ < 2 || at_[0] != 0xFF || at_[1] != 0xD0 + number) return false;
  at_ += 2;
  bits_ = 0;
  count_ = 0;
  padding_ = 0;
  return true;
}

}  // namespace penstock
