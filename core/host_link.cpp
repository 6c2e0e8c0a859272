#include "host_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "copy.h"

namespace penstock {
namespace {

constexpr size_t kVectors = 1024;  // IOV_MAX

template <typename Shared>
Shared* checked(const Segment& segment, uint64_t bytes, const char* what) {
  auto* shared = reinterpret_cast<Shared*>(segment.data());
  if (segment.size() >= sizeof(Shared) && shared->magic == 0) {
    throw Error(ErrorCode::peer_unreachable, "the peer closed while we connected");
  }
  if (segment.size() < sizeof(Shared) || shared->magic != Shared::kMagic || shared->version != 1 ||
      segment.size() < bytes) {
    throw Error(ErrorCode::peer_refused, std::string("the peer's ") + what + " is of another version or damaged");
  }
  return shared;
}

std::vector<Registry::Name> distinct(const std::vector<Piece>& pieces, Descriptor Piece::* side) {
  std::vector<Registry::Name> names;
  for (const Piece& piece : pieces) {
    const Registry::Name name = (piece.*side).name;
    if (!names.empty() && names.back().slot == name.slot && names.back().generation == name.generation) continue;
    names.push_back(name);
  }
  const auto less = [](const Registry::Name& a, const Registry::Name& b) {
    return std::pair(a.slot, a.generation) < std::pair(b.slot, b.generation);
  };
  const auto same = [](const Registry::Name& a, const Registry::Name& b) {
    return a.slot == b.slot && a.generation == b.generation;
  };
  std::sort(names.begin(), names.end(), less);
  names.erase(std::unique(names.begin(), names.end(), same), names.end());
  return names;
}

}  // namespace

// One busy counter of a link, odd for this object's lifetime.
class Busy {
 public:
  explicit Busy(HostLink& link) : link_(link) {
    thread_local uint32_t preferred = 0;
    for (uint32_t i = preferred;; i = (i + 1) % kBusyCounters) {
      if (!link.busy_taken_[i].test_and_set(std::memory_order_seq_cst)) {
        preferred = index_ = i;
        break;
      }
      if ((i + 1) % kBusyCounters == preferred) std::this_thread::yield();
    }
    counter().fetch_add(1, std::memory_order_seq_cst);
  }
  ~Busy() {
    counter().fetch_add(1, std::memory_order_release);
    link_.busy_taken_[index_].clear(std::memory_order_release);
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  std::atomic<uint64_t>& counter() { return link_.link_->busy[index_].count; }

  HostLink& link_;
  uint32_t index_ = 0;
};

class HostTransfer : public Transfer {
 public:
  HostTransfer(std::shared_ptr<HostLink> link, Operation operation, std::vector<Piece> pieces,
               std::vector<std::shared_ptr<Segment>> segments)
      : Transfer(operation, std::move(pieces)),
        link_(std::move(link)),
        segments_(std::move(segments)),
        local_names_(distinct(pieces_, &Piece::local)),
        remote_names_(distinct(pieces_, &Piece::remote)),
        all_mapped_(std::all_of(pieces_.begin(), pieces_.end(), [](const Piece& p) { return p.remote.mapped; })) {}

  TransferState post(const std::string* notification, Deadline deadline) override {
    if (state_.exchange(TransferState::active, std::memory_order_acquire) == TransferState::active) {
      throw Error(ErrorCode::transfer_active, "the transfer is still running; wait for it before you post it again");
    }
    deadline_ = deadline;
    try {
      move();
      if (notification != nullptr && !link_->try_notify(*notification)) {
        const std::lock_guard lock(settling_);  // others may poll already
        notification_ = *notification;
        return TransferState::active;
      }
    } catch (const Error& error) {
      return fail(error);
    }
    return finish();
  }

  TransferState poll() override { return wait(Deadline{}); }

