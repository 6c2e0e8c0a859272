// Which of many address ranges, overlapping or not, holds a given one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

struct Range {
  uint64_t address;
  uint64_t length;
};

class RangeIndex {
 public:
  void add(Range range, uint64_t tag) {
    entries_.push_back({range.address, range.address + range.length, tag});
    sorted_ = false;
  }
  void remove(uint64_t tag);
  // Calls `found(tag, begin)` for ranges that hold all of it, the latest added first, until it returns true.
  template <typename Found>
  bool find(Range wanted, Found found);

 private:
  struct Entry {
    uint64_t begin;
    uint64_t end;
    uint64_t tag;
  };
  void sort();

  std::vector<Entry> entries_;
  std::vector<uint64_t> highest_end_;  // of entries_[0..i]: where a search backwards may stop
  bool sorted_ = true;
};

template <typename Found>
bool RangeIndex::find(Range wanted, Found found) {
  if (!sorted_) sort();
  if (wanted.length > UINT64_MAX - wanted.address) return false;
  const uint64_t end = wanted.address + wanted.length;
  size_t low = 0;
  size_t high = entries_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (entries_[middle].begin <= wanted.address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  for (size_t i = low; i-- > 0 && highest_end_[i] >= end;) {
    if (entries_[i].end >= end && found(entries_[i].tag, entries_[i].begin)) return true;
  }
  return false;
}

}  // namespace penstock
