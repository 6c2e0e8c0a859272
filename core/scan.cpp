#include "scan.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace penstock {
namespace {

// Where the coefficients stand in a block, in the order of the file (T.81, figure A.6). What lies behind the end goes
// behind the block, where the next one's first coefficient will be written.
constexpr auto kZigzag = [] {
  std::array<uint8_t, kBlockSize + 16 + Symbol::kEndOfBlock> places{};
  places.fill(kBlockSize);
  int index = 0;
  for (int sum = 0; sum <= 14; ++sum) {
    for (int i = std::max(0, sum - 7); i <= std::min(sum, 7); ++i) {
      const int row = sum % 2 == 0 ? sum - i : i;
      places[static_cast<size_t>(index++)] = static_cast<uint8_t>(row * 8 + sum - row);
    }
  }
  return places;
}();

constexpr int kMostBits = 16 + 15;  // of a symbol and its number, which is more than of a pair
static_assert(kMostBits <= BitReader::kAtLeast && kLookupBits + 15 <= kMostBits);

// One block's coefficients, into zeros. Where they aren't kept they are only stepped over. False: no valid block.
template <bool kKeep>
[[gnu::always_inline]] inline bool read_block(BitReader& reader, const ScanPart& part, int16_t& predictor,
                                              int16_t* block, bool& flat) {
  reader.fill();
  const Symbol dc = part.dc->find(reader.bits());
  if (!dc.exists()) return false;
  predictor = static_cast<int16_t>(predictor + number_at(reader.bits() << dc.code_bits, dc.number_bits));
  reader.drop(dc.all_bits());
  if (kKeep) block[0] = predictor;
  const auto put = [&](int next, int16_t value) {
    if (kKeep) block[kZigzag[static_cast<size_t>(next - 1)]] = value;
  };
  int k = 1;  // the next coefficient
  while (true) {
    if (reader.count() < kMostBits) reader.fill();
    HuffmanPairs::Entry entry = part.ac->find(reader.bits());
    if (!entry.exists()) [[unlikely]] {
      entry = part.ac->find_long(reader.bits());
      if (!entry.exists()) return false;
    }
    const int middle = k + entry.first_advance();
    const int end = middle + entry.second_advance();
    put(middle, entry.first_number());
    put(end, number_at(reader.bits() << entry.bits_before_last_number(), entry.last_number_bits()));
    if (end >= kBlockSize) {
      flat = k == 1 && middle > Symbol::kEndOfBlock;
      // What follows a block's very last coefficient belongs to the next block.
      const bool full = middle >= kBlockSize;
      reader.drop(full ? entry.first_bits() : entry.all_bits());
      const int last = full ? middle : end;
      return last == kBlockSize || last > Symbol::kEndOfBlock;
    }
    reader.drop(entry.all_bits());
    k = end;
  }
}

}  // namespace

void Scan::begin(const uint8_t* data, const uint8_t* end, const ScanPart* parts, int part_count, int units_a_row,
                 int restart_interval) {
  reader_ = BitReader(data, end);
  std::copy_n(parts, part_count, parts_);
  part_count_ = part_count;
  units_a_row_ = units_a_row;
  restart_interval_ = units_to_restart_ = restart_interval;
  restart_number_ = 0;
  std::fill_n(predictors_, kMostParts, int16_t{0});
  std::fill_n(coefficients_, kMostPending * kBlockSize, int16_t{0});
  pending_ = 0;
}

bool Scan::read_row(int first, int last, const ScanRows* rows) {
  if (!read_units<false>(first, nullptr)) return false;
  if (!read_units<true>(last - first, rows)) return false;
  if (!read_units<false>(units_a_row_ - last, nullptr)) return false;
  flush();
  return !reader_.overrun();
}

bool Scan::restart() {
  if (reader_.overrun() || !reader_.restart(restart_number_)) return false;
  restart_number_ = (restart_number_ + 1) % 8;
  units_to_restart_ = restart_interval_;
  std::fill_n(predictors_, kMostParts, int16_t{0});
  return true;
}

template <bool kKeep>
bool Scan::read_units(int count, const ScanRows* rows) {
  for (int unit = 0; unit < count; ++unit) {
    if (restart_interval_ > 0 && units_to_restart_ == 0 && !restart()) return false;
    --units_to_restart_;
    BitReader reader = reader_;  // in registers
    for (int c = 0; c < part_count_; ++c) {
      const ScanPart part = parts_[c];
      for (int i = 0; i < part.blocks_across * part.blocks_down; ++i) {
        bool flat = false;
        if (!read_block<kKeep>(reader, part, predictors_[c], coefficients_ + pending_ * kBlockSize, flat)) return false;
        if (!kKeep) continue;
        const int x = unit * part.blocks_across + i % part.blocks_across, y = i / part.blocks_across;
        uint8_t* at = rows[c].at + (y * rows[c].stride + x) * kBlockSide;
        targets_[pending_] = {at, rows[c].stride, part.quantization};
        flat_[pending_] = flat;
        if (++pending_ == kMostPending) flush();
      }
    }
    reader_ = reader;
  }
  return true;
}

void Scan::flush() {
  uint8_t unused[kBlockSize];
  if (pending_ % 2 != 0) {
    targets_[pending_] = {unused, kBlockSide, targets_[0].quantization};
    flat_[pending_++] = true;
  }
  for (int i = 0; i < pending_; i += 2) {
    int16_t* pair = coefficients_ + i * kBlockSize;
    flat_[i] && flat_[i + 1] ? inverse_dct_flat(pair, targets_ + i) : inverse_dct(pair, targets_ + i);
  }
  pending_ = 0;
}

}  // namespace penstock