  // Active = everything has moved, and there was no room for the notification.
  TransferState wait(Deadline until) override {
    if (state() != TransferState::active) return state();
    std::lock_guard lock(settling_);
    if (state() != TransferState::active || !notification_) return state();
    try {
      if (link_->wait_notify(*notification_, std::min(until, deadline_))) {
        notification_.reset();
        return finish();
      }
      if (std::chrono::steady_clock::now() >= deadline_) link_->throw_full();
    } catch (const Error& error) {
      notification_.reset();
      return fail(error);
    }
    return TransferState::active;
  }

  bool quiet() override { return true; }
  bool brief() const override { return total_bytes_ <= kBriefBytes; }
  bool settles_in_wait() const override { return true; }

 private:
  static constexpr uint64_t kBriefBytes = 32 << 10;
  // After so many bytes the clock is looked at.
  static constexpr uint64_t kStrideBytes = 64 << 20;

  TransferState state() const { return state_.load(std::memory_order_acquire); }

  TransferState finish() {
    state_.store(TransferState::done, std::memory_order_release);
    return TransferState::done;
  }

  void check_deadline() const {
    if (std::chrono::steady_clock::now() < deadline_) return;
    throw Error(ErrorCode::deadline_exceeded,
                "a part of the bytes was moved when the deadline came; give it more time");
  }

  void move() {
    size_t pinned = 0;
    Registry& registry = *link_->local_;
    try {
      for (; pinned < local_names_.size(); ++pinned) {
        if (!registry.try_pin(local_names_[pinned])) {
          throw Error(ErrorCode::stale_descriptor,
                      "memory on our side was deregistered or renewed since this transfer was prepared");
        }
      }
      // In a forked child it isn't, and the counters are the parent's.
      if (!link_->alive()) link_->throw_lost();
      const Busy busy(*link_);
      if (!link_->alive()) link_->throw_lost();
      check_generations("before");
      if (all_mapped_) {
        copy(pieces_.data(), pieces_.size());
      } else {
        move_mixed();
      }
      if (operation_ == Operation::read) {
        std::atomic_thread_fence(std::memory_order_acquire);
        check_generations("during");
      }
    } catch (...) {
      unpin(pinned);
      throw;
    }
    unpin(pinned);
  }

  void unpin(size_t count) {
    for (size_t i = 0; i < count; ++i) link_->local_->unpin(local_names_[i].slot);
  }

  void check_generations(const char* when) const {
    for (const Registry::Name name : remote_names_) {
      if (name.slot >= link_->capacity_ || link_->generation(name.slot) != name.generation) {
        throw Error(ErrorCode::stale_descriptor, link_->peer_name_ + " deregistered or renewed this memory " + when +
                                                     " the transfer; nothing that it brought may be used");
      }
    }
  }

  void copy(const Piece* pieces, size_t count) const {
    const bool write = operation_ == Operation::write;
    const bool streaming = total_bytes_ >= kStreamingBytes;
    uint64_t since_look = 0;
    for (const Piece* piece = pieces; piece != pieces + count; ++piece) {
      std::byte* to = write ? piece->remote.mapped : piece->local.mapped;
      const std::byte* from = write ? piece->local.mapped : piece->remote.mapped;
      const uint64_t length = piece->local.length;
      // Within one process both may lie in the same memory.
      const bool apart = to + length <= from || from + length <= to;
      const uint64_t stride = apart ? kStrideBytes : length;
      for (uint64_t done = 0; done < length; done += stride) {
        const uint64_t bytes = std::min(stride, length - done);
        copy_part(to + done, from + done, bytes, streaming && apart);
        since_look += bytes;
        if (since_look >= kStrideBytes) {
          since_look = 0;
          check_deadline();
        }
      }
    }
    if (streaming) end_streaming();
  }

  static void copy_part(std::byte* to, const std::byte* from, uint64_t bytes, bool streaming) {
    if (streaming) {
      copy_streaming(to, from, bytes);
    } else {
      std::memmove(to, from, bytes);
    }
  }

