#include "network.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "crc.h"
#include "network_link.h"
#include "network_session.h"
#include "network_transfer.h"

namespace penstock {
namespace {

using Clock = Network::Clock;

constexpr auto kMostSpin = std::chrono::microseconds(50);
constexpr auto kLongestSleep = std::chrono::seconds(60);
constexpr int kMostPartings = 64;
constexpr size_t kMostListeners = 256;
// How long what was sent may take to leave before its endpoint is closed by force. UCX 1.22 keeps the receiving half of
// a TCP connection that is closed so, and with bytes still waiting to be sent it may free it under its own feet.
constexpr auto kDraining = std::chrono::milliseconds(500);
constexpr auto kSevering = std::chrono::milliseconds(200);  // how long UCX may take to find a socket shut

bool same_secret(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]));
  }
  return difference == 0;
}

std::shared_ptr<const UcxApi> load(const NetworkOptions& options) {
  for (const std::string* text : {&options.name, &options.instance, &options.secret}) {
    if (text->size() > kMaxName) {
      throw Error(ErrorCode::invalid_argument, "a name, instance or secret has at most " + std::to_string(kMaxName) +
                                                   " bytes, not " + std::to_string(text->size()));
    }
  }
  return UcxApi::load(options.libucp);
}

// What UCX should do unless it is told otherwise. TCP gives up a peer that takes nothing as soon as we do, and UCX one
// that gives nothing (its process is stopped), so that what is under way to it ends; and nobody waits for a connection
// while holding the lock. TCP's segments are larger than the 8 KiB and 64 KiB of UCX's own, which takes a third of the
// time for 1 MiB, and the same at both ends whatever the environment says.
std::map<std::string, std::string> wishes(const NetworkOptions& options) {
  const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(options.peer_timeout);
  const std::string milliseconds = std::to_string(timeout.count()) + "ms";
  const std::string segment = std::to_string(kTcpSegment);
  return {{"TCP_USER_TIMEOUT", milliseconds},
          {"KEEPALIVE_INTERVAL", milliseconds},
          {"TCP_CONN_NB", "y"},
          {"TCP_TX_SEG_SIZE", segment},
          {"TCP_RX_SEG_SIZE", segment}};
}

// "tcp/eth0,tcp/lo": from what UCX prints about a context, a line for each of its resources.
std::string list_transports(const UcxContext& context) {
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&text, &size);
  if (stream == nullptr) return "";
  context.api().ucp_context_print_info(context.handle(), stream);
  fclose(stream);
  std::string joined;
  std::string_view rest(text, size);
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t space = line.rfind(' ');
    if (line.find("resource") == std::string_view::npos || space == std::string_view::npos) continue;
    const std::string_view name = line.substr(space + 1);
    if (name.find('/') != std::string_view::npos) joined.append(joined.empty() ? "" : ",").append(name);
  }
  free(text);
  return joined;
}

}  // namespace

Waker::Waker() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) throw Error(ErrorCode::out_of_memory, std::string("eventfd: ") + std::strerror(errno));
}

Waker::~Waker() { ::close(fd_); }

void Waker::wake() noexcept { eventfd_write(fd_, 1); }

void Waker::clear() noexcept {
  eventfd_t count = 0;
  eventfd_read(fd_, &count);
}

Network::Lock::Lock(Network& network) : network_(network), lock_(network.mutex_, std::defer_lock) {
  network.refuse_child();
  network.claims_.fetch_add(1, std::memory_order_relaxed);
  lock_.lock();
  network.claims_.fetch_sub(1, std::memory_order_relaxed);
}

Network::Lock::~Lock() { network_.kick_locked(); }

bool Network::Lock::wait_until(Deadline deadline) {
  network_.kick_locked();
  return network_.changed_.wait_until(lock_, deadline) == std::cv_status::no_timeout;
}

