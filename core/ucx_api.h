// The functions of UCX that the network plane uses, found when a program runs.
//
// Nothing is linked: the caller names a libucp, which is loaded with its own neighbours (libucs, libuct) and kept out
// of everybody else's symbols. Loading leaves the process's signal handlers as they were, and is for good. Threads:
// any.
#pragma once

#include <signal.h>
#include <ucp/api/ucp.h>

#include <array>
#include <memory>
#include <string>

namespace penstock {

#define PENSTOCK_UCP_FUNCTIONS(each)                                                                                   \
  each(ucp_get_version) each(ucp_get_version_string) each(ucp_config_read) each(ucp_config_modify)                     \
      each(ucp_config_release) each(ucp_init_version) each(ucp_cleanup) each(ucp_context_print_info)                   \
          each(ucp_worker_create) each(ucp_worker_destroy) each(ucp_worker_get_address)                                \
              each(ucp_worker_release_address) each(ucp_worker_get_efd) each(ucp_worker_arm) each(ucp_worker_progress) \
                  each(ucp_worker_set_am_recv_handler) each(ucp_am_send_nbx) each(ucp_am_recv_data_nbx)                \
                      each(ucp_ep_create) each(ucp_ep_close_nbx) each(ucp_ep_flush_nbx) each(ucp_ep_query)             \
                          each(ucp_request_free) each(ucs_status_string)

struct UcxApi {
  // Throws Error(transport_unavailable) when the library isn't there, is too old, or lacks a function.
  static std::shared_ptr<const UcxApi> load(const std::string& path);

#define PENSTOCK_DECLARE(name) decltype(&::name) name = nullptr;
  PENSTOCK_UCP_FUNCTIONS(PENSTOCK_DECLARE)
#undef PENSTOCK_DECLARE
  // UCX's settings that belong to the process, such as LOG_LEVEL; null in versions that lack them.
  ucs_status_t (*set_global)(const char* name, const char* value) = nullptr;
  ucs_status_t (*get_global)(const char* name, char* value, size_t most) = nullptr;
  unsigned major = 0;
  unsigned minor = 0;
  std::string version;
  std::string path;
};

// Puts signal handlers back as they were, and keeps signals from threads that are started in between.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  std::array<struct sigaction, 65> before_;
  std::array<bool, 65> known_{};
  sigset_t mask_;
};

}  // namespace penstock
