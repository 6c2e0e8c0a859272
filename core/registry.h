// An agent's registered memory, and what makes it safe that others reach into it.
//
// A registration has a *slot* and a *generation*: a number that is never used again. Generations stand in a table in
// shared memory, which peers on this host map: a peer makes its busy counter odd, looks whether the generation that it
// was told is still there, moves bytes, and makes its counter even. Retiring a slot clears the generation first; the
// memory is *quiet* when every counter that was odd then has moved on, or its process is gone, and when every Pin
// taken by the network plane or by our own transfers is gone. (Dekker: both sides store, then load, seq_cst.)
//
// Threads: any.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "range_index.h"
#include "segment.h"

namespace penstock {

using Deadline = std::chrono::steady_clock::time_point;

enum class MemoryKind : uint32_t { dram = 0, vram = 1 };

// What peers see. The table's sizes never change; `sleeping` says that somebody must be woken after a notification.
struct alignas(64) RegistryTable {
  static constexpr uint64_t kMagic = 0x3147455248435350;  // "PSCHREG1"
  uint64_t magic;
  uint32_t version;
  uint32_t capacity;
  std::atomic<uint32_t> sleeping;
  // [capacity] of them follow; 0 = nothing is registered there.
  std::atomic<uint64_t>* generations() { return reinterpret_cast<std::atomic<uint64_t>*>(this + 1); }
  static uint64_t bytes(uint32_t capacity) { return sizeof(RegistryTable) + sizeof(uint64_t) * capacity; }
};

// A peer's busy counters, in the link segment that we share with it. One for each thread that may transfer at once.
struct alignas(64) BusyCounter {
  std::atomic<uint64_t> count;  // odd = in the middle of a transfer
};
inline constexpr uint32_t kBusyCounters = 16;

// Who may be in the middle of a transfer: one for each incoming link. `gone` once its process is.
class Visitor {
 public:
  virtual ~Visitor() = default;
  virtual const BusyCounter* busy() const = 0;  // kBusyCounters of them
  std::atomic<bool> gone{false};
};

class Registry;

// Keeps registered memory from being given back while bytes move.
class Pin {
 public:
  Pin() = default;
  Pin(std::shared_ptr<Registry> registry, uint32_t slot) : registry_(std::move(registry)), slot_(slot) {}
  Pin(Pin&& other) noexcept : registry_(std::move(other.registry_)), slot_(other.slot_) {}
  Pin& operator=(Pin&& other) noexcept;
  ~Pin() { release(); }
  void release() noexcept;

 private:
  std::shared_ptr<Registry> registry_;
  uint32_t slot_ = 0;
};

class Registry : public std::enable_shared_from_this<Registry> {
 public:
  static constexpr uint32_t kCapacity = 1 << 15;

  explicit Registry(uint32_t capacity = kCapacity);

  struct Name {
    uint32_t slot;
    uint64_t generation;
  };
  struct Found {
    Name name;
    MemoryKind kind;
    uint32_t device;
  };

  Name add(std::vector<Range> ranges, MemoryKind kind, uint32_t device);
  // From now on no transfer begins here. Idempotent.
  void retire(Name name);
  // Whether nothing moves any more in memory that was retired; if so its slot is free for another use.
  bool quiet(Name name);
  bool wait_quiet(Name name, Deadline deadline);

  // The registration that holds the whole range; nothing = none does.
  std::optional<Found> find(Range range);
  bool live(Name name) const noexcept;
  // Throws Error: stale_descriptor, or not_registered when the range isn't wholly in this registration. May be called
  // with whatever a peer sent. `kind`: of the memory.
  Pin pin(Name name, Range range, MemoryKind* kind = nullptr);
  // The same without a range, for lists that were checked when they were prepared: false = stale.
  bool try_pin(Name name) noexcept;
  void unpin(uint32_t slot) noexcept;

  void attach(std::shared_ptr<Visitor> visitor);
  void detach(const std::shared_ptr<Visitor>& visitor);

  const Segment& table() const { return *segment_; }
  RegistryTable& shared() const { return *reinterpret_cast<RegistryTable*>(segment_->data()); }

 private:
  struct Wait {  // a counter that was odd when the slot was retired
    std::shared_ptr<Visitor> visitor;
    uint32_t counter;
    uint64_t count;
  };
  struct Slot {
    uint64_t generation = 0;    // 0 = free
    std::vector<Range> ranges;  // sorted and disjoint
    MemoryKind kind = MemoryKind::dram;
    uint32_t device = 0;
    bool retired = false;
    std::vector<Wait> waits;
  };

  // The slot, as long as it is of this generation; else null.
  Slot* find_slot(Name name);

  const uint32_t capacity_;
  std::shared_ptr<Segment> segment_;
  std::unique_ptr<std::atomic<uint32_t>[]> pins_;
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  RangeIndex index_;
  std::vector<std::shared_ptr<Visitor>> visitors_;
  uint64_t next_generation_;
};

}  // namespace penstock
