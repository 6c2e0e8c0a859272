// The host plane with threads for processes: each side maps the other's segments anew, as another process would.
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "error.h"
#include "host_link.h"
#include "inbox.h"
#include "link_segment.h"
#include "range_index.h"
#include "registry.h"
#include "remote_memory.h"
#include "segment.h"
#include "transfer.h"

using namespace penstock;
using namespace std::chrono_literals;

namespace {

Deadline in(std::chrono::nanoseconds time) { return std::chrono::steady_clock::now() + time; }

Range whole(const Segment& segment) { return {reinterpret_cast<uint64_t>(segment.data()), segment.size()}; }

std::shared_ptr<Segment> map_again(const Segment& segment, bool writable = true) {
  return Segment::map(dup(segment.fd()), segment.size(), writable);
}

// An agent, without its Python.
struct Side {
  std::shared_ptr<Registry> registry = std::make_shared<Registry>(64);
  Inbox inbox{registry};
  std::shared_ptr<Segment> memory;

  explicit Side(uint64_t bytes) : memory(Segment::create(bytes)) {}
  Registry::Name expose() { return registry->add({whole(*memory)}, MemoryKind::dram, 0); }
};

// A link from one side to another, with what the handshake would bring about.
struct Connection {
  std::shared_ptr<IncomingLink> incoming = std::make_shared<IncomingLink>("initiator");
  std::shared_ptr<HostLink> link;
  RemoteMemory remote;
  Side& target;

  Connection(Side& initiator, Side& other) : target(other) {
    target.registry->attach(incoming);
    target.inbox.attach(incoming);
    link = std::make_shared<HostLink>(initiator.registry, map_again(target.registry->table(), false),
                                      map_again(incoming->segment()), dup(target.inbox.wake_fd()), 0, "target");
  }
  void learn(Registry::Name name) {
    remote.clear();
    remote.add(name, MemoryKind::dram, 0, target.memory->id(),
               {{whole(*target.memory).address, target.memory->size(), 0}});
    if (!remote.unmapped().empty()) remote.map(target.memory->id(), map_again(*target.memory));
  }
  std::shared_ptr<Transfer> transfer(Operation operation, Side& initiator, uint64_t bytes, uint64_t at = 0) {
    const auto local = prepare_local(*initiator.registry, {{whole(*initiator.memory).address + at, bytes}}, nullptr);
    const auto there = remote.prepare({{whole(*target.memory).address + at, bytes}}, nullptr);
    return link->transfer(operation, *local, *there, match(*local, *there, nullptr, nullptr, true));
  }
};

void a_range_is_found_in_what_was_added_last() {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    RangeIndex index;
    std::vector<std::pair<Range, uint64_t>> added;
    for (uint64_t tag = 0; tag < 12; ++tag) {
      const Range range{random() % 60, 1 + random() % 30};
      index.add(range, tag);
      added.emplace_back(range, tag);
      if (random() % 5 == 0) {
        const uint64_t gone = random() % (tag + 1);
        index.remove(gone);
        std::erase_if(added, [gone](const auto& entry) { return entry.second == gone; });
      }
      const Range wanted{random() % 60, 1 + random() % 10};
      std::vector<uint64_t> found;
      index.find(wanted, [&](uint64_t each, uint64_t) {
        found.push_back(each);
        return false;
      });
      std::vector<uint64_t> expected;
      for (const auto& [range_added, each] : added) {
        if (range_added.address <= wanted.address &&
            range_added.address + range_added.length >= wanted.address + wanted.length) {
          expected.push_back(each);
        }
      }
      std::sort(found.begin(), found.end());
      CHECK(found == expected);
    }
  }
}

