#include "network_transfer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace penstock {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);

std::vector<PlannedMessage> plan(Operation operation, const std::vector<Piece>& pieces, const MessageSizes& sizes,
                                 bool only_direct) {
  if (pieces.size() > UINT32_MAX) throw Error(ErrorCode::invalid_argument, "a transfer has at most 2^32 pieces");
  return operation == Operation::write ? plan_write(pieces, sizes, only_direct) : plan_read(pieces, sizes);
}

Row row_of(const Descriptor& descriptor, uint64_t offset, uint64_t length) {
  return {descriptor.name.slot, 0, descriptor.name.generation, descriptor.address + offset, length};
}

}  // namespace

NetworkTransfer::NetworkTransfer(std::shared_ptr<NetworkLink> link, Operation operation, std::vector<Piece> pieces,
                                 MemoryKind local, MemoryKind remote)
    : Transfer(operation, std::move(pieces)),
      link_(std::move(link)),
      local_kind_(local),
      remote_kind_(remote),
      plan_(plan(operation, pieces_, link_->sizes(), local == MemoryKind::vram || remote == MemoryKind::vram)) {}

TransferState NetworkTransfer::post(const std::string* notification, Deadline deadline) {
  if (notification != nullptr && notification->size() > kMaxNotification) {
    throw Error(ErrorCode::invalid_argument, "a notification has at most " + std::to_string(kMaxNotification) +
                                                 " bytes, not " + std::to_string(notification->size()));
  }
  Network::Lock lock(link_->network());
  if (active_locked() || held_.load() != 0) {
    throw Error(ErrorCode::transfer_active, active_locked() ? "the transfer is still running"
                                                            : "the transfer failed, but its memory is still in use");
  }
  if (begin_locked(notification, deadline)) {
    link_->start_locked(shared_from_this());
    check_done_locked();
  }
  return state();
}

bool NetworkTransfer::begin_locked(const std::string* notification, Deadline deadline) {
  if (!link_->alive_locked()) {
    fail(link_->why_locked());
    return false;
  }
  if (!pin_local()) {
    fail(
        Error(ErrorCode::stale_descriptor, "local memory was deregistered or renewed since the transfer was prepared"));
    return false;
  }
  id_ = link_->next_transfer_locked();
  deadline_ = deadline;
  notification_ = notification != nullptr ? std::optional(*notification) : std::nullopt;
  next_message_ = 0;
  sent_messages_ = 0;
  placed_bytes_ = 0;
  missing_.assign(operation_ == Operation::read ? plan_.size() : 0, 0);
  requests_open_ = 0;
  owner_done_ = plan_.empty();
  announcing_ = false;
  state_.store(TransferState::active, std::memory_order_release);
  link_->network().watch_locked(deadline_, this);
  return true;
}

bool NetworkTransfer::pin_local() {
  pins_.clear();
  Registry::Name last{};
  for (const Piece& piece : pieces_) {
    const Registry::Name name = piece.local.name;
    if (name.slot == last.slot && name.generation == last.generation) continue;
    if (!link_->network().registry().try_pin(name)) {
      pins_.clear();
      return false;
    }
    pins_.emplace_back(link_->network().registry().shared_from_this(), name.slot);
    last = name;
  }
  return true;
}

TransferState NetworkTransfer::poll() {
  if (state() == TransferState::active && Network::Clock::now() >= deadline_) {
    Network::Lock lock(link_->network());
    if (Network::Clock::now() >= deadline_) {
      fail_locked(Error(ErrorCode::deadline_exceeded, "the transfer's deadline passed"));
    }
  }
  return state();
}

TransferState NetworkTransfer::wait(Deadline until) {
  link_->network().refuse_child();
  const auto spin_until = std::min(until, Network::Clock::now() + kSpin);
  while (state() == TransferState::active && Network::Clock::now() < spin_until) link_->network().help();
  if (state() == TransferState::active) link_->network().wait_ended(*this, until);
  return poll();
}

bool NetworkTransfer::quiet() { return state() != TransferState::active && held_.load() == 0; }

