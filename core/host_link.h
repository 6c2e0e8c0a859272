// The initiator's end of a connection to an agent in another process of this host.
//
// Regions that the target shares are written and read by load and store, all other memory of its process by
// process_vm_writev and readv. Whether the target lives is told by whoever watches its socket: `lose`.
// Threads: any.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "inbox.h"
#include "link_segment.h"
#include "registry.h"
#include "transfer.h"

namespace penstock {

class HostLink : public std::enable_shared_from_this<HostLink> {
 public:
  // `local`: our own registry. `pid` 0: memory that isn't mapped can't be reached. Takes wake_fd over.
  HostLink(std::shared_ptr<Registry> local, std::shared_ptr<Segment> table, std::shared_ptr<Segment> link, int wake_fd,
           pid_t pid, std::string peer_name);
  ~HostLink();
  HostLink(const HostLink&) = delete;
  HostLink& operator=(const HostLink&) = delete;

  bool alive() const { return alive_.load(std::memory_order_seq_cst); }
  std::string lost() const;
  void lose(const std::string& reason);
  // After lose(): waits for transfers of other threads of ours to end. False = the deadline came first.
  bool wait_idle(Deadline deadline) const;

  // False = there is no room for it now. Throws Error: peer_lost, invalid_argument (too long).
  bool try_notify(std::string_view message);
  // The same, waiting for room until then.
  bool wait_notify(std::string_view message, Deadline until);
  [[noreturn]] void throw_full() const;

  std::shared_ptr<Transfer> transfer(Operation operation, const Prepared& local, const Prepared& remote,
                                     std::vector<Piece> pieces);

 private:
  friend class HostTransfer;
  friend class Busy;

  [[noreturn]] void throw_lost() const;
  uint64_t generation(uint32_t slot) const { return table_->generations()[slot].load(std::memory_order_seq_cst); }

  const std::shared_ptr<Registry> local_;
  const std::shared_ptr<Segment> table_segment_;
  const std::shared_ptr<Segment> link_segment_;
  RegistryTable* const table_;
  const uint32_t capacity_;  // of the table: what it said once, whatever it says later
  LinkSegment* const link_;
  const int wake_fd_;
  const pid_t pid_;
  const int pidfd_;  // tells whether pid_ is still who it was
  const std::string peer_name_;
  std::array<std::atomic_flag, kBusyCounters> busy_taken_;
  std::mutex ring_mutex_;
  RingWriter ring_;
  std::atomic<bool> alive_{true};
  mutable std::mutex lost_mutex_;
  std::string lost_;
};

// The target's end: it makes the link segment, and takes what comes.
class IncomingLink : public Visitor, public Source {
 public:
  explicit IncomingLink(std::string sender);

  const std::string& sender() const { return *sender_; }
  const Segment& segment() const { return *segment_; }
  const BusyCounter* busy() const override { return link().busy; }
  bool take(std::vector<Notification>& into, size_t limit) override;
  bool empty() const override { return reader_.empty() && !gone.load(); }

 private:
  LinkSegment& link() const { return *reinterpret_cast<LinkSegment*>(segment_->data()); }

  const std::shared_ptr<const std::string> sender_;
  const std::shared_ptr<Segment> segment_;
  RingReader reader_;
};

// How memory of `pid` that isn't mapped is reached; false = it is forbidden. Tries with one byte at `address`.
bool can_reach_process(pid_t pid, uint64_t address);

}  // namespace penstock