void a_ring_is_a_queue() {
  IncomingLink incoming("initiator");
  auto& shared = *reinterpret_cast<LinkSegment*>(incoming.segment().data());
  RingWriter writer(shared);
  RingReader reader(shared);
  std::deque<std::string> model;
  std::mt19937 random(2);
  std::string message;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0) {
      const uint64_t bytes = random() % 100 == 0 ? LinkSegment::kMaxMessage : random() % 300;
      if (!writer.has_room(bytes)) continue;
      model.emplace_back(bytes, static_cast<char>(i));
      writer.write(model.back());
    } else {
      const auto result = reader.read(message);
      CHECK((result == RingReader::Result::message) == !model.empty());
      if (model.empty()) continue;
      CHECK(message == model.front());
      model.pop_front();
    }
  }
}

void a_ring_with_nonsense_is_broken_and_read_no_further() {
  for (const uint64_t tail : {uint64_t{3}, LinkSegment::kRingBytes + 8, UINT64_MAX}) {
    IncomingLink incoming("initiator");
    auto& shared = *reinterpret_cast<LinkSegment*>(incoming.segment().data());
    shared.tail.store(tail);
    std::vector<Notification> taken;
    CHECK(incoming.take(taken, 10) && taken.empty());
  }
  IncomingLink incoming("initiator");
  auto& shared = *reinterpret_cast<LinkSegment*>(incoming.segment().data());
  const uint32_t length = LinkSegment::kMaxMessage;  // more than is there
  std::memcpy(shared.ring(), &length, sizeof length);
  shared.tail.store(64);
  std::vector<Notification> taken;
  CHECK(incoming.take(taken, 10) && taken.empty());
}

void a_registration_is_stale_when_it_was_retired() {
  auto registry = std::make_shared<Registry>(2);
  const Registry::Name first = registry->add({{4096, 100}, {4196, 50}, {9000, 10}}, MemoryKind::dram, 0);
  CHECK(registry->find({4190, 20})->name.generation == first.generation);  // neighbours are one
  CHECK(!registry->find({9000, 11}));
  CHECK_THROWS(registry->pin(first, {9005, 6}), not_registered);
  CHECK_THROWS(registry->pin({first.slot, first.generation + 1}, {4096, 1}), stale_descriptor);
  CHECK_THROWS(registry->pin({1, 0}, {4096, 1}), stale_descriptor);
  CHECK_THROWS(registry->pin({77, first.generation}, {4096, 1}), stale_descriptor);
  std::optional<Pin> pin(registry->pin(first, {4096, 150}));
  registry->retire(first);
  CHECK(!registry->live(first) && !registry->find({4096, 1}));
  CHECK_THROWS(registry->pin(first, {4096, 1}), stale_descriptor);
  CHECK(!registry->quiet(first) && !registry->wait_quiet(first, in(2ms)));
  pin.reset();
  CHECK(registry->wait_quiet(first, in(1s)));
  // Its slot is used again, and the old name means nothing there.
  const Registry::Name second = registry->add({{4096, 100}}, MemoryKind::dram, 0);
  CHECK(second.slot == first.slot && second.generation != first.generation);
  registry->retire(first);
  CHECK(registry->live(second) && registry->quiet(first));
  registry->add({{1, 1}}, MemoryKind::dram, 0);
  CHECK_THROWS(registry->add({{2, 1}}, MemoryKind::dram, 0), invalid_argument);  // both slots are taken
  CHECK_THROWS(registry->add({}, MemoryKind::dram, 0), invalid_argument);
  CHECK_THROWS(registry->add({{UINT64_MAX, 2}}, MemoryKind::dram, 0), invalid_argument);
}

void a_visitor_in_the_middle_is_waited_for() {
  auto registry = std::make_shared<Registry>(4);
  auto visitor = std::make_shared<IncomingLink>("initiator");
  registry->attach(visitor);
  auto& busy = reinterpret_cast<LinkSegment*>(visitor->segment().data())->busy[3].count;
  busy.store(7);
  const Registry::Name name = registry->add({{4096, 10}}, MemoryKind::dram, 0);
  registry->retire(name);
  CHECK(!registry->quiet(name));
  busy.store(8);
  CHECK(registry->quiet(name));
  busy.store(9);  // it is in the middle of something that it began later
  const Registry::Name other = registry->add({{4096, 10}}, MemoryKind::dram, 0);
  registry->retire(other);
  CHECK(!registry->quiet(other));
  visitor->gone.store(true);
  CHECK(registry->quiet(other));
}