  // Runs of pieces that are reached in the same way.
  void move_mixed() const {
    for (size_t begin = 0; begin < pieces_.size();) {
      const bool mapped = pieces_[begin].remote.mapped != nullptr;
      size_t end = begin + 1;
      while (end < pieces_.size() && (pieces_[end].remote.mapped != nullptr) == mapped) ++end;
      if (mapped) {
        copy(&pieces_[begin], end - begin);
      } else {
        reach(begin, end);
      }
      begin = end;
    }
  }

  // By the kernel, as many ranges a call as it takes.
  void reach(size_t begin, size_t end) const {
    iovec local[kVectors];
    iovec remote[kVectors];
    uint64_t offset = 0;  // into pieces_[begin]
    while (begin < end) {
      size_t count = 0;
      uint64_t total = 0;
      for (size_t i = begin; i < end && count < kVectors && total < kStrideBytes; ++i, ++count) {
        const uint64_t skip = i == begin ? offset : 0;
        const uint64_t length = std::min(pieces_[i].local.length - skip, kStrideBytes - total);
        local[count] = {pieces_[i].local.mapped + skip, length};
        remote[count] = {reinterpret_cast<void*>(pieces_[i].remote.address + skip), length};
        total += length;
      }
      check_process();
      const ssize_t moved = operation_ == Operation::write
                                ? process_vm_writev(link_->pid_, local, count, remote, count, 0)
                                : process_vm_readv(link_->pid_, local, count, remote, count, 0);
      // It stops at the first page that isn't there; the next call then says so.
      if (moved <= 0) throw_unreachable(moved == 0 ? EFAULT : errno);
      offset += static_cast<uint64_t>(moved);
      for (; begin < end && offset >= pieces_[begin].local.length; ++begin) offset -= pieces_[begin].local.length;
      if (begin < end && total >= kStrideBytes) check_deadline();
    }
  }

  // The number of a process that ended may be another's now.
  void check_process() const {
    pollfd ended{link_->pidfd_, POLLIN, 0};
    if (::poll(&ended, 1, 0) != 0) throw_unreachable(ESRCH);
  }

  [[noreturn]] void throw_unreachable(int error) const {
    const std::string& peer = link_->peer_name_;
    switch (error) {
      case ESRCH: throw Error(ErrorCode::peer_lost, "the process of " + peer + " has ended");
      case EFAULT:
        throw Error(ErrorCode::not_registered,
                    "a part of that memory isn't mapped (any more) in the process of " + peer);
      default:
        throw Error(ErrorCode::transport_unavailable, "the kernel doesn't let us reach into the memory of " + peer +
                                                          ": " + std::strerror(error) +
                                                          "; let it register memory from allocate(), which is shared");
    }
  }

