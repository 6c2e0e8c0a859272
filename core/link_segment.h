// What one agent shares with one peer that reaches into its memory: busy counters and a ring of notifications.
//
// One direction: the initiator writes, the target reads. Each trusts its own position and checks the other's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "registry.h"

namespace penstock {

struct alignas(64) LinkSegment {
  static constexpr uint64_t kMagic = 0x314b4e4c48435350;  // "PSCHLNK1"
  static constexpr uint64_t kRingBytes = 256 << 10;       // a power of two
  static constexpr uint64_t kMaxMessage = 128 << 10;
  static constexpr uint64_t bytes() { return sizeof(LinkSegment) + kRingBytes; }

  uint64_t magic;
  uint32_t version;
  BusyCounter busy[kBusyCounters];
  alignas(64) std::atomic<uint64_t> head;  // bytes that the target has taken
  alignas(64) std::atomic<uint64_t> tail;  // bytes that the initiator has published

  std::byte* ring() { return reinterpret_cast<std::byte*>(this + 1); }
  const std::byte* ring() const { return reinterpret_cast<const std::byte*>(this + 1); }
};

// The initiator's end of a ring. One thread at a time.
class RingWriter {
 public:
  explicit RingWriter(LinkSegment& link) : link_(link), tail_(link.tail.load()) {}

  static uint64_t record_bytes(uint64_t message_bytes) { return (message_bytes + 4 + 7) / 8 * 8; }
  bool has_room(uint64_t message_bytes);
  // Needs room. Publishes the message after everything that this thread wrote before.
  void write(std::string_view message);

 private:
  void put(uint64_t position, const void* from, uint64_t bytes);

  LinkSegment& link_;
  uint64_t tail_;
  uint64_t head_ = 0;  // as last seen
};

// The target's end. One thread at a time.
class RingReader {
 public:
  explicit RingReader(LinkSegment& link) : link_(link) {}

  enum class Result { message, nothing, broken };  // broken: the initiator wrote what no ring can hold
  bool empty() const { return link_.tail.load(std::memory_order_seq_cst) == head_; }
  Result read(std::string& into);

 private:
  void get(uint64_t position, void* to, uint64_t bytes) const;

  LinkSegment& link_;
  uint64_t head_ = 0;
};

}  // namespace penstock
