#include "network_session.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace penstock {
namespace {

std::byte* memory(uint64_t address) { return reinterpret_cast<std::byte*>(address); }

void need_host_memory(MemoryKind kind) {
  if (kind != MemoryKind::dram) {
    throw Error(ErrorCode::transport_unavailable, "device memory can't be reached by the transport that was chosen");
  }
}

}  // namespace

bool NetworkMailbox::take(std::vector<Notification>& into, size_t limit) {
  const size_t before = into.size();
  const bool ended = Mailbox::take(into, limit);
  messages_ += into.size() - before;
  for (size_t i = before; i < into.size(); ++i) bytes_ += into[i].message.size();
  if (messages_ >= CreditWindow::kMessages / 4 || bytes_ >= CreditWindow::kBytes / 4) {
    messages_ = 0;
    bytes_ = 0;
    due_.store(true);
    waker_->wake();
  }
  return ended;
}

NetworkSession::NetworkSession(Network& network, uint64_t id, const Hello& hello)
    : network_(network),
      id_(id),
      link_(hello.link),
      sockets_(unpack_names(hello.sockets)),
      heartbeat_(network.options().peer_timeout, Network::Clock::now()),
      mailbox_(std::make_shared<NetworkMailbox>(std::string(hello.name), network.waker())) {}

void NetworkSession::open(std::string_view address) {
  endpoint_ = Endpoint::open(network_.in(), address, [weak = weak_from_this()](ucs_status_t) {
    if (const auto self = weak.lock()) self->lose();
  });
  sizes_ = sizes_over(endpoint_->transport());
  network_.inbox().attach(mailbox_);
  endpoint_->send(write_message(Welcome{link_, id_, network_.options().name}));
}

ucs_status_t NetworkSession::handle(const Message& message, const Arrival& arrival) {
  if (!alive_) return UCS_ERR_REJECTED;
  heartbeat_.heard(Network::Clock::now());
  if (const auto* write = std::get_if<Write>(&message)) return on(*write, arrival);
  if (const auto* packed = std::get_if<WritePacked>(&message)) return on(*packed);
  if (const auto* read = std::get_if<Read>(&message)) return on(*read);
  if (const auto* abandon = std::get_if<Abandon>(&message)) return on(*abandon);
  if (const auto* notify = std::get_if<Notify>(&message)) return on(*notify);
  if (std::holds_alternative<Ping>(message)) {
    endpoint_->send(write_message(Pong{link_}));
  } else if (std::holds_alternative<Bye>(message)) {
    lose();
  } else if (!std::holds_alternative<Pong>(message)) {
    return violated();
  }
  return UCS_OK;
}

// A peer that doesn't keep to the rules is no longer listened to.
ucs_status_t NetworkSession::violated() {
  lose();
  return UCS_ERR_REJECTED;
}

void NetworkSession::lose() {
  if (!std::exchange(alive_, false)) return;
  const auto self = shared_from_this();
  mailbox_->close();
  network_.inbox().wake_sleeper();
  incoming_.clear();
  reading_.clear();
  network_.doom_locked(std::exchange(endpoint_, nullptr));
  network_.forget_locked(*this);
}

void NetworkSession::leave() {
  if (!alive_) return;
  network_.part_locked(std::exchange(endpoint_, nullptr), write_message(Bye{link_}));
  lose();
}

void NetworkSession::tend(Network::Clock::time_point now) {
  if (!alive_) return;
  if (mailbox_->grant_due()) {
    mailbox_->granted();
    endpoint_->send(write_message(Credit{link_, mailbox_->taken_count()}));
    if (!alive_) return;  // that it can't be sent may be how we learn that the peer is gone
  }
  switch (heartbeat_.check(now)) {
    case Heartbeat::Verdict::fine: return;
    case Heartbeat::Verdict::ask: endpoint_->send(write_message(Ping{link_})); return;
    case Heartbeat::Verdict::lost:
      network_.sever_locked(std::exchange(endpoint_, nullptr), network_.accepted_from(sockets_));
      lose();
      return;
  }
}

NetworkSession::Incoming* NetworkSession::arrive(uint64_t transfer, uint32_t messages) {
  if (incoming_.size() >= kMostTransfers && !incoming_.contains(transfer)) return nullptr;
  Incoming& incoming = incoming_[transfer];
  if (incoming.expected == 0) incoming.expected = messages;
  return incoming.expected == messages || incoming.failed ? &incoming : nullptr;
}

