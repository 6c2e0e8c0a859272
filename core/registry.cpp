#include "registry.h"

#include <sys/random.h>

#include <algorithm>
#include <new>
#include <string>
#include <thread>

#include "error.h"

namespace penstock {
namespace {

// Sorted, and those that overlap or touch as one.
void coalesce(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.address < b.address; });
  size_t last = 0;
  for (size_t i = 1; i < ranges.size(); ++i) {
    const uint64_t end = ranges[last].address + ranges[last].length;
    if (ranges[i].address <= end) {
      ranges[last].length = std::max(end, ranges[i].address + ranges[i].length) - ranges[last].address;
    } else {
      ranges[++last] = ranges[i];
    }
  }
  ranges.resize(last + 1);
}

// Where generations begin: elsewhere in each process, so that a descriptor of an agent that was started again is stale.
uint64_t random_start() {
  uint64_t start = 0;
  if (getrandom(&start, sizeof start, 0) != sizeof start) {
    start = static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  }
  return start % (uint64_t{1} << 62) + 1;
}

}  // namespace

Pin& Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    release();
    registry_ = std::move(other.registry_);
    slot_ = other.slot_;
  }
  return *this;
}

void Pin::release() noexcept {
  if (registry_) registry_->unpin(slot_);
  registry_.reset();
}

Registry::Registry(uint32_t capacity)
    : capacity_(capacity),
      segment_(Segment::create(RegistryTable::bytes(capacity), Segment::Use::look_up)),
      pins_(std::make_unique<std::atomic<uint32_t>[]>(capacity)),
      next_generation_(random_start()) {
  auto* table = new (segment_->data()) RegistryTable{};
  table->magic = RegistryTable::kMagic;
  table->version = 1;
  table->capacity = capacity;
}

Registry::Name Registry::add(std::vector<Range> ranges, MemoryKind kind, uint32_t device) {
  if (ranges.empty()) throw Error(ErrorCode::invalid_argument, "a registration has at least one range");
  for (const Range& range : ranges) {
    if (range.length == 0 || range.length > UINT64_MAX - range.address) {
      throw Error(ErrorCode::invalid_argument, "no memory can be at " + std::to_string(range.address) + " with " +
                                                   std::to_string(range.length) + " bytes");
    }
  }
  coalesce(ranges);
  std::lock_guard lock(mutex_);
  uint32_t index = 0;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else if (slots_.size() < capacity_) {
    index = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    throw Error(ErrorCode::invalid_argument, "an agent has at most " + std::to_string(capacity_) +
                                                 " registrations; register many arrays at once, or close some");
  }
  const Name name{index, next_generation_++};
  for (const Range& range : ranges) index_.add(range, index);
  slots_[index] = Slot{name.generation, std::move(ranges), kind, device, false, {}};
  shared().generations()[index].store(name.generation, std::memory_order_seq_cst);
  return name;
}

Registry::Slot* Registry::find_slot(Name name) {
  if (name.generation == 0 || name.slot >= slots_.size()) return nullptr;
  Slot& slot = slots_[name.slot];
  return slot.generation == name.generation ? &slot : nullptr;
}

void Registry::retire(Name name) {
  std::lock_guard lock(mutex_);
  Slot* slot = find_slot(name);
  if (slot == nullptr || slot->retired) return;
  slot->retired = true;
  index_.remove(name.slot);
  shared().generations()[name.slot].store(0, std::memory_order_seq_cst);
  for (const auto& visitor : visitors_) {
    if (visitor->gone.load()) continue;
    for (uint32_t i = 0; i < kBusyCounters; ++i) {
      const uint64_t count = visitor->busy()[i].count.load(std::memory_order_seq_cst);
      if (count % 2 == 1) slot->waits.push_back({visitor, i, count});
    }
  }
}

bool Registry::quiet(Name name) {
  std::lock_guard lock(mutex_);
  Slot* slot = find_slot(name);
  if (slot == nullptr) return true;
  std::erase_if(slot->waits, [](const Wait& wait) {
    return wait.visitor->gone.load() ||
           wait.visitor->busy()[wait.counter].count.load(std::memory_order_acquire) != wait.count;
  });
  if (!slot->waits.empty() || pins_[name.slot].load(std::memory_order_seq_cst) != 0) return false;
  if (slot->retired) {
    *slot = Slot{};
    free_.push_back(name.slot);
  }
  return true;
}

bool Registry::wait_quiet(Name name, Deadline deadline) {
  // Nobody signals the end of a copy in another process; most end within a millisecond.
  auto pause = std::chrono::microseconds(2);
  while (!quiet(name)) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) return false;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, deadline - now));
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
  return true;
}

std::optional<Registry::Found> Registry::find(Range range) {
  std::lock_guard lock(mutex_);
  std::optional<Found> found;
  index_.find(range, [&](uint64_t tag, uint64_t) {
    const auto index = static_cast<uint32_t>(tag);
    const Slot& slot = slots_[index];
    found = Found{{index, slot.generation}, slot.kind, slot.device};
    return true;
  });
  return found;
}

bool Registry::live(Name name) const noexcept {
  return name.generation != 0 && name.slot < capacity_ &&
         shared().generations()[name.slot].load(std::memory_order_seq_cst) == name.generation;
}

bool Registry::try_pin(Name name) noexcept {
  if (name.slot >= capacity_) return false;
  pins_[name.slot].fetch_add(1, std::memory_order_seq_cst);
  if (live(name)) return true;
  unpin(name.slot);
  return false;
}

void Registry::unpin(uint32_t slot) noexcept { pins_[slot].fetch_sub(1, std::memory_order_seq_cst); }

Pin Registry::pin(Name name, Range range, MemoryKind* kind) {
  if (!try_pin(name)) {
    throw Error(ErrorCode::stale_descriptor, "registration " + std::to_string(name.slot) + " of generation " +
                                                 std::to_string(name.generation) + " is no more");
  }
  Pin pin(shared_from_this(), name.slot);
  std::lock_guard lock(mutex_);
  const Slot* slot = find_slot(name);
  const std::vector<Range> none;
  const std::vector<Range>& ranges = slot != nullptr ? slot->ranges : none;
  if (kind != nullptr && slot != nullptr) *kind = slot->kind;
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), range.address,
                                      [](uint64_t address, const Range& r) { return address < r.address; });
  if (after != ranges.begin()) {
    const Range& held = *std::prev(after);
    const uint64_t offset = range.address - held.address;
    if (offset < held.length && range.length <= held.length - offset) return pin;
  }
  throw Error(ErrorCode::not_registered, std::to_string(range.length) + " bytes at " + std::to_string(range.address) +
                                             " don't lie in registration " + std::to_string(name.slot));
}

void Registry::attach(std::shared_ptr<Visitor> visitor) {
  std::lock_guard lock(mutex_);
  visitors_.push_back(std::move(visitor));
}

void Registry::detach(const std::shared_ptr<Visitor>& visitor) {
  std::lock_guard lock(mutex_);
  std::erase(visitors_, visitor);
}

}  // namespace penstock
