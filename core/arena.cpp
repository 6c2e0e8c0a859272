#include "arena.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "error.h"
#include "segment.h"

namespace penstock {
namespace {

constexpr uint64_t kPage = 4096;     // x86-64 and the usual arm64; a larger page only makes the accounting coarser
constexpr uint64_t kAlignment = 64;  // a cache line, and what SIMD decoders ask for
// How much longer the address range is than the budget. First-fit needs at most about log2(largest / smallest)
// times what is live (Robson 1974), so 32 never runs out for any mix of sizes.
constexpr uint64_t kSpanFactors[] = {32, 8, 3};
constexpr uint64_t kLeastSpan = 1 << 20;

constexpr uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

// Gaps are cut in steps of an eighth of their size, so that the next region of nearly the same size fits into the
// pages that this one leaves warm.
uint64_t reserved_bytes(uint64_t bytes) {
  uint64_t step = kAlignment;
  while (step * 16 < bytes) step *= 2;
  return round_up(std::max<uint64_t>(bytes, 1), step);
}

}  // namespace

Arena::Arena(uint64_t budget_bytes) : owner_pid_(getpid()), limit_pages_(round_up(budget_bytes, kPage) / kPage) {
  fd_ = memfd_create("penstock", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd_ < 0) throw Error(ErrorCode::out_of_memory, std::string("memfd_create: ") + std::strerror(errno));
  for (const uint64_t factor : kSpanFactors) {
    span_bytes_ = round_up(std::max(budget_bytes * factor, kLeastSpan), kPage);
    if (ftruncate(fd_, static_cast<off_t>(span_bytes_)) != 0) continue;
    void* base = mmap(nullptr, span_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
    if (base == MAP_FAILED) continue;
    base_ = static_cast<std::byte*>(base);
    madvise(base_, span_bytes_, MADV_DONTDUMP);  // a core dump of a sparse terabyte helps nobody
    // A peer that maps it must know that no truncation will kill it.
    fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    share_mapping(base_, span_bytes_, fd_);
    return;
  }
  const std::string reason = std::strerror(errno);
  close(fd_);
  throw Error(ErrorCode::out_of_memory,
              "can't map an arena for a budget of " + std::to_string(budget_bytes) + " bytes: " + reason);
}

Arena::~Arena() {
  unshare_mapping(base_);
  munmap(base_, span_bytes_);
  close(fd_);
}

std::unique_ptr<Region> Arena::allocate(Charge charge) {
  // A child shares our pages and not our books: what it took for free, we may have given away.
  if (getpid() != owner_pid_) throw Error(ErrorCode::closed, "a budget doesn't survive fork(); make a new one");
  const uint64_t bytes = charge.bytes();
  uint64_t offset = 0;
  {
    std::lock_guard lock(mutex_);
    const uint64_t reserved = reserved_bytes(bytes);
    offset = find_gap(reserved);
    live_.emplace(offset, Extent{offset + bytes, offset + reserved});
    make_resident(offset / kPage, round_up(offset + bytes, kPage) / kPage);
    if (resident_pages_ > limit_pages_) shrink_to(limit_pages_);
  }
  return std::make_unique<Region>(shared_from_this(), offset, std::move(charge));
}

// The lowest gap that fits: low addresses are where warm pages gather.
uint64_t Arena::find_gap(uint64_t bytes) const {
  uint64_t begin = 0;
  for (const auto& [live_begin, extent] : live_) {
    if (live_begin - begin >= bytes) return begin;
    begin = extent.reserved_end;
  }
  if (span_bytes_ - begin >= bytes) return begin;
  throw Error(ErrorCode::out_of_memory, "the arena has no gap of " + std::to_string(bytes) + " bytes left between " +
                                            std::to_string(live_.size()) +
                                            " live regions; raise the address space limit (ulimit -v)");
}

void Arena::free(uint64_t offset) noexcept {
  std::lock_guard lock(mutex_);
  live_.erase(offset);
}

// Adds pages [first, end) to the resident set.
void Arena::make_resident(uint64_t first, uint64_t end) {
  if (first == end) return;
  uint64_t known = 0;
  uint64_t merged_first = first;
  uint64_t merged_end = end;
  auto it = resident_.upper_bound(first);
  if (it != resident_.begin() && std::prev(it)->second >= first) --it;
  while (it != resident_.end() && it->first <= end) {
    const uint64_t overlap_first = std::max(it->first, first);
    const uint64_t overlap_end = std::min(it->second, end);
    if (overlap_end > overlap_first) known += overlap_end - overlap_first;
    merged_first = std::min(merged_first, it->first);
    merged_end = std::max(merged_end, it->second);
    it = resident_.erase(it);
  }
  resident_.emplace(merged_first, merged_end);
  resident_pages_ += (end - first) - known;
}

// Gives pages that no live region touches back to the kernel, the highest first, until `pages` are resident.
void Arena::shrink_to(uint64_t pages) noexcept {
  uint64_t ceiling = span_bytes_ / kPage;  // pages at and above are done
  for (auto live = live_.rbegin(); resident_pages_ > pages; ++live) {
    const bool last = live == live_.rend();
    const uint64_t floor = last ? 0 : round_up(live->second.used_end, kPage) / kPage;
    while (resident_pages_ > pages && floor < ceiling) {
      auto it = resident_.lower_bound(ceiling);
      if (it == resident_.begin()) break;
      --it;
      const uint64_t end = std::min(it->second, ceiling);
      if (end <= floor) break;
      const uint64_t first = std::max({it->first, floor, end - std::min(end, resident_pages_ - pages)});
      if (!punch(first, end)) return;
      ceiling = first;
    }
    if (last) return;
    ceiling = std::min(ceiling, live->first / kPage);
  }
}

bool Arena::punch(uint64_t first, uint64_t end) noexcept {
  const auto offset = static_cast<off_t>(first * kPage);
  const auto length = static_cast<off_t>((end - first) * kPage);
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0) return false;
  auto it = std::prev(resident_.upper_bound(first));
  const auto [old_first, old_end] = *it;
  resident_.erase(it);
  if (old_first < first) resident_.emplace(old_first, first);
  if (end < old_end) resident_.emplace(end, old_end);
  resident_pages_ -= end - first;
  return true;
}

uint64_t Arena::resident_bytes() const {
  std::lock_guard lock(mutex_);
  return resident_pages_ * kPage;
}

uint64_t Arena::live_count() const {
  std::lock_guard lock(mutex_);
  return live_.size();
}

Region::Region(std::shared_ptr<Arena> arena, uint64_t offset, Charge charge)
    : arena_(std::move(arena)), offset_(offset), charge_(std::move(charge)) {}

Region::~Region() {
  arena_->free(offset_);
  charge_.release();
}

}  // namespace penstock
