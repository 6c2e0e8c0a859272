#include "link_segment.h"

#include <algorithm>
#include <cstring>

namespace penstock {
namespace {

constexpr uint64_t kMask = LinkSegment::kRingBytes - 1;
static_assert((LinkSegment::kRingBytes & kMask) == 0, "positions are masked");

}  // namespace

bool RingWriter::has_room(uint64_t message_bytes) {
  const uint64_t needed = record_bytes(message_bytes);
  if (tail_ - head_ + needed <= LinkSegment::kRingBytes) return true;
  const uint64_t head = link_.head.load(std::memory_order_acquire);
  if (head < head_ || head > tail_) return false;  // a target that says so never makes room
  head_ = head;
  return tail_ - head_ + needed <= LinkSegment::kRingBytes;
}

void RingWriter::put(uint64_t position, const void* from, uint64_t bytes) {
  const uint64_t begin = position & kMask;
  const uint64_t first = std::min(bytes, LinkSegment::kRingBytes - begin);
  std::memcpy(link_.ring() + begin, from, first);
  std::memcpy(link_.ring(), static_cast<const std::byte*>(from) + first, bytes - first);
}

void RingWriter::write(std::string_view message) {
  const auto length = static_cast<uint32_t>(message.size());
  put(tail_, &length, sizeof length);
  put(tail_ + sizeof length, message.data(), message.size());
  tail_ += record_bytes(message.size());
  link_.tail.store(tail_, std::memory_order_seq_cst);
}

void RingReader::get(uint64_t position, void* to, uint64_t bytes) const {
  const uint64_t begin = position & kMask;
  const uint64_t first = std::min(bytes, LinkSegment::kRingBytes - begin);
  std::memcpy(to, link_.ring() + begin, first);
  std::memcpy(static_cast<std::byte*>(to) + first, link_.ring(), bytes - first);
}

RingReader::Result RingReader::read(std::string& into) {
  // In one order with the writer's store and its look for sleepers: who finds nothing after `arm()` will be woken.
  const uint64_t available = link_.tail.load(std::memory_order_seq_cst) - head_;
  if (available == 0) return Result::nothing;
  uint32_t length = 0;
  if (available > LinkSegment::kRingBytes || available < sizeof length) return Result::broken;
  get(head_, &length, sizeof length);
  if (length > LinkSegment::kMaxMessage || RingWriter::record_bytes(length) > available) return Result::broken;
  into.resize(length);
  get(head_ + sizeof length, into.data(), length);
  head_ += RingWriter::record_bytes(length);
  link_.head.store(head_, std::memory_order_release);
  return Result::message;
}

}  // namespace penstock