// Tells the end of a transfer that can't be; what is still under way of it will be counted and refused.
void NetworkSession::refuse(uint64_t transfer, const Error& error) {
  const auto found = incoming_.find(transfer);
  if (!alive_ || found == incoming_.end() || std::exchange(found->second.failed, true)) return;
  send_error(transfer, error);
}

void NetworkSession::send_error(uint64_t transfer, const Error& error) {
  endpoint_->send(write_message(End{link_, transfer, 1 + static_cast<uint32_t>(error.code), error.what()}));
}

// One message more of it has been dealt with. Sending its end may be what shows that the peer is gone, and then nothing
// of this session is left: so that comes last.
void NetworkSession::count(uint64_t transfer) {
  const auto found = incoming_.find(transfer);
  if (!alive_ || found == incoming_.end() || ++found->second.done < found->second.expected) return;
  const Incoming ended = std::move(found->second);
  incoming_.erase(found);
  if (ended.failed) return;
  const bool unchanged = std::all_of(ended.read_from.begin(), ended.read_from.end(),
                                     [&](const Registry::Name& name) { return network_.registry().live(name); });
  if (unchanged) {
    endpoint_->send(write_message(End{link_, transfer, 0, {}}));
  } else {
    send_error(transfer,
               Error(ErrorCode::stale_descriptor, "the memory was deregistered or renewed while it was read"));
  }
}

ucs_status_t NetworkSession::on(const Abandon& message) {
  const auto found = incoming_.find(message.transfer);
  if (found == incoming_.end()) return UCS_OK;  // its end and this have crossed
  found->second.failed = true;
  found->second.expected = message.sent;
  if (found->second.done >= message.sent) incoming_.erase(found);
  return UCS_OK;
}

ucs_status_t NetworkSession::on(const Write& message, const Arrival& arrival) {
  const uint64_t transfer = message.transfer;
  const Incoming* incoming = arrive(transfer, message.messages);
  if (incoming == nullptr) return violated();
  if (incoming->failed) {
    count(transfer);
    return UCS_ERR_REJECTED;
  }
  try {
    const Row& row = message.row;
    MemoryKind kind = MemoryKind::dram;
    auto pin =
        std::make_shared<Pin>(network_.registry().pin({row.slot, row.generation}, {row.address, row.length}, &kind));
    if (arrival.descriptor == nullptr) {  // UCX chose to send it along
      need_host_memory(kind);
      std::memcpy(memory(row.address), arrival.payload.bytes, row.length);
      count(transfer);
      return UCS_OK;
    }
    network_.in().receive(
        arrival.descriptor, row.address, row.length, kind,
        [self = shared_from_this(), transfer, pin = std::move(pin)](ucs_status_t status) {
          if (status == UCS_OK) {
            self->heartbeat_.heard(Network::Clock::now());
          } else {
            self->refuse(transfer, Error(ErrorCode::transport_unavailable, "UCX: " + self->network_.in().text(status)));
          }
          self->count(transfer);
        });
    return UCS_OK;
  } catch (const Error& error) {
    refuse(transfer, error);
    count(transfer);
    return UCS_ERR_REJECTED;
  }
}

ucs_status_t NetworkSession::on(const WritePacked& message) {
  const Incoming* incoming = arrive(message.transfer, message.messages);
  if (incoming == nullptr) return violated();
  if (!incoming->failed) {
    try {
      const std::byte* from = message.bytes;
      for (size_t i = 0; i < message.rows.size(); ++i) {
        const Row row = message.rows[i];
        MemoryKind kind = MemoryKind::dram;
        const Pin pin = network_.registry().pin({row.slot, row.generation}, {row.address, row.length}, &kind);
        need_host_memory(kind);
        std::memcpy(memory(row.address), from, row.length);
        from += row.length;
      }
    } catch (const Error& error) {
      refuse(message.transfer, error);
    }
  }
  count(message.transfer);
  return UCS_OK;
}

