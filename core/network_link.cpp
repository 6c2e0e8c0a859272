#include "network_link.h"

#include <algorithm>
#include <utility>

#include "network_transfer.h"

namespace penstock {
namespace {

constexpr auto kGoodbye = std::chrono::seconds(1);

}  // namespace

NetworkLink::NetworkLink(std::shared_ptr<Network> network, uint64_t id)
    : network_(std::move(network)), id_(id), heartbeat_(network_->options().peer_timeout, Network::Clock::now()) {}

std::string NetworkLink::lost() {
  Network::Lock lock(*network_);
  return lost_;
}

std::string NetworkLink::peer_name() {
  Network::Lock lock(*network_);
  return peer_name_;
}

std::string NetworkLink::transport() {
  Network::Lock lock(*network_);
  return endpoint_ ? endpoint_->transport() : "";
}

MessageSizes NetworkLink::sizes() {
  Network::Lock lock(*network_);
  return sizes_;
}

void NetworkLink::open_locked(const WorkerAddress& address, std::string_view secret) {
  listeners_ = address.listeners;
  const auto before = tcp_sockets();
  // What goes wrong before there is an answer is no loss: there was nothing yet.
  endpoint_ = Endpoint::open(network_->out(), address.ucx, [weak = weak_from_this()](ucs_status_t status) {
    const auto self = weak.lock();
    if (!self) return;
    const ErrorCode code = self->connecting_locked() ? ErrorCode::peer_unreachable : ErrorCode::peer_lost;
    self->lose_locked(code, "the connection broke: " + self->network_->out().text(status));
  });
  const NetworkOptions& own = network_->options();
  const std::string back = network_->out().address();
  sockets_ = new_sockets(before, tcp_sockets());
  std::vector<SocketName> names;
  for (const TcpSocket& socket : sockets_) names.push_back(socket.local);
  std::string packed = pack_names(names);
  packed.resize(std::min(packed.size(), kMaxSockets));
  endpoint_->send(write_message(Hello{id_, secret, own.instance, own.name, back, packed}));
}

ucs_status_t NetworkLink::handle_locked(const Message& message, const Arrival& arrival) {
  heard_locked();
  if (const auto* data = std::get_if<Data>(&message)) return on(*data, arrival);
  if (const auto* packed = std::get_if<DataPacked>(&message)) return on(*packed);
  if (const auto* end = std::get_if<End>(&message)) return on(*end);
  if (const auto* credit = std::get_if<Credit>(&message)) return on(*credit);
  if (const auto* welcome = std::get_if<Welcome>(&message)) return on(*welcome);
  if (const auto* refused = std::get_if<Refused>(&message)) return on(*refused);
  if (std::holds_alternative<Ping>(message)) {
    if (alive_locked()) endpoint_->send(write_message(Pong{session_}));
  } else if (std::holds_alternative<Bye>(message)) {
    lose_locked(ErrorCode::peer_lost, "the peer closed");
  } else if (!std::holds_alternative<Pong>(message)) {
    lose_locked(ErrorCode::peer_lost, "the peer sent something that can't be meant");
  }
  return UCS_OK;
}

ucs_status_t NetworkLink::on(const Welcome& message) {
  if (!connecting_locked()) return UCS_ERR_REJECTED;
  session_ = message.session;
  peer_name_ = message.name;
  sizes_ = sizes_over(endpoint_->transport());
  state_ = State::open;
  alive_.store(true, std::memory_order_release);
  network_->changed_locked();
  return UCS_OK;
}

ucs_status_t NetworkLink::on(const Refused& message) {
  if (connecting_locked()) lose_locked(ErrorCode::peer_refused, "the peer refuses us: " + std::string(message.text));
  return UCS_OK;
}

std::shared_ptr<NetworkTransfer> NetworkLink::find(uint64_t transfer) const {
  const auto found = transfers_.find(transfer);
  return found == transfers_.end() ? nullptr : found->second;
}

ucs_status_t NetworkLink::on(const Data& message, const Arrival& arrival) {
  const auto transfer = find(message.transfer);
  return transfer ? transfer->on_data_locked(message, arrival) : UCS_ERR_REJECTED;
}

ucs_status_t NetworkLink::on(const DataPacked& message) {
  if (const auto transfer = find(message.transfer)) transfer->on_data_locked(message);
  return UCS_OK;
}

ucs_status_t NetworkLink::on(const End& message) {
  if (const auto transfer = find(message.transfer)) transfer->on_end_locked(message);
  return UCS_OK;
}

ucs_status_t NetworkLink::on(const Credit& message) {
  if (!credit_.taken(message.taken)) {
    lose_locked(ErrorCode::peer_lost, "the peer took notifications that were never sent");
  } else {
    send_announcements_locked();
  }
  return UCS_OK;
}

void NetworkLink::lose_locked(ErrorCode code, const std::string& reason) {
  if (state_ == State::lost) return;
  const auto self = shared_from_this();
  state_ = State::lost;
  alive_.store(false, std::memory_order_release);
  lost_code_ = code;
  lost_ = reason;
  network_->doom_locked(std::exchange(endpoint_, nullptr));
  line_.clear();
  const auto transfers = std::exchange(transfers_, {});
  for (const auto& [id, transfer] : transfers) transfer->fail_locked(Error(code, reason));
  announcements_.clear();
  network_->forget_locked(*this);
}

void NetworkLink::leave_locked() {
  if (alive_locked()) network_->part_locked(std::exchange(endpoint_, nullptr), write_message(Bye{session_}));
  lose_locked(ErrorCode::closed, "the connection was closed");
}

void NetworkLink::lose(const std::string& reason) {
  Network::Lock lock(*network_);
  lose_locked(ErrorCode::peer_lost, reason);
}

void NetworkLink::close(Deadline deadline) {
  Network::Lock lock(*network_);
  const auto endpoint = endpoint_;
  leave_locked();
  const auto last = std::min(deadline, Network::Clock::now() + kGoodbye);
  while (endpoint && endpoint->open() && Network::Clock::now() < last) lock.wait_until(last);
  if (endpoint) network_->doom_locked(endpoint);
}

void NetworkLink::tend_locked(Network::Clock::time_point now) {
  if (connecting_locked()) {
    heartbeat_.heard(now);  // whoever connects has a deadline of its own
    return;
  }
  if (!alive_locked()) return;
  switch (heartbeat_.check(now)) {
    case Heartbeat::Verdict::fine: return;
    case Heartbeat::Verdict::ask: endpoint_->send(write_message(Ping{session_})); return;
    case Heartbeat::Verdict::lost:
      network_->sever_locked(std::exchange(endpoint_, nullptr), own_sockets());
      lose_locked(ErrorCode::peer_lost,
                  "nothing was heard of the peer for " +
                      std::to_string(std::chrono::duration<double>(network_->options().peer_timeout).count()) + " s");
  }
}

std::vector<TcpSocket> NetworkLink::own_sockets() const {
  std::vector<TcpSocket> own;
  for (const TcpSocket& socket : sockets_) {
    if (contains(listeners_, socket.remote())) own.push_back(socket);
  }
  return own;
}

void NetworkLink::start_locked(const std::shared_ptr<NetworkTransfer>& transfer) {
  transfers_.emplace(transfer->id_locked(), transfer);
  if (transfer->all_sent_locked()) return;
  line_.push_back(transfer);
  pump_locked();
}

void NetworkLink::drop_locked(const NetworkTransfer& transfer) {
  transfers_.erase(transfer.id_locked());
  std::erase_if(line_, [&](const auto& waiting) { return waiting.get() == &transfer; });
  std::erase_if(announcements_, [&](const auto& one) { return one->after.get() == &transfer; });
}

void NetworkLink::pump_locked() {
  if (pumping_) return;
  pumping_ = true;
  while (alive_locked() && in_flight_ < static_cast<int>(kWindow) && !line_.empty()) {
    const auto transfer = line_.front();
    if (transfer->active_locked() && !transfer->all_sent_locked()) transfer->send_next_locked();
    const bool over = !transfer->active_locked() || transfer->all_sent_locked();
    if (over && !line_.empty() && line_.front() == transfer) line_.pop_front();
  }
  pumping_ = false;
}

void NetworkLink::announce_locked(std::string message, std::shared_ptr<NetworkTransfer> after) {
  announcements_.push_back(std::make_shared<Announcement>(Announcement{std::move(message), std::move(after)}));
  send_announcements_locked();
}

void NetworkLink::send_announcements_locked() {
  bool sent = false;
  while (alive_locked() && !announcements_.empty() && credit_.has_room()) {
    const auto next = announcements_.front();
    announcements_.pop_front();
    credit_.sent(next->message.size());
    endpoint_->send(write_message(Notify{session_, next_sequence_++, next->message}));
    next->sent = true;
    sent = true;
    if (next->after) next->after->announced_locked();
  }
  if (sent) network_->changed_locked();
}

bool NetworkLink::wait_connected(Deadline until) {
  Network::Lock lock(*network_);
  while (connecting_locked() && Network::Clock::now() < until) lock.wait_until(until);
  if (connecting_locked()) return false;
  if (!alive_locked()) throw why_locked();
  return true;
}

void NetworkLink::give_up() {
  Network::Lock lock(*network_);
  if (connecting_locked()) lose_locked(ErrorCode::peer_unreachable, "the peer didn't answer in time");
  if (!alive_locked()) throw why_locked();
}

std::shared_ptr<Announcement> NetworkLink::announce(std::string message) {
  if (message.size() > kMaxNotification) {
    throw Error(ErrorCode::invalid_argument, "a notification has at most " + std::to_string(kMaxNotification) +
                                                 " bytes, not " + std::to_string(message.size()));
  }
  Network::Lock lock(*network_);
  if (!alive_locked()) throw why_locked();
  const auto mine = std::make_shared<Announcement>(Announcement{std::move(message), nullptr});
  announcements_.push_back(mine);
  send_announcements_locked();
  return mine;
}

bool NetworkLink::wait_announced(const Announcement& announcement, Deadline until) {
  Network::Lock lock(*network_);
  while (!announcement.sent && alive_locked() && Network::Clock::now() < until) lock.wait_until(until);
  if (!announcement.sent && !alive_locked()) throw why_locked();
  return announcement.sent;
}

void NetworkLink::withdraw(const std::shared_ptr<Announcement>& announcement) {
  Network::Lock lock(*network_);
  if (announcement->sent) return;
  std::erase(announcements_, announcement);
  throw Error(ErrorCode::deadline_exceeded,
              peer_name_ + " doesn't take its notifications, and no more may be under way; did it stop reading?");
}

std::shared_ptr<Transfer> NetworkLink::transfer(Operation operation, const Prepared& local, const Prepared& remote,
                                                std::vector<Piece> pieces) {
  return std::make_shared<NetworkTransfer>(shared_from_this(), operation, std::move(pieces), local.kind, remote.kind);
}

}  // namespace penstock
