#include "network_worker.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "error.h"

namespace penstock {
namespace {

constexpr unsigned kMessageId = 0;

void check(const UcxApi& api, ucs_status_t status, const std::string& what) {
  if (status != UCS_OK) {
    throw Error(ErrorCode::transport_unavailable, "UCX: " + what + ": " + api.ucs_status_string(status));
  }
}

void finish(Pending* operation, ucs_status_t status) {
  const std::unique_ptr<Pending> owned(operation);
  operation->worker->ended();
  if (operation->endpoint) operation->endpoint->settled(status);
  if (operation->done) operation->done(status);
}

void on_sent(void* request, ucs_status_t status, void* operation) {
  auto* mine = static_cast<Pending*>(operation);
  mine->worker->api().ucp_request_free(request);
  finish(mine, status);
}

void on_received(void* request, ucs_status_t status, size_t, void* operation) { on_sent(request, status, operation); }

ucs_status_t on_message(void* handler, const void* header, size_t header_size, void* data, size_t size,
                        const ucp_am_recv_param_t* param) {
  const bool waiting = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const Arrival arrival{static_cast<const std::byte*>(header), header_size,
                        Payload{waiting ? nullptr : static_cast<const std::byte*>(data), size},
                        waiting ? data : nullptr};
  const ucs_status_t status = (*static_cast<UcxWorker::Handler*>(handler))(arrival);
  return waiting ? status : UCS_OK;
}

// UCX writes to standard output that a peer can't be reached; we say so in errors. Whoever chose a level keeps it.
void quieten(const UcxApi& api) {
  char level[64] = "";
  if (api.get_global == nullptr || api.set_global == nullptr) return;
  if (api.get_global("LOG_LEVEL", level, sizeof(level)) != UCS_OK) return;
  if (std::string_view(level) == "warn" || std::string_view(level) == "WARN") api.set_global("LOG_LEVEL", "fatal");
}

ucp_request_param_t operation_parameters(Pending* operation) {
  ucp_request_param_t parameters{};
  parameters.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  parameters.cb.send = on_sent;
  parameters.user_data = operation;
  return parameters;
}

void name_memory(ucp_request_param_t& parameters, MemoryKind kind) {
  parameters.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  parameters.memory_type = kind == MemoryKind::vram ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
}

}  // namespace

UcxContext::UcxContext(std::shared_ptr<const UcxApi> api, const std::map<std::string, std::string>& settings,
                       const std::map<std::string, std::string>& wishes)
    : api_(std::move(api)) {
  SignalGuard guard;
  ucp_config_t* config = nullptr;
  check(*api_, api_->ucp_config_read(nullptr, nullptr, &config), "its settings can't be read");
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> owned(config, api_->ucp_config_release);
  quieten(*api_);
  for (const auto& [name, value] : wishes) (void)api_->ucp_config_modify(config, name.c_str(), value.c_str());
  for (const auto& [name, value] : settings) {
    ucs_status_t status = api_->ucp_config_modify(config, name.c_str(), value.c_str());
    if (status != UCS_OK && api_->set_global != nullptr) status = api_->set_global(name.c_str(), value.c_str());
    check(*api_, status, "setting " + name + "=" + value);
  }
  ucp_params_t parameters{};
  parameters.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  parameters.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  parameters.name = "penstock";
  check(*api_, api_->ucp_init_version(api_->major, api_->minor, &parameters, config, &handle_),
        "no transport can be opened with these settings");
}

UcxContext::~UcxContext() {
  if (handle_ != nullptr && !abandoned_) api_->ucp_cleanup(handle_);
}

UcxWorker::UcxWorker(std::shared_ptr<UcxContext> context, Handler handler)
    : context_(std::move(context)), handler_(std::move(handler)) {
  SignalGuard guard;
  ucp_worker_params_t parameters{};
  parameters.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  parameters.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  check(api(), api().ucp_worker_create(context_->handle(), &parameters, &handle_), "no worker");
  ucp_am_handler_param_t receive{};
  receive.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG |
                       UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  receive.id = kMessageId;
  receive.flags = UCP_AM_FLAG_WHOLE_MSG;
  receive.cb = on_message;
  receive.arg = &handler_;
  ucs_status_t status = api().ucp_worker_set_am_recv_handler(handle_, &receive);
  if (status == UCS_OK) status = api().ucp_worker_get_efd(handle_, &event_fd_);
  if (status != UCS_OK) {
    api().ucp_worker_destroy(handle_);
    check(api(), status, "this transport can't wake anybody");
  }
}

UcxWorker::~UcxWorker() {
  if (operations_ > 0) {
    context_->abandon();
  } else {
    api().ucp_worker_destroy(handle_);
  }
}

std::string UcxWorker::address() const {
  ucp_address_t* address = nullptr;
  size_t length = 0;
  check(api(), api().ucp_worker_get_address(handle_, &address, &length), "no address");
  std::string copy(reinterpret_cast<const char*>(address), length);
  api().ucp_worker_release_address(handle_, address);
  return copy;
}

void UcxWorker::track(ucs_status_ptr_t request, Pending* operation) {
  ++operations_;
  if (request == nullptr) {
    finish(operation, UCS_OK);
  } else if (UCS_PTR_IS_ERR(request)) {
    finish(operation, UCS_PTR_STATUS(request));
  }
}

void UcxWorker::receive(void* descriptor, uint64_t address, uint64_t length, MemoryKind kind, Done done) {
  auto* operation = new Pending{this, std::move(done), {Header(0), {}}, nullptr};
  ucp_request_param_t parameters = operation_parameters(operation);
  parameters.cb.recv_am = on_received;
  name_memory(parameters, kind);
  track(api().ucp_am_recv_data_nbx(handle_, descriptor, reinterpret_cast<void*>(address), length, &parameters),
        operation);
}

std::shared_ptr<Endpoint> Endpoint::open(UcxWorker& worker, std::string_view address,
                                         std::function<void(ucs_status_t)> on_error) {
  std::shared_ptr<Endpoint> endpoint(new Endpoint(worker, std::move(on_error)));
  const std::string aligned(address);
  ucp_ep_params_t parameters{};
  parameters.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  parameters.address = reinterpret_cast<const ucp_address_t*>(aligned.data());
  parameters.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  parameters.err_handler = {Endpoint::on_error, endpoint.get()};
  ucs_status_t status = worker.api().ucp_ep_create(worker.handle(), &parameters, &endpoint->handle_);
  if (status == UCS_ERR_UNREACHABLE) {  // shared memory alone can't notice that a peer dies; our heartbeat does
    parameters.err_mode = UCP_ERR_HANDLING_MODE_NONE;
    endpoint->notices_death_ = false;
    status = worker.api().ucp_ep_create(worker.handle(), &parameters, &endpoint->handle_);
  }
  if (status != UCS_OK) {
    endpoint->handle_ = nullptr;
    throw Error(ErrorCode::peer_unreachable, "UCX finds no way to the peer: " + worker.text(status));
  }
  return endpoint;
}

void Endpoint::on_error(void* self, ucp_ep_h, ucs_status_t status) {
  auto* endpoint = static_cast<Endpoint*>(self);
  endpoint->broken_ = true;
  if (endpoint->on_error_) std::exchange(endpoint->on_error_, {})(status);
}

// What UCX 1.22 gives back while it takes a broken TCP connection apart comes before it says that it is broken; who
// sends something by it in between ends the process (uct_tcp_ep_mod_events).
void Endpoint::settled(ucs_status_t status) {
  --under_way_;
  switch (status) {
    case UCS_OK:
    case UCS_ERR_CANCELED:
    case UCS_ERR_REJECTED:  // these are of the message, not of the line
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_NO_RESOURCE:
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_MESSAGE_TRUNCATED: return;
    default: cut_ = true;
  }
}

Pending* Endpoint::begin(Done done, Outgoing outgoing) {
  ++under_way_;
  return new Pending{&worker_, std::move(done), std::move(outgoing), shared_from_this()};
}

void Endpoint::send(Outgoing outgoing, Done done) {
  auto* operation = begin(std::move(done), std::move(outgoing));
  if (!sends()) {
    worker_.track(reinterpret_cast<void*>(UCS_ERR_NOT_CONNECTED), operation);
    return;
  }
  ucp_request_param_t parameters = operation_parameters(operation);
  parameters.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = UCP_AM_SEND_FLAG_EAGER;
  name_memory(parameters, MemoryKind::dram);
  const Outgoing& kept = operation->outgoing;
  worker_.track(worker_.api().ucp_am_send_nbx(handle_, kMessageId, kept.header.data(), kept.header.size(),
                                              kept.payload.data(), kept.payload.size(), &parameters),
                operation);
}

void Endpoint::send_direct(const Header& header, uint64_t address, uint64_t length, MemoryKind kind, bool eager,
                           Done done) {
  auto* operation = begin(std::move(done), {header, {}});
  if (!sends()) {
    worker_.track(reinterpret_cast<void*>(UCS_ERR_NOT_CONNECTED), operation);
    return;
  }
  ucp_request_param_t parameters = operation_parameters(operation);
  parameters.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = eager ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  name_memory(parameters, kind);
  const Header& kept = operation->outgoing.header;
  worker_.track(worker_.api().ucp_am_send_nbx(handle_, kMessageId, kept.data(), kept.size(),
                                              reinterpret_cast<const void*>(address), length, &parameters),
                operation);
}

void Endpoint::flush(Done done) {
  auto* operation = begin(std::move(done), {Header(0), {}});
  if (!sends()) {
    worker_.track(nullptr, operation);
    return;
  }
  const ucp_request_param_t parameters = operation_parameters(operation);
  worker_.track(worker_.api().ucp_ep_flush_nbx(handle_, &parameters), operation);
}

void Endpoint::close() {
  if (!open()) return;
  // UCX may call the error handler until the closing has ended: the endpoint lives as long.
  auto* operation = new Pending{&worker_, [self = shared_from_this()](ucs_status_t) {}, {Header(0), {}}, nullptr};
  ucp_request_param_t parameters = operation_parameters(operation);
  parameters.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = notices_death_ ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  worker_.track(worker_.api().ucp_ep_close_nbx(std::exchange(handle_, nullptr), &parameters), operation);
}

std::string Endpoint::transport() const {
  if (!open()) return "";
  std::vector<ucp_transport_entry_t> entries(16);
  ucp_ep_attr_t attributes{};
  attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
  attributes.transports = {entries.data(), static_cast<unsigned>(entries.size()), sizeof(ucp_transport_entry_t)};
  if (worker_.api().ucp_ep_query(handle_, &attributes) != UCS_OK) return "";
  std::string joined;
  for (unsigned i = 0; i < attributes.transports.num_entries; ++i) {
    const std::string one = std::string(entries[i].transport_name) + "/" + entries[i].device_name;
    if (joined.find(one) == std::string::npos) joined += (joined.empty() ? "" : ",") + one;
  }
  return joined;
}

}  // namespace penstock