  const std::shared_ptr<HostLink> link_;
  const std::vector<std::shared_ptr<Segment>> segments_;
  const std::vector<Registry::Name> local_names_;
  const std::vector<Registry::Name> remote_names_;
  const bool all_mapped_;
  Deadline deadline_{};
  std::mutex settling_;
  std::optional<std::string> notification_;  // that waits for room
};

HostLink::HostLink(std::shared_ptr<Registry> local, std::shared_ptr<Segment> table, std::shared_ptr<Segment> link,
                   int wake_fd, pid_t pid, std::string peer_name)
    : local_(std::move(local)),
      table_segment_(std::move(table)),
      link_segment_(std::move(link)),
      table_(checked<RegistryTable>(*table_segment_, sizeof(RegistryTable), "table of registrations")),
      capacity_(table_->capacity),
      link_(checked<LinkSegment>(*link_segment_, LinkSegment::bytes(), "link segment")),
      wake_fd_(wake_fd),
      pid_(pid),
      pidfd_(pid != 0 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1),
      peer_name_(std::move(peer_name)),
      ring_(*link_) {
  if (table_segment_->size() < RegistryTable::bytes(capacity_)) {
    throw Error(ErrorCode::peer_refused, "the peer's table of registrations is shorter than it says");
  }
}

HostLink::~HostLink() {
  close(wake_fd_);
  if (pidfd_ >= 0) close(pidfd_);
}

std::string HostLink::lost() const {
  std::lock_guard lock(lost_mutex_);
  return lost_;
}

void HostLink::lose(const std::string& reason) {
  std::lock_guard lock(lost_mutex_);
  if (!alive_.load()) return;
  lost_ = reason;
  alive_.store(false, std::memory_order_seq_cst);
}

bool HostLink::wait_idle(Deadline deadline) const {
  // By what we know ourselves: the counters are the target's memory, and read as zeros once it has closed.
  for (const std::atomic_flag& taken : busy_taken_) {
    while (taken.test(std::memory_order_seq_cst)) {
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  return true;
}

void HostLink::throw_lost() const { throw Error(ErrorCode::peer_lost, peer_name_ + " is lost: " + lost()); }

bool HostLink::try_notify(std::string_view message) {
  if (message.size() > LinkSegment::kMaxMessage) {
    throw Error(ErrorCode::invalid_argument, "a notification has at most " + std::to_string(LinkSegment::kMaxMessage) +
                                                 " bytes, and this one " + std::to_string(message.size()) +
                                                 "; move the bytes by a transfer");
  }
  if (!alive()) throw_lost();
  {
    std::lock_guard lock(ring_mutex_);
    if (!ring_.has_room(message.size())) return false;
    ring_.write(message);
  }
  // The ring's end was stored before this load (both seq_cst): either we see that the target sleeps, or it sees this.
  if (table_->sleeping.load(std::memory_order_seq_cst) != 0) eventfd_write(wake_fd_, 1);
  return true;
}

bool HostLink::wait_notify(std::string_view message, Deadline until) {
  auto pause = std::chrono::microseconds(5);
  while (!try_notify(message)) {
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
  return true;
}

void HostLink::throw_full() const {
  throw Error(ErrorCode::deadline_exceeded,
              peer_name_ + " doesn't take its notifications, and there is no room for another; did it stop reading?");
}

std::shared_ptr<Transfer> HostLink::transfer(Operation operation, const Prepared& local, const Prepared& remote,
                                             std::vector<Piece> pieces) {
  if (local.kind != MemoryKind::dram || remote.kind != MemoryKind::dram) {
    throw Error(ErrorCode::transport_unavailable, "memory of a device is moved by the network plane only");
  }
  if (pid_ == 0 &&
      std::any_of(pieces.begin(), pieces.end(), [](const Piece& p) { return p.remote.mapped == nullptr; })) {
    throw Error(
        ErrorCode::transport_unavailable,
        "the kernel doesn't let us reach into the memory of " + peer_name_ +
            "; let it register memory from allocate(), which is shared, or open the network plane at both ends");
  }
  std::vector<std::shared_ptr<Segment>> segments = remote.segments;
  segments.insert(segments.end(), local.segments.begin(), local.segments.end());
  return std::make_shared<HostTransfer>(shared_from_this(), operation, std::move(pieces), std::move(segments));
}

IncomingLink::IncomingLink(std::string sender)
    : sender_(std::make_shared<const std::string>(std::move(sender))),
      segment_(Segment::create(LinkSegment::bytes(), Segment::Use::link)),
      reader_(*new (segment_->data()) LinkSegment{}) {
  link().magic = LinkSegment::kMagic;
  link().version = 1;
}

bool IncomingLink::take(std::vector<Notification>& into, size_t limit) {
  const bool last = gone.load();  // before the ring is read: what it published before it went is taken now
  std::string message;
  for (; limit > 0; --limit) {
    switch (reader_.read(message)) {
      case RingReader::Result::message: into.push_back({sender_, std::move(message)}); break;
      case RingReader::Result::nothing: return last;
      case RingReader::Result::broken: return true;
    }
  }
  return false;
}

bool can_reach_process(pid_t pid, uint64_t address) {
  char byte = 0;
  iovec local{&byte, 1};
  iovec remote{reinterpret_cast<void*>(address), 1};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0) == 1;
}

}  // namespace penstock