Network::Network(std::shared_ptr<Registry> registry, std::shared_ptr<Inbox> inbox, NetworkOptions options)
    : registry_(std::move(registry)),
      inbox_(std::move(inbox)),
      options_(std::move(options)),
      api_(load(options_)),
      waker_(std::make_shared<Waker>()),
      pid_(getpid()),
      context_(std::make_shared<UcxContext>(api_, options_.settings, wishes(options_))) {
  out_ = std::make_unique<UcxWorker>(context_, [this](const Arrival& arrival) { return on_answer(arrival); });
  const auto before = tcp_sockets();
  in_ = std::make_unique<UcxWorker>(context_, [this](const Arrival& arrival) { return on_request(arrival); });
  for (const TcpSocket& socket : new_sockets(before, tcp_sockets())) {
    if (socket.listening && listeners_.size() < kMostListeners) listeners_.push_back(socket.local);
  }
  address_ = seal_address({in_->address(), listeners_});
  transports_ = list_transports(*context_);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  for (const int fd : {out_->event_fd(), in_->event_fd(), waker_->fd()}) {
    epoll_event event{EPOLLIN, {}};
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
      ::close(epoll_fd_);
      throw Error(ErrorCode::transport_unavailable, std::string("epoll: ") + std::strerror(errno));
    }
  }
  SignalGuard guard;
  thread_ = std::thread([this] { run(); });
}

Network::~Network() {
  close(Clock::now());
  ::close(epoll_fd_);
}

std::shared_ptr<NetworkLink> Network::connect(const std::shared_ptr<Network>& self, std::string_view address,
                                              std::string_view secret) {
  const std::optional<WorkerAddress> worker_address = unseal_address(address);
  if (!worker_address) throw Error(ErrorCode::peer_unreachable, "the peer's network address is damaged");
  Lock lock(*self);
  if (self->closing_) throw Error(ErrorCode::closed, "this agent is closed");
  auto link = std::make_shared<NetworkLink>(self, self->random_id());
  self->links_.emplace(link->id(), link);
  try {
    link->open_locked(*worker_address, secret);
  } catch (const Error&) {
    self->forget_locked(*link);
    throw;
  }
  return link;
}

void Network::refuse_child() const {
  if (getpid() != pid_) throw Error(ErrorCode::closed, "an agent doesn't survive fork(); make a new one in the child");
}

void Network::close(Deadline deadline) {
  if (getpid() != pid_) {  // a forked child has none of the threads: what it inherited is left alone
    if (thread_.joinable()) thread_.detach();
    (void)out_.release();
    (void)in_.release();
    context_->abandon();
    return;
  }
  {
    Lock lock(*this);
    if (stopping_) return;
    closing_ = true;
    const auto links = links_;
    for (const auto& [id, link] : links) link->leave_locked();
    const auto sessions = sessions_;
    for (const auto& [id, session] : sessions) session->leave();
    // Even without time, UCX is asked to let go: what is under way may leave, then endpoints are closed by force.
    const auto last = std::max(deadline, Clock::now() + kDraining + std::chrono::milliseconds(200));
    while (!closed_locked() && Clock::now() < last) {
      lock.wait_until(std::min(last, Clock::now() + std::chrono::milliseconds(5)));
    }
    stopping_ = true;
  }
  waker_->wake();
  thread_.join();
  in_.reset();
  out_.reset();
}

bool Network::closed_locked() const {
  return partings_ == 0 && doomed_.empty() && in_->operations() == 0 && out_->operations() == 0;
}

void Network::clear_completions() noexcept {
  completion_told_.store(false);
  completions_.clear();
}

void Network::run() {
  bool asleep = false;
  while (true) {
    {
      std::lock_guard lock(mutex_);
      sleeping_ = false;
      if (turn_locked()) awake_until_ = Clock::now() + spin_;
      if (stopping_) return;
      asleep = fall_asleep_locked(Clock::now());
    }
    if (asleep) {
      sleep();
    } else if (claims_.load(std::memory_order_relaxed) > 0) {
      std::this_thread::yield();
    }
  }
}

bool Network::turn_locked() {
  bool busy = false;
  for (int i = 0; i < 16; ++i) {
    if (out_->progress() + in_->progress() == 0) break;
    busy = true;
  }
  tend_locked(Clock::now());
  return busy;
}