ucs_status_t NetworkSession::on(const Read& message) {
  Incoming* incoming = arrive(message.transfer, message.messages);
  if (incoming == nullptr || reading_.size() >= kMostReads) return violated();
  if (incoming->failed) {
    count(message.transfer);
    return UCS_OK;
  }
  std::vector<Row> rows(message.rows.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = message.rows[i];
  bool only_direct = message.only_direct;
  try {
    MemoryKind kind = MemoryKind::dram;
    (void)network_.registry().pin({rows[0].slot, rows[0].generation}, {rows[0].address, rows[0].length}, &kind);
    only_direct = only_direct || kind == MemoryKind::vram;
  } catch (const Error& error) {
    refuse(message.transfer, error);
    count(message.transfer);
    return UCS_OK;
  }
  reading_.push_back(
      std::make_shared<Reading>(Reading{message, std::move(rows), MessageCursor(sizes_, only_direct), 0, false}));
  serve();
  return UCS_OK;
}

void NetworkSession::serve() {
  if (serving_) return;
  serving_ = true;
  while (alive_ && in_flight_ < kWindow && !reading_.empty()) {
    const auto reading = reading_.front();
    const uint64_t transfer = reading->request.transfer;
    const auto incoming = incoming_.find(transfer);
    const bool wanted = incoming != incoming_.end() && !incoming->second.failed;
    const auto message =
        wanted ? reading->cursor.next(reading->rows.size(), [&](size_t i) { return reading->rows[i].length; })
               : std::nullopt;
    if (message) {
      send_data(reading, *message);
    } else {
      reading->cut = true;
      reading_.pop_front();
      if (reading->outstanding == 0) count(transfer);
    }
  }
  serving_ = false;
}

void NetworkSession::send_data(const std::shared_ptr<Reading>& reading, const PlannedMessage& message) {
  ++in_flight_;
  ++reading->outstanding;
  try {
    if (message.direct) {
      send_direct(reading, message);
    } else {
      send_packed(reading, message);
    }
  } catch (const Error& error) {
    refuse(reading->request.transfer, error);
    on_data_sent(reading, UCS_ERR_REJECTED);
  }
}

void NetworkSession::send_direct(const std::shared_ptr<Reading>& reading, const PlannedMessage& message) {
  const Row& row = reading->rows[message.first_piece];
  const Registry::Name name{row.slot, row.generation};
  if (message.offset > UINT64_MAX - row.address) throw Error(ErrorCode::not_registered, "no such address");
  const uint64_t address = row.address + message.offset;
  MemoryKind kind = MemoryKind::dram;
  auto pin = std::make_shared<Pin>(network_.registry().pin(name, {address, message.length}, &kind));
  remember(incoming_[reading->request.transfer], name);
  const Data data{link_, reading->request.transfer, reading->request.first_piece + message.first_piece, message.offset,
                  message.length};
  endpoint_->send_direct(write_header(data), address, message.length, kind, message.eager,
                         [self = shared_from_this(), reading, pin = std::move(pin)](ucs_status_t status) {
                           self->on_data_sent(reading, status);
                         });
}

void NetworkSession::send_packed(const std::shared_ptr<Reading>& reading, const PlannedMessage& message) {
  std::string payload;
  payload.reserve(message.length);
  Incoming& incoming = incoming_[reading->request.transfer];
  for (uint32_t i = message.first_piece; i < message.first_piece + message.pieces; ++i) {
    const Row& row = reading->rows[i];
    MemoryKind kind = MemoryKind::dram;
    const Pin pin = network_.registry().pin({row.slot, row.generation}, {row.address, row.length}, &kind);
    need_host_memory(kind);
    payload.append(reinterpret_cast<const char*>(memory(row.address)), row.length);
    remember(incoming, {row.slot, row.generation});
  }
  endpoint_->send({data_packed_header(link_, reading->request.transfer,
                                      reading->request.first_piece + message.first_piece, message.pieces),
                   std::move(payload)},
                  [self = shared_from_this(), reading](ucs_status_t status) { self->on_data_sent(reading, status); });
}

void NetworkSession::on_data_sent(const std::shared_ptr<Reading>& reading, ucs_status_t status) {
  --in_flight_;
  if (status == UCS_OK) {
    heartbeat_.heard(Network::Clock::now());
  } else if (status != UCS_ERR_REJECTED) {
    refuse(reading->request.transfer, Error(ErrorCode::transport_unavailable, "UCX: " + network_.in().text(status)));
  }
  if (--reading->outstanding == 0 && reading->cut) count(reading->request.transfer);
  if (alive_) serve();
}

void NetworkSession::remember(Incoming& incoming, Registry::Name name) {
  const auto same = [&](const Registry::Name& n) { return n.slot == name.slot && n.generation == name.generation; };
  if (std::none_of(incoming.read_from.rbegin(), incoming.read_from.rend(), same)) incoming.read_from.push_back(name);
}

ucs_status_t NetworkSession::on(const Notify& message) {
  std::vector<std::string> ready;
  if (!sequencer_.put(message.sequence, std::string(message.message), ready)) return violated();
  for (std::string& one : ready) {
    if (!mailbox_->put(std::move(one))) return violated();
  }
  network_.inbox().wake_sleeper();
  return UCS_OK;
}

}  // namespace penstock
