#include "range_index.h"

#include <algorithm>

namespace penstock {

void RangeIndex::remove(uint64_t tag) {
  std::erase_if(entries_, [tag](const Entry& entry) { return entry.tag == tag; });
  sorted_ = false;  // what is left is in order; the ends are to be summed up anew
}

void RangeIndex::sort() {
  std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  highest_end_.resize(entries_.size());
  uint64_t highest = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    highest = std::max(highest, entries_[i].end);
    highest_end_[i] = highest;
  }
  sorted_ = true;
}

}  // namespace penstock
