// The initiator's end of a connection to an agent on another host.
//
// Transfers wait in line for the window of messages that may be under way; notifications for the target's credit.
// Threads: any, except where a name says `locked`.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "network.h"
#include "network_messages.h"
#include "network_plan.h"
#include "transfer.h"

namespace penstock {

class NetworkTransfer;

// A notification that waits for room at the target.
struct Announcement {
  std::string message;
  std::shared_ptr<NetworkTransfer> after;  // whose end it tells; null = of its own
  bool sent = false;
};

class NetworkLink : public std::enable_shared_from_this<NetworkLink> {
 public:
  static constexpr uint32_t kWindow = 16;  // messages under way

  NetworkLink(std::shared_ptr<Network> network, uint64_t id);

  bool alive() const {
    network_->refuse_child();
    return alive_.load(std::memory_order_acquire);
  }
  std::string lost();  // why it isn't alive; "" = it is
  std::string peer_name();
  std::string transport();
  MessageSizes sizes();
  // Sleeps until the peer has answered. False = it hasn't. Throws Error: peer_unreachable, peer_refused, closed.
  bool wait_connected(Deadline until);
  // Nobody waits for the answer any more. Throws peer_unreachable.
  void give_up();
  // Puts a notification in line; it is sent once the target has room for it, and all before it are sent. Throws Error:
  // invalid_argument, peer_lost.
  std::shared_ptr<Announcement> announce(std::string message);
  // Sleeps until it is on its way. False = it isn't. Throws Error: peer_lost.
  bool wait_announced(const Announcement& announcement, Deadline until);
  // Takes it out of the line, and throws deadline_exceeded; or it was on its way in the last moment.
  void withdraw(const std::shared_ptr<Announcement>& announcement);
  std::shared_ptr<Transfer> transfer(Operation operation, const Prepared& local, const Prepared& remote,
                                     std::vector<Piece> pieces);
  // Takes the peer for gone.
  void lose(const std::string& reason);
  void close(Deadline deadline);

  // From here on: with the lock held.
  uint64_t id() const { return id_; }
  Network& network() { return *network_; }
  void open_locked(const WorkerAddress& address, std::string_view secret);
  bool connecting_locked() const { return state_ == State::connecting; }
  bool alive_locked() const { return state_ == State::open; }
  Error why_locked() const { return Error(lost_code_, lost_); }
  ucs_status_t handle_locked(const Message& message, const Arrival& arrival);
  void lose_locked(ErrorCode code, const std::string& reason);
  void leave_locked();  // says goodbye
  void tend_locked(Network::Clock::time_point now);
  Network::Clock::time_point due_locked() const { return heartbeat_.due(); }

  uint64_t next_transfer_locked() { return ++last_transfer_; }
  uint64_t session_locked() const { return session_; }
  Endpoint& endpoint_locked() { return *endpoint_; }
  void heard_locked() { heartbeat_.heard(Network::Clock::now()); }
  void start_locked(const std::shared_ptr<NetworkTransfer>& transfer);
  void drop_locked(const NetworkTransfer& transfer);
  void pump_locked();
  void window_locked(int change) { in_flight_ += change; }
  void announce_locked(std::string message, std::shared_ptr<NetworkTransfer> after);

 private:
  enum class State { connecting, open, lost };

  void send_announcements_locked();
  ucs_status_t on(const Welcome& message);
  ucs_status_t on(const Refused& message);
  ucs_status_t on(const Data& message, const Arrival& arrival);
  ucs_status_t on(const DataPacked& message);
  ucs_status_t on(const End& message);
  ucs_status_t on(const Credit& message);
  std::shared_ptr<NetworkTransfer> find(uint64_t transfer) const;
  std::vector<TcpSocket> own_sockets() const;

  const std::shared_ptr<Network> network_;
  const uint64_t id_;
  State state_ = State::connecting;
  std::atomic<bool> alive_{false};
  ErrorCode lost_code_ = ErrorCode::peer_lost;
  std::string lost_;
  std::string peer_name_;
  std::shared_ptr<Endpoint> endpoint_;
  MessageSizes sizes_;
  std::vector<TcpSocket> sockets_;     // that may be this connection's
  std::vector<SocketName> listeners_;  // that it leads to
  uint64_t session_ = 0;
  Heartbeat heartbeat_;

  uint64_t last_transfer_ = 0;
  std::unordered_map<uint64_t, std::shared_ptr<NetworkTransfer>> transfers_;  // active ones
  std::deque<std::shared_ptr<NetworkTransfer>> line_;                         // with messages to send
  int in_flight_ = 0;
  bool pumping_ = false;

  std::deque<std::shared_ptr<Announcement>> announcements_;
  CreditWindow credit_;
  uint64_t next_sequence_ = 0;
};

}  // namespace penstock
