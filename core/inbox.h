// Notifications that arrived: those in the rings of peers on this host, and those that the network plane delivers.
//
// From one sender they come out in the order in which they were sent, each once. Nobody polls while nothing comes: who
// sleeps says so in shared memory (`arm`), and whoever sends then writes to the eventfd.
// Threads: any; one at a time drains.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "registry.h"

namespace penstock {

struct Notification {
  std::shared_ptr<const std::string> sender;
  std::string message;
};

// Where notifications come from. `take` is called with the inbox's lock held.
class Source {
 public:
  virtual ~Source() = default;
  // Appends what is there, up to `limit` notifications; true = it will never have any again.
  virtual bool take(std::vector<Notification>& into, size_t limit) = 0;
  virtual bool empty() const = 0;  // take() has nothing to bring, and no end to tell
};

// What the network plane received from one peer, bounded: when it is full, the plane stops granting credit.
class Mailbox : public Source {
 public:
  Mailbox(std::string sender, uint64_t limit_bytes)
      : sender_(std::make_shared<const std::string>(std::move(sender))), limit_bytes_(limit_bytes) {}

  bool put(std::string message);  // false = full, or closed
  void close();                   // nothing follows; what is there will still be taken
  uint64_t taken_count() const { return taken_.load(std::memory_order_acquire); }
  bool take(std::vector<Notification>& into, size_t limit) override;
  bool empty() const override;

 private:
  const std::shared_ptr<const std::string> sender_;
  const uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::deque<std::string> messages_;
  uint64_t bytes_ = 0;
  bool closed_ = false;
  std::atomic<uint64_t> taken_{0};  // notifications that somebody has taken: what credit is granted for
};

class Inbox {
 public:
  explicit Inbox(std::shared_ptr<Registry> registry);
  ~Inbox();
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  void attach(std::shared_ptr<Source> source);
  // The source is gone: what it still has moves here, and the source is let go of. Nobody may add to it any more.
  void retire(const std::shared_ptr<Source>& source, const std::string& sender);
  std::vector<Notification> drain(size_t limit);
  bool empty() const;  // drain() has nothing to do
  // Says that somebody sleeps on `wake_fd()`, until disarm(). What came before is there already, so drain() before
  // sleeping. After it became readable: clear(), and then drain().
  void arm() noexcept;
  void disarm() noexcept;
  void clear() noexcept;
  // For the network plane, after it put something into a mailbox.
  void wake_sleeper() noexcept;
  void close() noexcept;
  int wake_fd() const { return wake_fd_; }

 private:
  std::shared_ptr<Registry> registry_;
  int wake_fd_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Source>> sources_;
  size_t next_ = 0;  // of them, which is drained first
  std::atomic<bool> closed_{false};
};

}  // namespace penstock
