#include "network_plan.h"

#include <algorithm>
#include <utility>

#include "network_messages.h"

namespace penstock {
namespace {

constexpr uint64_t kHeaders = 4 << 10;  // of a TCP segment is kept for UCX's headers and ours, which are far smaller

}  // namespace

MessageSizes sizes_over(std::string_view transports) {
  MessageSizes sizes;
  if (!transports.starts_with("tcp/") || transports.find(',') != std::string_view::npos) return sizes;
  const uint64_t payload = kTcpSegment - kHeaders;
  sizes.direct_bytes = 64 << 10;
  sizes.eager_bytes = payload;
  sizes.packed_rows = 512;
  sizes.packed_bytes = payload - sizes.packed_rows * sizeof(Row);
  return sizes;
}

std::vector<PlannedMessage> plan_write(const std::vector<Piece>& pieces, const MessageSizes& sizes, bool only_direct) {
  std::vector<PlannedMessage> messages;
  MessageCursor cursor(sizes, only_direct);
  const auto length_of = [&](size_t i) { return pieces[i].local.length; };
  while (const auto message = cursor.next(pieces.size(), length_of)) messages.push_back(*message);
  return messages;
}

std::vector<PlannedMessage> plan_read(const std::vector<Piece>& pieces, const MessageSizes& sizes) {
  std::vector<PlannedMessage> messages;
  size_t piece = 0;
  while (piece < pieces.size()) {
    PlannedMessage message{static_cast<uint32_t>(piece), 0, 0, 0, false};
    for (; piece < pieces.size() && message.pieces < kMaxRows; ++piece, ++message.pieces) {
      const uint64_t length = pieces[piece].local.length;
      if (message.pieces > 0 && message.length + length > sizes.request_bytes) break;
      message.length += length;
    }
    if (message.length > 0) messages.push_back(message);
  }
  return messages;
}

Heartbeat::Verdict Heartbeat::check(Clock::time_point now) {
  if (now - due() > timeout_ / 4) {
    heard_ = now;
    asked_ = false;
    return Verdict::fine;
  }
  if (now < due()) return Verdict::fine;
  if (asked_) return Verdict::lost;
  asked_ = true;
  return Verdict::ask;
}

bool Sequencer::put(uint64_t sequence, std::string message, std::vector<std::string>& ready) {
  if (sequence < next_ || sequence - next_ > kMaxEarly || early_.contains(sequence)) return false;
  if (sequence != next_) {
    early_.emplace(sequence, std::move(message));
    return true;
  }
  ready.push_back(std::move(message));
  ++next_;
  for (auto early = early_.begin(); early != early_.end() && early->first == next_; early = early_.erase(early)) {
    ready.push_back(std::move(early->second));
    ++next_;
  }
  return true;
}

bool CreditWindow::taken(uint64_t count) {
  if (count < taken_ || count - taken_ > sizes_.size()) return false;
  for (; taken_ < count; ++taken_) {
    bytes_ -= sizes_.front();
    sizes_.pop_front();
  }
  return true;
}

}  // namespace penstock