void bytes_go_both_ways_and_nowhere_else() {
  Side initiator(1 << 20);
  Side target(1 << 20);
  initiator.expose();
  Connection connection(initiator, target);
  const Registry::Name name = target.expose();
  connection.learn(name);
  std::memset(initiator.memory->data(), 1, 1 << 20);
  const std::string message = "there";
  CHECK(connection.transfer(Operation::write, initiator, 1000, 64)->post(&message, in(1s)) == TransferState::done);
  for (uint64_t i = 0; i < 4096; ++i) CHECK(target.memory->data()[i] == std::byte{i >= 64 && i < 1064});
  const auto arrived = target.inbox.drain(10);
  CHECK(arrived.size() == 1 && arrived[0].message == message && *arrived[0].sender == "initiator");
  std::memset(target.memory->data(), 9, 1 << 20);
  const auto read = connection.transfer(Operation::read, initiator, 10, 5);
  CHECK(read->post(nullptr, in(1s)) == TransferState::done);
  CHECK(initiator.memory->data()[4] == std::byte{1} && initiator.memory->data()[5] == std::byte{9});
  CHECK(initiator.memory->data()[14] == std::byte{9} && initiator.memory->data()[15] == std::byte{1});
  target.registry->retire(name);
  CHECK(read->post(nullptr, in(1s)) == TransferState::failed);
  CHECK(read->error().code == ErrorCode::stale_descriptor);
  connection.link->lose("it was told to");
  CHECK(read->post(nullptr, in(1s)) == TransferState::failed && read->error().code == ErrorCode::peer_lost);
}

void large_copies_are_right_at_every_alignment() {
  Side initiator(20 << 20);
  Side target(20 << 20);
  initiator.expose();
  Connection connection(initiator, target);
  connection.learn(target.expose());
  std::mt19937 random(3);
  for (uint64_t i = 0; i < initiator.memory->size(); i += 4) {
    const uint32_t value = static_cast<uint32_t>(random());
    std::memcpy(initiator.memory->data() + i, &value, 4);
  }
  for (const uint64_t at : {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{4097}}) {
    const uint64_t bytes = (16 << 20) + at * 3;
    std::memset(target.memory->data(), 0, target.memory->size());
    CHECK(connection.transfer(Operation::write, initiator, bytes, at)->post(nullptr, in(10s)) == TransferState::done);
    CHECK(std::memcmp(target.memory->data() + at, initiator.memory->data() + at, bytes) == 0);
    CHECK(target.memory->data()[at + bytes] == std::byte{0});
  }
}

void a_full_ring_holds_a_transfer_up_and_nothing_is_lost() {
  Side initiator(4096);
  Side target(4096);
  initiator.expose();
  Connection connection(initiator, target);
  connection.learn(target.expose());
  const std::string large(LinkSegment::kMaxMessage, 'x');
  size_t sent = 0;
  while (connection.link->try_notify(large)) ++sent;
  const auto transfer = connection.transfer(Operation::write, initiator, 8);
  CHECK(transfer->post(&large, in(1h)) == TransferState::active);
  CHECK_THROWS(transfer->post(nullptr, in(1s)), transfer_active);
  CHECK(transfer->wait(in(1ms)) == TransferState::active);
  CHECK(target.inbox.drain(100).size() == sent);
  CHECK(transfer->poll() == TransferState::done);
  CHECK(target.inbox.drain(100).size() == 1);
  while (connection.link->try_notify(large)) continue;
  CHECK(transfer->post(&large, in(1ms)) == TransferState::active);
  CHECK(transfer->wait(in(1h)) == TransferState::failed && transfer->error().code == ErrorCode::deadline_exceeded);
  CHECK_THROWS(connection.link->try_notify(std::string(LinkSegment::kMaxMessage + 1, 'x')), invalid_argument);
}