bool Network::fall_asleep_locked(Clock::time_point now) {
  if (now < awake_until_ || !doomed_.empty() || !out_->arm() || !in_->arm()) return false;
  sleeping_ = true;
  wake_at_ = std::min(next_due_locked(), now + kLongestSleep);
  return true;
}

// How long it stays awake after something happened depends on whether that has paid lately.
void Network::sleep() {
  const auto before = Clock::now();
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake_at_ - before).count();
  epoll_event event;
  epoll_wait(epoll_fd_, &event, 1, static_cast<int>(std::max<int64_t>(left, 0)));
  waker_->clear();
  const bool soon = Clock::now() - before < kMostSpin;
  spin_ = soon ? std::min<Clock::duration>(spin_ * 2 + std::chrono::microseconds(2), kMostSpin) : spin_ / 2;
}

Clock::time_point Network::next_due_locked() const {
  auto due = deadlines_.empty() ? Clock::time_point::max() : deadlines_.begin()->first;
  for (const auto& [id, link] : links_) due = std::min(due, link->due_locked());
  for (const auto& [id, session] : sessions_) due = std::min(due, session->due());
  return due;
}

void Network::tend_locked(Clock::time_point now) {
  const auto doomed = std::exchange(doomed_, {});
  for (const Doomed& one : doomed) {
    if (now < one.at && !one.endpoint->broken() && (one.severed || !one.endpoint->idle())) {
      doomed_.push_back(one);
    } else {
      one.endpoint->close();
    }
  }
  if (!doomed.empty()) changed_.notify_all();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto transfer = deadlines_.begin()->second->shared_from_this();
    transfer->fail_locked(Error(ErrorCode::deadline_exceeded, "the transfer's deadline passed"));
  }
  // Tending may end them: what needs it is looked up first.
  std::vector<std::shared_ptr<NetworkLink>> links;
  for (const auto& [id, link] : links_) {
    if (link->due_locked() <= now) links.push_back(link);
  }
  for (const auto& link : links) link->tend_locked(now);
  std::vector<std::shared_ptr<NetworkSession>> sessions;
  for (const auto& [id, session] : sessions_) {
    if (session->needs_tending(now)) sessions.push_back(session);
  }
  for (const auto& session : sessions) session->tend(now);
}

void Network::kick_locked() {
  if (!sleeping_) return;
  const bool early = !deadlines_.empty() && deadlines_.begin()->first < wake_at_;
  if (!early && doomed_.empty() && out_->operations() == 0 && in_->operations() == 0) return;
  sleeping_ = false;
  waker_->wake();
}

void Network::help() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock.owns_lock() && !stopping_) turn_locked();
}

void Network::wait_ended(const NetworkTransfer& transfer, Deadline until) {
  std::unique_lock lock(ended_mutex_);
  ended_.wait_until(lock, until, [&] { return transfer.state() != TransferState::active; });
}

void Network::ended_locked() {
  {
    std::lock_guard lock(ended_mutex_);
  }
  ended_.notify_all();
  if (!completion_told_.exchange(true)) completions_.wake();
}

uint64_t Network::random_id() {
  uint64_t id = 0;
  while (id == 0 || links_.contains(id) || sessions_.contains(id)) {
    if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
      throw Error(ErrorCode::out_of_memory, std::string("getrandom: ") + std::strerror(errno));
    }
  }
  return id;
}

void Network::forget_locked(const NetworkLink& link) {
  links_.erase(link.id());
  changed_.notify_all();
}

void Network::forget_locked(const NetworkSession& session) {
  sessions_.erase(session.id());
  changed_.notify_all();
}

void Network::doom_locked(std::shared_ptr<Endpoint> endpoint) {
  if (endpoint) doomed_.push_back({std::move(endpoint), Clock::now() + kDraining, false});
}

