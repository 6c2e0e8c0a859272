#include "budget.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "error.h"

using namespace penstock;
using namespace std::chrono_literals;

namespace {

void wait_for_waiters(const Ledger& ledger, uint64_t count) {
  while (ledger.statistics().waiting_count < count) std::this_thread::yield();
}

void charges_come_and_go() {
  auto ledger = std::make_shared<Ledger>(100);
  {
    Charge charge = ledger->reserve(60, 0s);
    CHECK(ledger->statistics().charged_bytes == 60);
    Charge part = charge.split(20);
    CHECK(charge.bytes() == 40 && part.bytes() == 20);
    part.release();
    part.release();
    CHECK(ledger->statistics().charged_bytes == 40);
    CHECK_THROWS(charge.split(41), invalid_argument);
  }
  CHECK(ledger->statistics().charged_bytes == 0);
  CHECK(ledger->statistics().peak_bytes == 60);
}

void a_unit_larger_than_the_budget_fails_at_once() {
  auto ledger = std::make_shared<Ledger>(100);
  CHECK_THROWS(ledger->reserve(101, 1h), unit_too_large);
  CHECK_THROWS(Ledger(0), invalid_argument);
}

void a_wait_ends_at_its_deadline_and_leaves_no_trace() {
  auto ledger = std::make_shared<Ledger>(100);
  Charge all = ledger->reserve(100, 0s);
  CHECK_THROWS(ledger->reserve(1, 1ms), deadline_exceeded);
  CHECK(ledger->statistics().waiting_count == 0);
}

void grants_are_first_come_first_served() {
  auto ledger = std::make_shared<Ledger>(100);
  Charge held = ledger->reserve(60, 0s);
  std::mutex mutex;
  std::vector<int> order;
  auto ask = [&](int name, uint64_t bytes) {
    Charge charge = ledger->reserve(bytes, 1min);
    std::lock_guard lock(mutex);
    order.push_back(name);
  };
  std::thread large(ask, 1, 90);
  wait_for_waiters(*ledger, 1);
  std::thread small(ask, 2, 10);  // would fit now, but came later
  wait_for_waiters(*ledger, 2);
  Charge none;
  CHECK(!ledger->try_reserve(1, none));
  CHECK(ledger->statistics().waiting_bytes == 90);
  held.release();
  large.join();
  small.join();
  CHECK(order.size() == 2);
  CHECK(ledger->statistics().peak_bytes == 100);
}

void who_gives_up_lets_the_next_one_pass() {
  auto ledger = std::make_shared<Ledger>(100);
  Charge held = ledger->reserve(60, 0s);
  std::thread large([&] { CHECK_THROWS(ledger->reserve(90, 50ms), deadline_exceeded); });
  wait_for_waiters(*ledger, 1);
  Charge small = ledger->reserve(10, 1min);
  CHECK(small.bytes() == 10);
  large.join();
}

void close_wakes_everyone() {
  auto ledger = std::make_shared<Ledger>(100);
  Charge held = ledger->reserve(100, 0s);
  std::atomic<int> closed = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      CHECK_THROWS(ledger->reserve(1, 1h), closed);
      ++closed;
    });
  }
  wait_for_waiters(*ledger, 4);
  ledger->close();
  for (auto& thread : threads) thread.join();
  CHECK(closed == 4);
  CHECK_THROWS(ledger->reserve(1, 0s), closed);
  held.release();
  CHECK(ledger->statistics().charged_bytes == 0);
}

void a_reopened_ledger_remembers_what_is_held() {
  auto ledger = std::make_shared<Ledger>(10);
  Charge held = ledger->reserve(7, 0s);
  std::atomic<bool> told = false;
  std::thread waiting([&] {
    CHECK_THROWS(ledger->reserve(4, 1h), closed);
    told = true;
  });
  wait_for_waiters(*ledger, 1);
  ledger->close();
  ledger->reopen();
  waiting.join();
  CHECK(told);
  CHECK_THROWS(ledger->reserve(4, 0s), deadline_exceeded);
  CHECK(ledger->reserve(3, 0s).bytes() == 3);
}

void the_cap_holds_under_many_threads() {
  auto ledger = std::make_shared<Ledger>(1000);
  std::atomic<uint64_t> held = 0;
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    threads.emplace_back([&, seed] {
      uint64_t state = seed;
      for (int i = 0; i < 500; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const uint64_t bytes = state >> 33 & 1023 ? (state >> 33) % 1000 + 1 : 1000;
        Charge charge = ledger->reserve(bytes, 1min);
        CHECK((held += bytes) <= 1000);
        held -= bytes;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(ledger->statistics().charged_bytes == 0);
  CHECK(ledger->statistics().peak_bytes <= 1000);
}

}  // namespace

int main() {
  return testing::run({
      {"charges come and go", charges_come_and_go},
      {"a unit larger than the budget fails at once", a_unit_larger_than_the_budget_fails_at_once},
      {"a wait ends at its deadline and leaves no trace", a_wait_ends_at_its_deadline_and_leaves_no_trace},
      {"grants are first come, first served", grants_are_first_come_first_served},
      {"who gives up lets the next one pass", who_gives_up_lets_the_next_one_pass},
      {"close wakes everyone", close_wakes_everyone},
      {"a reopened ledger remembers what is held", a_reopened_ledger_remembers_what_is_held},
      {"the cap holds under many threads", the_cap_holds_under_many_threads},
  });
}