void what_a_sender_left_behind_is_still_delivered() {
  Side initiator(4096);
  Side target(4096);
  auto connection = std::make_optional<Connection>(initiator, target);
  CHECK(connection->link->try_notify("first") && connection->link->try_notify("second"));
  connection->incoming->gone.store(true);
  target.inbox.retire(connection->incoming, "initiator");
  connection.reset();
  const auto arrived = target.inbox.drain(10);
  CHECK(arrived.size() == 2 && arrived[0].message == "first" && arrived[1].message == "second");
  CHECK(target.inbox.drain(10).empty());
}

// Sleeps as Python's readers do; nothing = the deadline came.
std::vector<Notification> sleep_and_drain(Inbox& inbox, size_t limit, Deadline deadline) {
  inbox.arm();
  std::vector<Notification> arrived = inbox.drain(limit);
  while (arrived.empty()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd wake{inbox.wake_fd(), POLLIN, 0};
    if (poll(&wake, 1, static_cast<int>(std::max<int64_t>(left.count(), 0))) == 0) break;  // nobody woke us
    inbox.clear();
    arrived = inbox.drain(limit);
  }
  inbox.disarm();
  return arrived;
}

void no_sleeper_is_left_asleep() {
  Side initiator(4096);
  Side target(4096);
  Connection connection(initiator, target);
  constexpr int kRounds = 3000;
  std::atomic<int> taken{0};
  std::thread consumer([&] {
    int next = 0;
    while (next < kRounds) {
      const auto arrived = sleep_and_drain(target.inbox, 7, in(20s));
      CHECK(!arrived.empty());
      for (const Notification& each : arrived) CHECK(each.message == std::to_string(next++));
      taken.store(next);
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    CHECK(connection.link->wait_notify(std::to_string(i), in(20s)));
    if (i % 3 == 0) {
      while (taken.load() <= i) std::this_thread::yield();  // let it fall asleep
    }
  }
  consumer.join();
}

// Initiators write without pause; the owner takes its memory back again and again and poisons it.
void memory_that_was_given_back_is_written_to_by_nobody() {
  Side target(1 << 16);
  std::vector<std::unique_ptr<Side>> initiators;
  std::vector<std::unique_ptr<Connection>> connections;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> done{0};
  std::atomic<uint64_t> stale{0};
  Registry::Name name = target.expose();
  std::mutex telling;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    initiators.push_back(std::make_unique<Side>(1 << 16));
    initiators.back()->expose();
    std::memset(initiators.back()->memory->data(), 1 + i, 1 << 16);
    connections.push_back(std::make_unique<Connection>(*initiators.back(), target));
    connections.back()->learn(name);
  }
  for (size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      while (!stop.load()) {
        std::shared_ptr<Transfer> transfer;
        {
          std::lock_guard lock(telling);
          transfer = connections[i]->transfer(Operation::write, *initiators[i], 1 << 16);
        }
        for (int round = 0; round < 50; ++round) {
          if (transfer->post(nullptr, in(1s)) == TransferState::done) {
            done.fetch_add(1);
          } else {
            CHECK(transfer->error().code == ErrorCode::stale_descriptor);
            stale.fetch_add(1);
            break;
          }
        }
      }
    });
  }
  for (int round = 0; round < 200; ++round) {
    std::this_thread::sleep_for(100us);
    target.registry->retire(name);
    CHECK(target.registry->wait_quiet(name, in(20s)));
    std::memset(target.memory->data(), 0xee, target.memory->size());
    std::this_thread::sleep_for(100us);
    for (uint64_t i = 0; i < target.memory->size(); ++i) CHECK(target.memory->data()[i] == std::byte{0xee});
    name = target.expose();
    std::lock_guard lock(telling);
    for (const auto& connection : connections) connection->learn(name);
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(done.load() > 0 && stale.load() > 0);
}