void Network::sever_locked(std::shared_ptr<Endpoint> endpoint, const std::vector<TcpSocket>& sockets) {
  for (const TcpSocket& socket : sockets) shut_down(socket);
  if (endpoint) doomed_.push_back({std::move(endpoint), Clock::now() + kSevering, true});
}

std::vector<TcpSocket> Network::accepted_from(const std::vector<SocketName>& remote) const {
  std::vector<TcpSocket> accepted;
  for (const TcpSocket& socket : tcp_sockets()) {
    if (contains(listeners_, socket.local) && contains(remote, socket.remote())) accepted.push_back(socket);
  }
  return accepted;
}

void Network::part_locked(const std::shared_ptr<Endpoint>& endpoint, Outgoing last) {
  ++partings_;
  endpoint->send(std::move(last));
  endpoint->flush([this, endpoint](ucs_status_t) {
    --partings_;
    doom_locked(endpoint);
    changed_.notify_all();
  });
}

ucs_status_t Network::on_answer(const Arrival& arrival) {
  const auto message = parse_message(arrival.header, arrival.header_size, arrival.payload);
  if (!message) return UCS_ERR_REJECTED;
  const uint64_t to = std::visit([](const auto& m) { return recipient(m); }, *message);
  const auto found = links_.find(to);
  if (found == links_.end()) return UCS_ERR_REJECTED;
  const auto link = found->second;  // handling may forget it
  return link->handle_locked(*message, arrival);
}

ucs_status_t Network::on_request(const Arrival& arrival) {
  const auto message = parse_message(arrival.header, arrival.header_size, arrival.payload);
  if (!message) return UCS_ERR_REJECTED;
  if (const auto* hello = std::get_if<Hello>(&*message)) {
    on_hello(*hello);
    return UCS_OK;
  }
  const uint64_t to = std::visit([](const auto& m) { return recipient(m); }, *message);
  const auto found = sessions_.find(to);
  if (found == sessions_.end()) return UCS_ERR_REJECTED;
  const auto session = found->second;
  return session->handle(*message, arrival);
}

std::string Network::refusal(const Hello& hello) const {
  if (closing_) return "it is closing";
  return same_secret(hello.secret, options_.secret) ? "" : "the secret isn't that of its metadata";
}

void Network::on_hello(const Hello& hello) {
  const std::string reason = refusal(hello);
  try {
    if (reason.empty()) {
      const auto session = std::make_shared<NetworkSession>(*this, random_id(), hello);
      session->open(hello.address);
      sessions_.emplace(session->id(), session);
    } else if (partings_ < kMostPartings) {
      const auto endpoint = Endpoint::open(*in_, hello.address, {});
      const auto code = static_cast<uint32_t>(ErrorCode::peer_refused);
      part_locked(endpoint, write_message(Refused{hello.link, code, reason}));
    }
  } catch (const Error&) {
    // The way back to whoever asked doesn't exist; it will notice that nobody answers.
  }
}

std::string seal_address(const WorkerAddress& address) {
  const auto count = static_cast<uint32_t>(address.listeners.size());
  const std::string body =
      std::string(reinterpret_cast<const char*>(&count), sizeof(count)) + pack_names(address.listeners) + address.ucx;
  const uint32_t sum = crc32c(body.data(), body.size());
  return std::string(reinterpret_cast<const char*>(&sum), sizeof(sum)) + body;
}

std::optional<WorkerAddress> unseal_address(std::string_view sealed) {
  uint32_t head[2];
  if (sealed.size() <= sizeof(head) || sealed.size() > kMaxAddress) return std::nullopt;
  std::memcpy(head, sealed.data(), sizeof(head));
  if (crc32c(sealed.data() + sizeof(uint32_t), sealed.size() - sizeof(uint32_t)) != head[0]) return std::nullopt;
  sealed.remove_prefix(sizeof(head));
  if (head[1] > sealed.size() / sizeof(SocketName)) return std::nullopt;
  const size_t names = head[1] * sizeof(SocketName);
  return WorkerAddress{std::string(sealed.substr(names)), unpack_names(sealed.substr(0, names))};
}

}  // namespace penstock
