// Cutting into messages, orders, credits and heartbeats: against the simplest things that could be right.
#include "network_plan.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "network_messages.h"

using namespace penstock;
using namespace std::chrono_literals;

namespace {

std::vector<Piece> pieces_of(const std::vector<uint64_t>& lengths) {
  std::vector<Piece> pieces;
  for (const uint64_t length : lengths) {
    const Descriptor descriptor{0, length, {}, nullptr};
    pieces.push_back({descriptor, descriptor});
  }
  return pieces;
}

std::vector<uint64_t> random_lengths(std::mt19937& random) {
  std::vector<uint64_t> lengths(1 + random() % 60);
  for (uint64_t& length : lengths) length = random() % (random() % 3 == 0 ? 5000 : 40);
  return lengths;
}

void every_byte_is_in_one_message() {
  std::mt19937 random(1);
  const MessageSizes sizes{100, 1000, 150, 7};
  for (int round = 0; round < 3000; ++round) {
    const auto lengths = random_lengths(random);
    const bool only_direct = random() % 4 == 0;
    std::vector<uint64_t> covered(lengths.size(), 0);
    for (const PlannedMessage& message : plan_write(pieces_of(lengths), sizes, only_direct)) {
      uint64_t sum = 0;
      if (message.direct) {
        CHECK(message.pieces == 1 && message.length > 0 && message.length <= sizes.chunk_bytes);
        CHECK(only_direct || lengths[message.first_piece] >= sizes.direct_bytes);
        CHECK(covered[message.first_piece] == message.offset);
        covered[message.first_piece] += message.length;
        continue;
      }
      CHECK(!only_direct && message.pieces >= 1 && message.pieces <= sizes.packed_rows);
      for (uint32_t i = message.first_piece; i < message.first_piece + message.pieces; ++i) {
        CHECK(covered[i] == 0 && lengths[i] < sizes.direct_bytes);
        covered[i] = lengths[i];
        sum += lengths[i];
      }
      CHECK(sum == message.length && sum > 0 && (sum <= sizes.packed_bytes || message.pieces == 1));
    }
    CHECK(covered == lengths);
  }
}

void requests_hold_every_piece_once() {
  std::mt19937 random(2);
  const MessageSizes sizes{100, 1000, 150, 7};
  for (int round = 0; round < 3000; ++round) {
    const auto lengths = random_lengths(random);
    uint64_t all = 0;
    uint64_t planned = 0;
    for (const uint64_t length : lengths) all += length;
    uint32_t next = 0;
    for (const PlannedMessage& message : plan_read(pieces_of(lengths), sizes)) {
      CHECK(message.first_piece >= next && message.pieces >= 1 && message.pieces <= kMaxRows && message.length > 0);
      CHECK(message.length <= sizes.chunk_bytes || message.pieces == 1 ||
            std::count_if(lengths.begin() + message.first_piece, lengths.begin() + message.first_piece + message.pieces,
                          [](uint64_t l) { return l > 0; }) == 1);
      next = message.first_piece + message.pieces;
      planned += message.length;
    }
    CHECK(planned == all);
  }
  CHECK(plan_read(pieces_of({0, 0}), sizes).empty());
  CHECK(plan_write(pieces_of({0, 0}), sizes, false).empty());
  const std::vector<uint64_t> many(3 * kMaxRows, 1);
  CHECK(plan_read(pieces_of(many), MessageSizes{}).size() == 3);
}

void notifications_come_out_in_order() {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<uint64_t> order(50);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    Sequencer sequencer;
    std::vector<std::string> out;
    for (const uint64_t number : order) {
      CHECK(sequencer.put(number, std::to_string(number), out));
      CHECK(!sequencer.put(number, "again", out));
    }
    CHECK(out.size() == order.size());
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == std::to_string(i));
  }
  Sequencer sequencer;
  std::vector<std::string> out;
  CHECK(!sequencer.put(Sequencer::kMaxEarly + 1, "much too early", out));
  CHECK(!sequencer.put(UINT64_MAX, "", out));
}

void credit_bounds_what_is_under_way() {
  CreditWindow window;
  uint64_t sent = 0;
  for (; window.has_room(); ++sent) window.sent(1);
  CHECK(sent == CreditWindow::kMessages);
  CHECK(!window.taken(sent + 1));
  CHECK(window.taken(10) && window.has_room());
  CHECK(!window.taken(9));
  CHECK(window.taken(sent));
  uint64_t bytes = 0;
  for (; window.has_room(); ++sent) {
    window.sent(kMaxNotification);
    bytes += kMaxNotification;
  }
  CHECK(bytes <= CreditWindow::kMostBytes);
  CHECK(window.taken(sent - 1) && window.has_room());
}

void silence_is_asked_about_and_then_believed() {
  using Verdict = Heartbeat::Verdict;
  const auto start = Heartbeat::Clock::time_point(1000s);
  Heartbeat heartbeat(8s, start);
  CHECK(heartbeat.due() == start + 2s);
  CHECK(heartbeat.check(start + 1s) == Verdict::fine);
  CHECK(heartbeat.check(start + 2s) == Verdict::ask);
  CHECK(heartbeat.due() == start + 8s);
  CHECK(heartbeat.check(start + 5s) == Verdict::fine);
  heartbeat.heard(start + 6s);
  CHECK(heartbeat.check(start + 7s) == Verdict::fine);
  CHECK(heartbeat.check(start + 8s) == Verdict::ask);
  CHECK(heartbeat.check(start + 14s) == Verdict::lost);
}

void a_pause_of_our_own_is_no_silence_of_the_peer() {
  using Verdict = Heartbeat::Verdict;
  const auto start = Heartbeat::Clock::time_point(1000s);
  Heartbeat heartbeat(8s, start);
  CHECK(heartbeat.check(start + 2s) == Verdict::ask);
  CHECK(heartbeat.check(start + 60s) == Verdict::fine);  // we were stopped
  CHECK(heartbeat.check(start + 62s) == Verdict::ask);
  CHECK(heartbeat.check(start + 68s) == Verdict::lost);
}

}  // namespace

int main() {
  return testing::run({
      {"every byte is in one message", every_byte_is_in_one_message},
      {"requests hold every piece once", requests_hold_every_piece_once},
      {"notifications come out in order", notifications_come_out_in_order},
      {"credit bounds what is under way", credit_bounds_what_is_under_way},
      {"silence is asked about and then believed", silence_is_asked_about_and_then_believed},
      {"a pause of our own is no silence of the peer", a_pause_of_our_own_is_no_silence_of_the_peer},
  });
}