void a_segment_is_what_it_says() {
  const auto segment = Segment::create(3 << 20);
  CHECK(reinterpret_cast<uintptr_t>(segment->data()) % (2 << 20) == 0);
  const auto found = find_shared(whole(*segment).address + 100, 50);
  CHECK(found && found->id == segment->id() && found->offset == 100);
  CHECK(!find_shared(whole(*segment).address + 100, 3 << 20));
  CHECK_THROWS(Segment::map(dup(segment->fd()), (3 << 20) + 1), peer_refused);
  CHECK(ftruncate(segment->fd(), 10) != 0);
  const int unsealed = memfd_create("unsealed", 0);
  CHECK(ftruncate(unsealed, 4096) == 0);
  CHECK_THROWS(Segment::map(unsealed, 4096), peer_refused);
  CHECK_THROWS(Segment::create(0), invalid_argument);
  Registry registry(8);
  CHECK_THROWS(map_again(registry.table()), out_of_memory);  // peers may only look
  CHECK(map_again(registry.table(), false)->size() == registry.table().size());
}

void lists_that_do_not_fit_are_refused() {
  Prepared local;
  Prepared remote;
  CHECK_THROWS(match(local, remote, nullptr, nullptr, true), invalid_argument);
  std::byte bytes[64];
  const auto at = [&](uint64_t offset, uint64_t length) {
    return Descriptor{reinterpret_cast<uint64_t>(bytes) + offset, length, {1, 1}, bytes + offset};
  };
  local.descriptors = {at(0, 8), at(8, 8), at(24, 8)};
  remote.descriptors = {at(32, 8), at(40, 8), at(48, 8)};
  CHECK(match(local, remote, nullptr, nullptr, true).size() == 2);
  CHECK(match(local, remote, nullptr, nullptr, false).size() == 3);
  const std::vector<uint32_t> swapped{1, 0};
  const std::vector<uint32_t> straight{0, 1};
  const std::vector<uint32_t> outside{0, 3};
  const auto crossed = match(local, remote, &swapped, &straight, true);
  CHECK(crossed.size() == 2 && crossed[0].local.mapped == bytes + 8 && crossed[0].remote.mapped == bytes + 32);
  CHECK_THROWS(match(local, remote, &outside, &straight, true), invalid_argument);
  CHECK_THROWS(match(local, remote, &straight, nullptr, true), invalid_argument);
  remote.descriptors[1].length = 7;
  CHECK_THROWS(match(local, remote, nullptr, nullptr, true), invalid_argument);
}

}  // namespace

int main() {
  return penstock::testing::run({
      {"a_range_is_found_in_what_was_added_last", a_range_is_found_in_what_was_added_last},
      {"a_ring_is_a_queue", a_ring_is_a_queue},
      {"a_ring_with_nonsense_is_broken_and_read_no_further", a_ring_with_nonsense_is_broken_and_read_no_further},
      {"a_registration_is_stale_when_it_was_retired", a_registration_is_stale_when_it_was_retired},
      {"a_visitor_in_the_middle_is_waited_for", a_visitor_in_the_middle_is_waited_for},
      {"bytes_go_both_ways_and_nowhere_else", bytes_go_both_ways_and_nowhere_else},
      {"large_copies_are_right_at_every_alignment", large_copies_are_right_at_every_alignment},
      {"a_full_ring_holds_a_transfer_up_and_nothing_is_lost", a_full_ring_holds_a_transfer_up_and_nothing_is_lost},
      {"what_a_sender_left_behind_is_still_delivered", what_a_sender_left_behind_is_still_delivered},
      {"no_sleeper_is_left_asleep", no_sleeper_is_left_asleep},
      {"memory_that_was_given_back_is_written_to_by_nobody", memory_that_was_given_back_is_written_to_by_nobody},
      {"a_segment_is_what_it_says", a_segment_is_what_it_says},
      {"lists_that_do_not_fit_are_refused", lists_that_do_not_fit_are_refused},
  });
}
