#include "inbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "error.h"

namespace penstock {

bool Mailbox::put(std::string message) {
  std::lock_guard lock(mutex_);
  // One message always fits, however small the limit.
  if (closed_ || (bytes_ != 0 && bytes_ + message.size() > limit_bytes_)) return false;
  bytes_ += message.size();
  messages_.push_back(std::move(message));
  return true;
}

void Mailbox::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

bool Mailbox::take(std::vector<Notification>& into, size_t limit) {
  std::lock_guard lock(mutex_);
  for (; limit > 0 && !messages_.empty(); --limit) {
    bytes_ -= messages_.front().size();
    into.push_back({sender_, std::move(messages_.front())});
    messages_.pop_front();
    taken_.fetch_add(1, std::memory_order_release);
  }
  return closed_ && messages_.empty();
}

bool Mailbox::empty() const {
  std::lock_guard lock(mutex_);
  return messages_.empty() && !closed_;
}

Inbox::Inbox(std::shared_ptr<Registry> registry)
    : registry_(std::move(registry)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_fd_ < 0) throw Error(ErrorCode::out_of_memory, std::string("eventfd: ") + std::strerror(errno));
}

Inbox::~Inbox() { ::close(wake_fd_); }

void Inbox::attach(std::shared_ptr<Source> source) {
  std::lock_guard lock(mutex_);
  sources_.push_back(std::move(source));
}

void Inbox::retire(const std::shared_ptr<Source>& source, const std::string& sender) {
  {
    std::lock_guard lock(mutex_);
    const auto found = std::find(sources_.begin(), sources_.end(), source);
    if (found == sources_.end()) return;
    std::vector<Notification> left;
    source->take(left, SIZE_MAX);
    if (left.empty()) {
      sources_.erase(found);
      return;
    }
    auto rest = std::make_shared<Mailbox>(sender, UINT64_MAX);
    for (Notification& notification : left) rest->put(std::move(notification.message));
    rest->close();
    *found = std::move(rest);
  }
  wake_sleeper();  // it may have ended before it could
}

std::vector<Notification> Inbox::drain(size_t limit) {
  std::vector<Notification> taken;
  std::lock_guard lock(mutex_);
  // Beginning after the one where the last call ended, so that none of them starves another.
  for (size_t left = sources_.size(); left > 0 && taken.size() < limit; --left) {
    if (next_ >= sources_.size()) next_ = 0;
    if (sources_[next_]->take(taken, limit - taken.size())) {
      sources_.erase(sources_.begin() + static_cast<std::ptrdiff_t>(next_));
    } else {
      ++next_;
    }
  }
  return taken;
}

bool Inbox::empty() const {
  std::lock_guard lock(mutex_);
  return std::all_of(sources_.begin(), sources_.end(), [](const auto& source) { return source->empty(); });
}

void Inbox::arm() noexcept { registry_->shared().sleeping.fetch_add(1, std::memory_order_seq_cst); }

void Inbox::disarm() noexcept { registry_->shared().sleeping.fetch_sub(1, std::memory_order_seq_cst); }

void Inbox::wake_sleeper() noexcept {
  if (registry_->shared().sleeping.load(std::memory_order_seq_cst) == 0) return;
  eventfd_write(wake_fd_, 1);
}

void Inbox::close() noexcept {
  closed_.store(true);
  eventfd_write(wake_fd_, 1);  // stays readable: whoever comes later wakes at once
}

void Inbox::clear() noexcept {
  eventfd_t count = 0;
  if (!closed_.load()) eventfd_read(wake_fd_, &count);
}

}  // namespace penstock
