// The ledger: an account of bytes that is charged before the bytes exist.
//
// Threads: every method may be called from any thread. `reserve` blocks without the GIL; nothing here calls back.
// Order: charges are granted first come, first served, so that a small late request can't starve a large early one.
// Lifetime: a Charge keeps its Ledger alive and gives its bytes back when it is released or destroyed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

namespace penstock {

class Ledger;

// A held part of the budget. Movable, not copyable; an empty one holds nothing.
class Charge {
 public:
  Charge() = default;
  Charge(std::shared_ptr<Ledger> ledger, uint64_t bytes) : ledger_(std::move(ledger)), bytes_(bytes) {}
  Charge(Charge&& other) noexcept;
  Charge& operator=(Charge&& other) noexcept;
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;
  ~Charge() { release(); }

  uint64_t bytes() const { return bytes_; }
  // Cuts `bytes` off this charge into one of its own: both can then live and die apart.
  Charge split(uint64_t bytes);
  void release() noexcept;

 private:
  std::shared_ptr<Ledger> ledger_;
  uint64_t bytes_ = 0;
};

struct LedgerStatistics {
  uint64_t charged_bytes;
  uint64_t peak_bytes;
  uint64_t waiting_count;
  uint64_t waiting_bytes;  // what the first in line asks for
};

class Ledger : public std::enable_shared_from_this<Ledger> {
 public:
  explicit Ledger(uint64_t total_bytes);

  // Waits for its turn and for room. Throws unit_too_large at once, deadline_exceeded or closed while waiting.
  Charge reserve(uint64_t bytes, std::chrono::nanoseconds timeout);
  // Takes room only if nobody waits and it is there now; an empty optional is a Charge without ledger.
  bool try_reserve(uint64_t bytes, Charge& charge);
  // Wakes all who wait; charges already granted stay valid.
  void close();
  // Grants charges again; who was waiting when it was closed is told so all the same.
  void reopen();

  uint64_t total_bytes() const { return total_bytes_; }
  LedgerStatistics statistics() const;

 private:
  friend class Charge;
  struct Waiter {
    uint64_t bytes;
    bool granted = false;
    std::condition_variable wake{};
  };

  bool fits(uint64_t bytes) const { return bytes <= total_bytes_ - charged_bytes_; }
  void take(uint64_t bytes);
  void grant_in_order();
  void give_back(uint64_t bytes) noexcept;
  void check_size(uint64_t bytes) const;

  const uint64_t total_bytes_;
  mutable std::mutex mutex_;
  uint64_t charged_bytes_ = 0;
  uint64_t peak_bytes_ = 0;
  bool closed_ = false;
  uint64_t closings_ = 0;
  std::deque<Waiter*> waiters_;
};

}  // namespace penstock
