// A prepared transfer over a network: what is sent for it, what has come, and when it has ended.
//
// A write is done when the owner says that everything is in place; a read when everything has come and the owner says
// that the memory was valid throughout. Memory is quiet when UCX has let go of it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "network_link.h"
#include "network_plan.h"
#include "transfer.h"

namespace penstock {

class NetworkTransfer : public Transfer, public std::enable_shared_from_this<NetworkTransfer> {
 public:
  NetworkTransfer(std::shared_ptr<NetworkLink> link, Operation operation, std::vector<Piece> pieces, MemoryKind local,
                  MemoryKind remote);

  TransferState post(const std::string* notification, Deadline deadline) override;
  TransferState poll() override;
  TransferState wait(Deadline until) override;
  bool quiet() override;
  bool brief() const override { return false; }
  TransferState state() const { return state_.load(std::memory_order_acquire); }

  // From here on: with the lock held.
  uint64_t id_locked() const { return id_; }
  bool active_locked() const { return state() == TransferState::active; }
  bool all_sent_locked() const { return next_message_ == plan_.size(); }
  void send_next_locked();
  ucs_status_t on_data_locked(const Data& data, const Arrival& arrival);
  void on_data_locked(const DataPacked& data);
  void on_end_locked(const End& end);
  void announced_locked() { complete_locked(); }
  void fail_locked(const Error& error);

 private:
  bool begin_locked(const std::string* notification, Deadline deadline);
  bool pin_local();
  void send_direct_locked(const PlannedMessage& message);
  void send_packed_locked(const PlannedMessage& message);
  void send_request_locked(const PlannedMessage& message);
  void on_sent_locked(ucs_status_t status);
  void on_placed_locked(uint32_t piece, uint64_t length, ucs_status_t status);
  void let_go_locked();
  void placed_locked(uint32_t piece, uint64_t length);
  void check_done_locked();
  void complete_locked();
  void end_locked();

  const std::shared_ptr<NetworkLink> link_;
  const MemoryKind local_kind_;
  const MemoryKind remote_kind_;
  const std::vector<PlannedMessage> plan_;

  // Of the current posting.
  uint64_t id_ = 0;
  Deadline deadline_{};
  std::optional<std::string> notification_;
  std::vector<Pin> pins_;
  size_t next_message_ = 0;
  uint32_t sent_messages_ = 0;
  uint64_t placed_bytes_ = 0;
  std::vector<uint64_t> missing_;  // reads: bytes of each request that have not come
  int requests_open_ = 0;
  bool owner_done_ = false;
  bool announcing_ = false;
  std::atomic<uint32_t> held_{0};  // operations of UCX on local memory
};

}  // namespace penstock