void NetworkTransfer::send_next_locked() {
  const PlannedMessage& message = plan_[next_message_++];
  ++sent_messages_;
  link_->window_locked(1);
  if (operation_ == Operation::read) {
    send_request_locked(message);
  } else if (message.direct) {
    send_direct_locked(message);
  } else {
    send_packed_locked(message);
  }
}

void NetworkTransfer::send_direct_locked(const PlannedMessage& message) {
  const Piece& piece = pieces_[message.first_piece];
  const Write write{link_->session_locked(), id_, static_cast<uint32_t>(plan_.size()),
                    row_of(piece.remote, message.offset, message.length)};
  held_.fetch_add(1);
  auto self = shared_from_this();
  link_->endpoint_locked().send_direct(write_header(write), piece.local.address + message.offset, message.length,
                                       local_kind_, message.eager, [self, id = id_](ucs_status_t status) {
                                         self->let_go_locked();
                                         if (self->id_ == id) self->on_sent_locked(status);
                                         self->link_->window_locked(-1);
                                         self->link_->pump_locked();
                                       });
}

void NetworkTransfer::send_packed_locked(const PlannedMessage& message) {
  std::string payload;
  payload.reserve(message.pieces * sizeof(Row) + message.length);
  const auto end = message.first_piece + message.pieces;
  for (uint32_t i = message.first_piece; i < end; ++i) {
    const Row row = row_of(pieces_[i].remote, 0, pieces_[i].remote.length);
    payload.append(reinterpret_cast<const char*>(&row), sizeof(row));
  }
  for (uint32_t i = message.first_piece; i < end; ++i) {
    payload.append(reinterpret_cast<const char*>(pieces_[i].local.address), pieces_[i].local.length);
  }
  auto self = shared_from_this();
  link_->endpoint_locked().send(
      {packed_header(link_->session_locked(), id_, static_cast<uint32_t>(plan_.size()), message.pieces),
       std::move(payload)},
      [self, id = id_](ucs_status_t status) {
        if (self->id_ == id) self->on_sent_locked(status);
        self->link_->window_locked(-1);
        self->link_->pump_locked();
      });
}

void NetworkTransfer::send_request_locked(const PlannedMessage& message) {
  std::string payload;
  payload.reserve(message.pieces * sizeof(Row));
  for (uint32_t i = message.first_piece; i < message.first_piece + message.pieces; ++i) {
    const Row row = row_of(pieces_[i].remote, 0, pieces_[i].remote.length);
    payload.append(reinterpret_cast<const char*>(&row), sizeof(row));
  }
  missing_[next_message_ - 1] = message.length;
  ++requests_open_;
  const bool only_direct = local_kind_ == MemoryKind::vram || remote_kind_ == MemoryKind::vram;
  auto self = shared_from_this();
  link_->endpoint_locked().send({read_header(link_->session_locked(), id_, static_cast<uint32_t>(plan_.size()),
                                             message.first_piece, only_direct, message.pieces),
                                 std::move(payload)},
                                [self, id = id_](ucs_status_t status) {
                                  if (self->id_ == id) self->on_sent_locked(status);
                                });
}

// A message that was refused is followed by the owner's reason.
void NetworkTransfer::on_sent_locked(ucs_status_t status) {
  if (status == UCS_OK) {
    link_->heard_locked();
  } else if (status != UCS_ERR_REJECTED && active_locked()) {
    --sent_messages_;
    const bool line = status == UCS_ERR_UNSUPPORTED || status == UCS_ERR_INVALID_PARAM || status == UCS_ERR_NO_RESOURCE;
    fail_locked(Error(line ? ErrorCode::transport_unavailable : ErrorCode::peer_lost,
                      "UCX: " + link_->network().out().text(status)));
  }
  check_done_locked();
}

ucs_status_t NetworkTransfer::on_data_locked(const Data& data, const Arrival& arrival) {
  if (operation_ != Operation::read || data.piece >= pieces_.size()) return UCS_ERR_REJECTED;
  const Descriptor& local = pieces_[data.piece].local;
  if (data.offset > local.length || data.length > local.length - data.offset) return UCS_ERR_REJECTED;
  const uint64_t address = local.address + data.offset;
  if (arrival.descriptor == nullptr) {  // UCX chose to send it along
    if (local_kind_ != MemoryKind::dram) return UCS_ERR_REJECTED;
    std::memcpy(reinterpret_cast<void*>(address), arrival.payload.bytes, data.length);
    placed_locked(data.piece, data.length);
    return UCS_OK;
  }
  held_.fetch_add(1);
  auto self = shared_from_this();
  link_->network().out().receive(arrival.descriptor, address, data.length, local_kind_,
                                 [self, id = id_, piece = data.piece, length = data.length](ucs_status_t status) {
                                   self->let_go_locked();
                                   if (self->id_ == id) self->on_placed_locked(piece, length, status);
                                 });
  return UCS_OK;
}

