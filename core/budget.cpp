#include "budget.h"

#include <algorithm>
#include <string>
#include <utility>

#include "error.h"

namespace penstock {

Charge::Charge(Charge&& other) noexcept : ledger_(std::move(other.ledger_)), bytes_(std::exchange(other.bytes_, 0)) {}

Charge& Charge::operator=(Charge&& other) noexcept {
  if (this != &other) {
    release();
    ledger_ = std::move(other.ledger_);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Charge Charge::split(uint64_t bytes) {
  if (bytes > bytes_) {
    throw Error(ErrorCode::invalid_argument,
                "a charge of " + std::to_string(bytes_) + " bytes can't be split at " + std::to_string(bytes));
  }
  bytes_ -= bytes;
  return Charge(ledger_, bytes);
}

void Charge::release() noexcept {
  if (auto ledger = std::exchange(ledger_, nullptr)) ledger->give_back(std::exchange(bytes_, 0));
}

Ledger::Ledger(uint64_t total_bytes) : total_bytes_(total_bytes) {
  if (total_bytes == 0) throw Error(ErrorCode::invalid_argument, "a budget needs at least 1 byte");
}

void Ledger::check_size(uint64_t bytes) const {
  if (bytes <= total_bytes_) return;
  throw Error(
      ErrorCode::unit_too_large,
      std::to_string(bytes) + " bytes are more than the whole budget of " + std::to_string(total_bytes_) + " bytes",
      bytes, total_bytes_);
}

void Ledger::take(uint64_t bytes) {
  charged_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, charged_bytes_);
}

bool Ledger::try_reserve(uint64_t bytes, Charge& charge) {
  check_size(bytes);
  std::lock_guard lock(mutex_);
  if (closed_) throw Error(ErrorCode::closed, "the budget was closed");
  if (!waiters_.empty() || !fits(bytes)) return false;
  take(bytes);
  charge = Charge(shared_from_this(), bytes);
  return true;
}

Charge Ledger::reserve(uint64_t bytes, std::chrono::nanoseconds timeout) {
  Charge charge;
  if (try_reserve(bytes, charge)) return charge;

  const auto deadline = std::chrono::steady_clock::now() + timeout;
  std::unique_lock lock(mutex_);
  Waiter waiter{bytes};
  waiters_.push_back(&waiter);
  grant_in_order();  // room may have come between the two looks
  const uint64_t before = closings_;
  const auto was_closed = [&] { return closed_ || closings_ != before; };
  waiter.wake.wait_until(lock, deadline, [&] { return waiter.granted || was_closed(); });
  if (waiter.granted) {
    lock.unlock();
    return Charge(shared_from_this(), bytes);
  }
  std::erase(waiters_, &waiter);
  grant_in_order();  // whoever stood behind us may fit
  if (was_closed()) throw Error(ErrorCode::closed, "the budget was closed while waiting for memory");
  throw Error(ErrorCode::deadline_exceeded, "waited for " + std::to_string(bytes) + " bytes; " +
                                                std::to_string(charged_bytes_) + " of " + std::to_string(total_bytes_) +
                                                " bytes are held");
}

void Ledger::grant_in_order() {
  while (!closed_ && !waiters_.empty() && fits(waiters_.front()->bytes)) {
    Waiter* first = waiters_.front();
    waiters_.pop_front();
    take(first->bytes);
    first->granted = true;
    first->wake.notify_one();
  }
}

void Ledger::give_back(uint64_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  charged_bytes_ -= bytes;
  grant_in_order();
}

void Ledger::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  ++closings_;
  for (Waiter* waiter : waiters_) waiter->wake.notify_one();
}

void Ledger::reopen() {
  std::lock_guard lock(mutex_);
  closed_ = false;
}

LedgerStatistics Ledger::statistics() const {
  std::lock_guard lock(mutex_);
  return {charged_bytes_, peak_bytes_, waiters_.size(), waiters_.empty() ? 0 : waiters_.front()->bytes};
}

}  // namespace penstock
