// The network plane of an agent: UCX, the thread that moves it on, and who is connected.
//
// Two workers: `out` for connections that we made (links), `in` for those that were made to us (sessions), so that
// closing one never breaks the other way. One lock for all of it; UCX is only used while it is held. A thread of its
// own answers peers whatever the program does; it sleeps on UCX's event descriptors when nothing happens.
//
// Threads: any, except where a name says `locked`: those are for links, sessions and transfers, which hold the lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "inbox.h"
#include "network_plan.h"
#include "network_worker.h"
#include "registry.h"
#include "tcp_sockets.h"

namespace penstock {

class NetworkLink;
class NetworkSession;
class NetworkTransfer;

struct NetworkOptions {
  std::string libucp;                           // its path
  std::map<std::string, std::string> settings;  // UCX's, without the prefix UCX_
  std::string name;
  std::string instance;
  std::string secret;  // what peers must know
  std::chrono::nanoseconds peer_timeout;
};

// Wakes the network's thread; outlives the network, for whoever holds a mailbox.
class Waker {
 public:
  Waker();
  ~Waker();
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;
  void wake() noexcept;
  void clear() noexcept;
  int fd() const { return fd_; }

 private:
  int fd_;
};

class Network {
 public:
  using Clock = std::chrono::steady_clock;

  Network(std::shared_ptr<Registry> registry, std::shared_ptr<Inbox> inbox, NetworkOptions options);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const std::string& address() const { return address_; }
  const std::string& version() const { return api_->version; }
  const std::string& transports() const { return transports_; }
  // Begins a connection: the link is used once it has heard of the peer. Throws Error: peer_unreachable, closed.
  static std::shared_ptr<NetworkLink> connect(const std::shared_ptr<Network>& self, std::string_view address,
                                              std::string_view secret);
  // Says goodbye, and returns when nothing is under way any more, or at the deadline. Safe twice.
  void close(Deadline deadline);
  // Readable after a transfer has ended, until clear_completions().
  int completion_fd() const { return completions_.fd(); }
  void clear_completions() noexcept;

  // The lock, taken with a claim: the thread lets go of it between two turns.
  class Lock {
   public:
    explicit Lock(Network& network);
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    // Sleeps until something changed; false = the deadline came.
    bool wait_until(Deadline deadline);

   private:
    Network& network_;
    std::unique_lock<std::mutex> lock_;
  };

  // Moves UCX on once if nobody else does at the moment. For threads that wait for a transfer.
  void help();
  // Throws Error(closed) in a forked child, which has neither our thread nor a mutex that anybody will unlock.
  void refuse_child() const;
  // Sleeps until `transfer` has ended.
  void wait_ended(const NetworkTransfer& transfer, Deadline until);

  // From here on: with the lock held.
  UcxWorker& out() { return *out_; }
  UcxWorker& in() { return *in_; }
  Registry& registry() { return *registry_; }
  Inbox& inbox() { return *inbox_; }
  const NetworkOptions& options() const { return options_; }
  const std::shared_ptr<Waker>& waker() const { return waker_; }
  bool closing() const { return closing_; }
  uint64_t random_id();
  void forget_locked(const NetworkLink& link);
  void forget_locked(const NetworkSession& session);
  // Closes it after the current turn (UCX may be in the middle of one of its callbacks).
  void doom_locked(std::shared_ptr<Endpoint> endpoint);
  // The same for a peer that is silent: its sockets are shut down first, so that UCX lets go of what is under way.
  void sever_locked(std::shared_ptr<Endpoint> endpoint, const std::vector<TcpSocket>& sockets);
  // Where peers connect to, and what of ours that a peer who connected from there uses.
  const std::vector<SocketName>& listeners() const { return listeners_; }
  std::vector<TcpSocket> accepted_from(const std::vector<SocketName>& remote) const;
  // Says one last thing and closes.
  void part_locked(const std::shared_ptr<Endpoint>& endpoint, Outgoing last);
  void watch_locked(Deadline deadline, NetworkTransfer* transfer) { deadlines_.emplace(deadline, transfer); }
  void unwatch_locked(Deadline deadline, NetworkTransfer* transfer) { deadlines_.erase({deadline, transfer}); }
  void changed_locked() { changed_.notify_all(); }
  void ended_locked();

 private:
  void run();
  bool turn_locked();
  void tend_locked(Clock::time_point now);
  bool fall_asleep_locked(Clock::time_point now);
  void sleep();
  Clock::time_point next_due_locked() const;
  void kick_locked();
  bool closed_locked() const;
  ucs_status_t on_request(const Arrival& arrival);
  ucs_status_t on_answer(const Arrival& arrival);
  void on_hello(const Hello& hello);
  std::string refusal(const Hello& hello) const;

  const std::shared_ptr<Registry> registry_;
  const std::shared_ptr<Inbox> inbox_;
  const NetworkOptions options_;
  const std::shared_ptr<const UcxApi> api_;
  const std::shared_ptr<Waker> waker_;
  Waker completions_;
  std::atomic<bool> completion_told_{false};
  const int pid_;

  std::mutex mutex_;
  std::atomic<int> claims_{0};
  std::condition_variable changed_;
  std::unordered_map<uint64_t, std::shared_ptr<NetworkLink>> links_;
  std::unordered_map<uint64_t, std::shared_ptr<NetworkSession>> sessions_;
  std::set<std::pair<Deadline, NetworkTransfer*>> deadlines_;
  struct Doomed {
    std::shared_ptr<Endpoint> endpoint;
    Clock::time_point at;  // unless UCX finds it broken before, or nothing is under way
    bool severed;          // its sockets are shut: UCX is about to find out
  };
  std::vector<Doomed> doomed_;
  int partings_ = 0;
  bool closing_ = false;
  bool stopping_ = false;
  bool sleeping_ = false;
  Clock::time_point wake_at_{};
  Clock::time_point awake_until_{};
  Clock::duration spin_{};

  std::mutex ended_mutex_;
  std::condition_variable ended_;

  std::string address_;
  std::vector<SocketName> listeners_;
  std::string transports_;
  int epoll_fd_ = -1;
  std::shared_ptr<UcxContext> context_;
  std::unique_ptr<UcxWorker> out_;
  std::unique_ptr<UcxWorker> in_;
  std::thread thread_;
};

// Where peers find a worker: UCX's address, and the sockets that it listens on.
struct WorkerAddress {
  std::string ucx;
  std::vector<SocketName> listeners;
};
// As it stands in metadata, with a checksum, and back. Nothing = it is damaged.
std::string seal_address(const WorkerAddress& address);
std::optional<WorkerAddress> unseal_address(std::string_view sealed);

}  // namespace penstock