void NetworkTransfer::on_placed_locked(uint32_t piece, uint64_t length, ucs_status_t status) {
  if (!active_locked()) return;
  if (status != UCS_OK) {
    fail_locked(Error(ErrorCode::peer_lost, "UCX: " + link_->network().out().text(status)));
    return;
  }
  link_->heard_locked();
  placed_locked(piece, length);
}

void NetworkTransfer::on_data_locked(const DataPacked& data) {
  if (operation_ != Operation::read || local_kind_ != MemoryKind::dram || data.first_piece >= pieces_.size() ||
      data.pieces > pieces_.size() - data.first_piece) {
    return;
  }
  size_t taken = 0;
  for (uint32_t i = data.first_piece; i < data.first_piece + data.pieces; ++i) {
    const Descriptor& local = pieces_[i].local;
    if (local.length > data.size - taken) return;
    std::memcpy(reinterpret_cast<void*>(local.address), data.bytes + taken, local.length);
    taken += local.length;
    placed_locked(i, local.length);
    if (!active_locked()) return;
  }
}

// Counts what has come, and what is missing of the request that it belongs to.
void NetworkTransfer::placed_locked(uint32_t piece, uint64_t length) {
  placed_bytes_ += length;
  const auto after = std::upper_bound(plan_.begin(), plan_.end(), piece,
                                      [](uint32_t p, const PlannedMessage& m) { return p < m.first_piece; });
  if (after != plan_.begin()) {
    uint64_t& missing = missing_[static_cast<size_t>(after - plan_.begin()) - 1];
    const uint64_t before = std::exchange(missing, missing - std::min(missing, length));
    if (before > 0 && missing == 0) {
      --requests_open_;
      link_->window_locked(-1);
      link_->pump_locked();
    }
  }
  check_done_locked();
}

void NetworkTransfer::on_end_locked(const End& end) {
  if (end.status != 0) {
    const auto last = static_cast<uint32_t>(ErrorCode::transport_unavailable);
    const ErrorCode code = end.status - 1 <= last ? static_cast<ErrorCode>(end.status - 1) : ErrorCode::peer_lost;
    fail_locked(Error(code, "the peer refused it: " + std::string(end.text)));
    return;
  }
  owner_done_ = true;
  check_done_locked();
}

void NetworkTransfer::check_done_locked() {
  if (!active_locked() || announcing_ || !owner_done_ || held_.load() != 0) return;
  if (operation_ == Operation::read && placed_bytes_ < total_bytes_) return;
  if (!notification_) {
    complete_locked();
    return;
  }
  announcing_ = true;
  link_->announce_locked(*notification_, shared_from_this());
}

void NetworkTransfer::complete_locked() {
  end_locked();
  pins_.clear();
  state_.store(TransferState::done, std::memory_order_release);
  link_->network().ended_locked();
}

void NetworkTransfer::fail_locked(const Error& error) {
  if (!active_locked()) return;
  const auto self = shared_from_this();
  end_locked();
  if (link_->alive_locked() && sent_messages_ > 0) {
    link_->endpoint_locked().send(write_message(Abandon{link_->session_locked(), id_, sent_messages_}));
  }
  fail(error);
  if (held_.load() == 0) pins_.clear();
  link_->network().ended_locked();
  link_->pump_locked();
}

// No longer among the link's active transfers.
void NetworkTransfer::end_locked() {
  link_->network().unwatch_locked(deadline_, this);
  link_->window_locked(-std::exchange(requests_open_, 0));
  link_->drop_locked(*this);
}

void NetworkTransfer::let_go_locked() {
  if (held_.fetch_sub(1) == 1 && !active_locked()) pins_.clear();
}

}  // namespace penstock
