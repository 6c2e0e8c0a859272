// UCX's context, workers and endpoints as objects, and what is in its hands.
//
// Threads: one at a time; the network's lock is held for every call. `Done` functions and the handlers are called from
// progress(), or within the call that they belong to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "network_messages.h"
#include "registry.h"
#include "ucx_api.h"

namespace penstock {

// Called once when UCX doesn't touch the memory of an operation any more.
using Done = std::function<void(ucs_status_t)>;

class UcxContext {
 public:
  // `settings` must be known to UCX; `wishes` are for versions that know them, and give way to settings.
  UcxContext(std::shared_ptr<const UcxApi> api, const std::map<std::string, std::string>& settings,
             const std::map<std::string, std::string>& wishes);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  const UcxApi& api() const { return *api_; }
  ucp_context_h handle() const { return handle_; }
  // UCX still holds memory of an operation that never ended: this can't be taken apart.
  void abandon() { abandoned_ = true; }

 private:
  std::shared_ptr<const UcxApi> api_;
  ucp_context_h handle_ = nullptr;
  bool abandoned_ = false;
};

// A message as it arrives. `descriptor` is set when its payload is still at the sender (rendezvous).
struct Arrival {
  const std::byte* header;
  size_t header_size;
  Payload payload;
  void* descriptor;
};

class UcxWorker {
 public:
  // Returns UCS_OK, or why the payload is refused. It may call receive() for the descriptor.
  using Handler = std::function<ucs_status_t(const Arrival&)>;

  UcxWorker(std::shared_ptr<UcxContext> context, Handler handler);
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  const UcxApi& api() const { return context_->api(); }
  ucp_worker_h handle() const { return handle_; }
  int event_fd() const { return event_fd_; }
  std::string address() const;
  unsigned progress() { return api().ucp_worker_progress(handle_); }
  // True = nothing is left to do, and event_fd() becomes readable when something is.
  bool arm() { return api().ucp_worker_arm(handle_) == UCS_OK; }
  // Fetches the payload of an arrival into memory.
  void receive(void* descriptor, uint64_t address, uint64_t length, MemoryKind kind, Done done);
  // Takes a request that UCX returned, and sees to it that `done` is called.
  void track(ucs_status_ptr_t request, struct Pending* operation);
  uint64_t operations() const { return operations_; }
  void ended() { --operations_; }
  std::string text(ucs_status_t status) const { return api().ucs_status_string(status); }

 private:
  std::shared_ptr<UcxContext> context_;
  Handler handler_;
  ucp_worker_h handle_ = nullptr;
  int event_fd_ = -1;
  uint64_t operations_ = 0;
};

// Something that UCX is doing, and what it needs until then.
struct Pending {
  UcxWorker* worker;
  Done done;
  Outgoing outgoing;                         // of a send
  std::shared_ptr<class Endpoint> endpoint;  // that it goes by; null = it comes in
};

// A line to a peer. `on_error` is called once, when UCX finds it broken.
class Endpoint : public std::enable_shared_from_this<Endpoint> {
 public:
  static std::shared_ptr<Endpoint> open(UcxWorker& worker, std::string_view address,
                                        std::function<void(ucs_status_t)> on_error);
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  // Sends a small message, whose payload is copied.
  void send(Outgoing outgoing, Done done = {});
  // Sends memory, which belongs to UCX until `done`: eagerly, or the receiver fetches it (rendezvous).
  void send_direct(const Header& header, uint64_t address, uint64_t length, MemoryKind kind, bool eager, Done done);
  // Calls `done` when all that was sent has left.
  void flush(Done done);
  // At once; what was under way ends with an error. Nothing can be sent afterwards. Safe twice. (Over shared memory UCX
  // notices no dead peer: what was under way to one ends only with the worker.)
  void close();
  bool open() const { return handle_ != nullptr; }
  // Nothing is sent any more once something that was came back because of the line.
  bool sends() const { return open() && !cut_; }
  // Nothing that was sent is under way any more.
  bool idle() const { return under_way_ == 0; }
  void settled(ucs_status_t status);
  // UCX has found it broken.
  bool broken() const { return broken_; }
  // Such as "tcp/eth0"; several are joined by commas.
  std::string transport() const;

 private:
  Endpoint(UcxWorker& worker, std::function<void(ucs_status_t)> on_error)
      : worker_(worker), on_error_(std::move(on_error)) {}
  static void on_error(void* self, ucp_ep_h endpoint, ucs_status_t status);
  Pending* begin(Done done, Outgoing outgoing);

  UcxWorker& worker_;
  std::function<void(ucs_status_t)> on_error_;
  ucp_ep_h handle_ = nullptr;
  int under_way_ = 0;
  bool broken_ = false;
  bool cut_ = false;
  bool notices_death_ = true;
};

}  // namespace penstock
