// The arena: where the bytes of a budget live, and the only place that hands out payload memory.
//
// One sparse memfd, mapped once, many times longer than the budget, so that a gap of any size is at hand however the
// regions before were cut. Pages are kept warm when a region dies and given to the next; before the pages that are
// resident outgrow the budget, pages that belong to no region go back to the kernel (a punched hole). Address
// space costs nothing; resident pages are what counts, and they stay within the budget plus two pages a live region.
//
// Threads: any. A Region keeps its Arena alive; its bytes are valid until it is destroyed.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "budget.h"

namespace penstock {

class Region;

class Arena : public std::enable_shared_from_this<Arena> {
 public:
  explicit Arena(uint64_t budget_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A region of exactly the charge's bytes, aligned to 64; it takes the charge over. Contents are undefined.
  std::unique_ptr<Region> allocate(Charge charge);

  uint64_t resident_bytes() const;
  uint64_t live_count() const;
  int fd() const { return fd_; }
  uint64_t span_bytes() const { return span_bytes_; }

 private:
  friend class Region;
  using Intervals = std::map<uint64_t, uint64_t>;  // begin -> end, disjoint, never touching

  uint64_t find_gap(uint64_t bytes) const;
  void free(uint64_t offset) noexcept;
  void make_resident(uint64_t first_page, uint64_t end_page);
  void shrink_to(uint64_t pages) noexcept;
  bool punch(uint64_t first_page, uint64_t end_page) noexcept;

  struct Extent {
    uint64_t used_end;      // of the region's bytes
    uint64_t reserved_end;  // of the gap it was cut into
  };

  const pid_t owner_pid_;
  const uint64_t limit_pages_;
  uint64_t span_bytes_ = 0;
  int fd_ = -1;
  std::byte* base_ = nullptr;
  mutable std::mutex mutex_;
  std::map<uint64_t, Extent> live_;  // begin, in bytes -> the region there
  Intervals resident_;               // pages that may be resident: begin -> end
  uint64_t resident_pages_ = 0;
};

// Contiguous bytes with their charge: the only thing that carries payload.
class Region {
 public:
  Region(std::shared_ptr<Arena> arena, uint64_t offset, Charge charge);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::byte* data() const { return arena_->base_ + offset_; }
  uint64_t size() const { return charge_.bytes(); }
  uint64_t offset() const { return offset_; }

 private:
  // Order matters: the charge goes back after the arena took the bytes, so that whoever is granted next finds room.
  std::shared_ptr<Arena> arena_;
  uint64_t offset_;
  Charge charge_;
};

}  // namespace penstock
