// The owner's end of a connection: checks what an initiator asks for, and moves the bytes.
//
// Threads: the network's lock is held for everything here, except in the mailbox.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "network.h"
#include "network_messages.h"
#include "network_plan.h"

namespace penstock {

// Asks for a grant of credit when enough has been taken out of it.
class NetworkMailbox : public Mailbox {
 public:
  NetworkMailbox(std::string sender, std::shared_ptr<Waker> waker)
      : Mailbox(std::move(sender), CreditWindow::kMostBytes), waker_(std::move(waker)) {}
  bool take(std::vector<Notification>& into, size_t limit) override;
  bool grant_due() const { return due_.load(); }
  void granted() { due_.store(false); }

 private:
  const std::shared_ptr<Waker> waker_;
  std::atomic<bool> due_{false};
  uint64_t messages_ = 0;  // taken since the last grant; with the inbox's lock held
  uint64_t bytes_ = 0;
};

class NetworkSession : public std::enable_shared_from_this<NetworkSession> {
 public:
  static constexpr uint32_t kWindow = 16;            // messages of data under way
  static constexpr size_t kMostTransfers = 1 << 16;  // begun and not ended
  static constexpr size_t kMostReads = 1024;         // requests that wait

  NetworkSession(Network& network, uint64_t id, const Hello& hello);

  uint64_t id() const { return id_; }
  void open(std::string_view address);
  ucs_status_t handle(const Message& message, const Arrival& arrival);
  void lose();
  void leave();  // says goodbye
  bool needs_tending(Network::Clock::time_point now) const { return due() <= now || mailbox_->grant_due(); }
  void tend(Network::Clock::time_point now);
  Network::Clock::time_point due() const { return heartbeat_.due(); }

 private:
  struct Incoming {
    uint32_t expected = 0;
    uint32_t done = 0;
    bool failed = false;                    // its end has been told
    std::vector<Registry::Name> read_from;  // looked at again at the end
  };
  struct Reading {
    Read request;  // its rows are in `rows`
    std::vector<Row> rows;
    MessageCursor cursor;
    uint32_t outstanding = 0;
    bool cut = false;  // all of it has been sent
  };

  ucs_status_t on(const Write& message, const Arrival& arrival);
  ucs_status_t on(const WritePacked& message);
  ucs_status_t on(const Read& message);
  ucs_status_t on(const Abandon& message);
  ucs_status_t on(const Notify& message);
  Incoming* arrive(uint64_t transfer, uint32_t messages);
  void refuse(uint64_t transfer, const Error& error);
  void send_error(uint64_t transfer, const Error& error);
  void count(uint64_t transfer);
  void serve();
  void send_data(const std::shared_ptr<Reading>& reading, const PlannedMessage& message);
  void send_direct(const std::shared_ptr<Reading>& reading, const PlannedMessage& message);
  void send_packed(const std::shared_ptr<Reading>& reading, const PlannedMessage& message);
  void on_data_sent(const std::shared_ptr<Reading>& reading, ucs_status_t status);
  void remember(Incoming& incoming, Registry::Name name);
  ucs_status_t violated();

  Network& network_;
  const uint64_t id_;
  const uint64_t link_;  // what the initiator calls the connection
  bool alive_ = true;
  std::shared_ptr<Endpoint> endpoint_;
  MessageSizes sizes_;
  const std::vector<SocketName> sockets_;  // of the initiator
  Heartbeat heartbeat_;
  std::shared_ptr<NetworkMailbox> mailbox_;
  Sequencer sequencer_;
  std::unordered_map<uint64_t, Incoming> incoming_;
  std::deque<std::shared_ptr<Reading>> reading_;
  uint32_t in_flight_ = 0;
  bool serving_ = false;
};

}  // namespace penstock
