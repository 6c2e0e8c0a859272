// What the network plane decides without a network: how bytes are cut into messages, when a peer counts as lost, in
// which order notifications come out, how many may be under way. All pure.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transfer.h"

namespace penstock {

struct MessageSizes {
  uint64_t direct_bytes = 256 << 10;  // from here on a piece is sent from where it lies
  uint64_t chunk_bytes = 1 << 20;     // of which at most so much is one message, fetched by the receiver (rendezvous)
  uint64_t packed_bytes = 256 << 10;  // smaller pieces share a message of at most so many bytes
  uint32_t packed_rows = 2048;
  uint64_t request_bytes = 1 << 20;  // of pieces in one request to read
  uint64_t eager_bytes = 0;          // direct pieces go in messages of so many bytes, which come along; 0 = fetched
};

// A message of UCX's TCP. Both ends must have buffers of this size: UCX doesn't look whether what comes fits.
inline constexpr uint64_t kTcpSegment = 128 << 10;

// What suits a connection over `transports`, as Endpoint::transport() tells them. Over one TCP device, bytes come along
// in messages that are one segment each: they flow at once, and each is copied into its place, hot in the cache, while
// the next one comes. Over several devices, and over those that reach memory by themselves, large pieces are fetched.
MessageSizes sizes_over(std::string_view transports);

// One message: a part of one piece (direct), or several whole pieces (packed).
struct PlannedMessage {
  uint32_t first_piece;
  uint32_t pieces;
  uint64_t offset;  // direct: in its piece
  uint64_t length;
  bool direct;
  bool eager = false;  // direct: its bytes come along
};

// Cuts pieces 0 .. count-1 into messages, one at a time. Empty pieces are in none.
class MessageCursor {
 public:
  MessageCursor(const MessageSizes& sizes, bool only_direct) : sizes_(sizes), only_direct_(only_direct) {}
  template <typename LengthOf>
  std::optional<PlannedMessage> next(size_t count, LengthOf length_of);

 private:
  MessageSizes sizes_;
  bool only_direct_;
  size_t piece_ = 0;
  uint64_t offset_ = 0;
};

std::vector<PlannedMessage> plan_write(const std::vector<Piece>& pieces, const MessageSizes& sizes, bool only_direct);
// Requests: neighbouring pieces, of `request_bytes` together unless one is larger.
std::vector<PlannedMessage> plan_read(const std::vector<Piece>& pieces, const MessageSizes& sizes);

// Whether a peer that says nothing is asked, or given up.
class Heartbeat {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Verdict { fine, ask, lost };

  Heartbeat(Clock::duration timeout, Clock::time_point now) : timeout_(timeout), heard_(now) {}
  void heard(Clock::time_point now) {
    heard_ = now;
    asked_ = false;
  }
  // To be called when `due` comes. A check that comes much too late (we were stopped) says nothing about the peer.
  Verdict check(Clock::time_point now);
  Clock::time_point due() const { return asked_ ? heard_ + timeout_ : heard_ + timeout_ / 4; }

 private:
  Clock::duration timeout_;
  Clock::time_point heard_;
  bool asked_ = false;
};

// Brings notifications into the order in which they were numbered: 0, 1, 2, ...
class Sequencer {
 public:
  static constexpr size_t kMaxEarly = 4096;
  // Takes one, and appends those whose turn it is. False = a number that can't be meant.
  bool put(uint64_t sequence, std::string message, std::vector<std::string>& ready);

 private:
  uint64_t next_ = 0;
  std::map<uint64_t, std::string> early_;
};

// How many notifications may be under way to a target that has not taken them.
class CreditWindow {
 public:
  static constexpr uint64_t kMessages = 1024;
  static constexpr uint64_t kBytes = 4 << 20;
  // The most that a target has to keep: one message may exceed the window.
  static constexpr uint64_t kMostBytes = 2 * kBytes;

  bool has_room() const { return sizes_.size() < kMessages && bytes_ < kBytes; }
  void sent(uint64_t bytes) {
    sizes_.push_back(bytes);
    bytes_ += bytes;
  }
  // The target has taken so many since the beginning. False = more than were sent, or fewer than it said before.
  bool taken(uint64_t count);

 private:
  std::deque<uint64_t> sizes_;
  uint64_t bytes_ = 0;
  uint64_t taken_ = 0;
};

template <typename LengthOf>
std::optional<PlannedMessage> MessageCursor::next(size_t count, LengthOf length_of) {
  while (piece_ < count && length_of(piece_) == 0) ++piece_;
  if (piece_ >= count) return std::nullopt;
  const auto first = static_cast<uint32_t>(piece_);
  const uint64_t whole = length_of(piece_);
  if (only_direct_ || whole >= sizes_.direct_bytes) {
    const bool eager = !only_direct_ && sizes_.eager_bytes > 0;
    const uint64_t length = std::min(whole - offset_, eager ? sizes_.eager_bytes : sizes_.chunk_bytes);
    const PlannedMessage message{first, 1, offset_, length, true, eager};
    offset_ += length;
    if (offset_ == whole) {
      ++piece_;
      offset_ = 0;
    }
    return message;
  }
  PlannedMessage message{first, 0, 0, 0, false};
  for (; piece_ < count && message.pieces < sizes_.packed_rows; ++piece_, ++message.pieces) {
    const uint64_t length = length_of(piece_);
    if (length >= sizes_.direct_bytes || (message.pieces > 0 && message.length + length > sizes_.packed_bytes)) break;
    message.length += length;
  }
  return message;
}

}  // namespace penstock
