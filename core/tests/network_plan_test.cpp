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
  for (int round = 0; round < 3000; ++round) {
    const uint64_t eager_bytes = random() % 2 == 0 ? 0 : 130;
    const MessageSizes sizes{100, 1000, 150, 7, 1000, eager_bytes};
    const auto lengths = random_lengths(random);
    const bool only_direct = random() % 4 == 0;
    const bool eager = !only_direct && eager_bytes > 0;
    std::vector<uint64_t> covered(lengths.size(), 0);
    for (const PlannedMessage& message : plan_write(pieces_of(lengths), sizes, only_direct)) {
      uint64_t sum = 0;
      if (message.direct) {
        CHECK(message.eager == eager);
        CHECK(message.pieces == 1 && message.length > 0);
        CHECK(message.length <= (eager ? sizes.eager_bytes : sizes.chunk_bytes));
        CHECK(only_direct || lengths[message.first_piece] >= sizes.direct_bytes);
        CHECK(covered[message.first_piece] == message.offset);
        covered[message.first_piece] += message.length;
        continue;
      }
      CHECK(!only_direct && !message.eager && message.pieces >= 1 && message.pieces <= sizes.packed_rows);
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
  const MessageSizes sizes{100, 1000, 150, 7, 700};
  for (int round = 0; round < 3000; ++round) {
    const auto lengths = random_lengths(random);
    uint64_t all = 0;
    uint64_t planned = 0;
    for (const uint64_t length : lengths) all += length;
    uint32_t next = 0;
    for (const PlannedMessage& message : plan_read(pieces_of(lengths), sizes)) {
      CHECK(message.first_piece >= next && message.pieces >= 1 && message.pieces <= kMaxRows && message.length > 0);
      CHECK(message.length <= sizes.request_bytes || message.pieces == 1 ||
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

// UCX would cut a larger one, and put it together again at the other end: another copy.
void over_tcp_a_message_is_one_segment() {
  std::mt19937 random(4);
  const MessageSizes sizes = sizes_over("tcp/eth0");
  for (int round = 0; round < 300; ++round) {
    auto lengths = random_lengths(random);
    const uint64_t scale = 1ULL << random() % 8;
    for (uint64_t& length : lengths) length *= scale;
    lengths.insert(lengths.end(), 3000, random() % 300);
    for (const PlannedMessage& message : plan_write(pieces_of(lengths), sizes, false)) {
      CHECK(message.eager == message.direct);
      const uint64_t rows = message.direct ? 0 : message.pieces * sizeof(Row);
      CHECK(message.length + rows <= kTcpSegment - 1024);
    }
  }
}

void only_one_tcp_device_sends_all_eagerly() {
  CHECK(sizes_over("tcp/eth0").eager_bytes > 0);
  CHECK(plan_write(pieces_of({1 << 20}), sizes_over("tcp/eth0"), true).size() == 1);  // no host memory: fetched
  for (const char* transports : {"", "tcp/eth0,tcp/eth1", "rc_mlx5/mlx5_0:1", "tcp/eth0,rc_mlx5/mlx5_0:1",
                                 "sysv/memory", "sysv/memory,tcp/lo"}) {
    const MessageSizes sizes = sizes_over(transports);
    CHECK(sizes.eager_bytes == 0);
    CHECK(sizes.direct_bytes == MessageSizes{}.direct_bytes && sizes.packed_bytes == MessageSizes{}.packed_bytes);
  }
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
      {"over TCP a message is one segment", over_tcp_a_message_is_one_segment},
      {"only one TCP device sends all eagerly", only_one_tcp_device_sends_all_eagerly},
      {"notifications come out in order", notifications_come_out_in_order},
      {"credit bounds what is under way", credit_bounds_what_is_under_way},
      {"silence is asked about and then believed", silence_is_asked_about_and_then_believed},
      {"a pause of our own is no silence of the peer", a_pause_of_our_own_is_no_silence_of_the_peer},
  });
}
