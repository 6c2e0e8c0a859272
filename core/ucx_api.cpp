#include "ucx_api.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstring>

#include "error.h"

namespace penstock {
namespace {

constexpr unsigned kOldestMinor = 13;  // of version 1: the first whose endpoints tell their transports

void* open_library(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); }

// libucp finds its own libraries by name: those beside it are loaded first, so that no others are taken.
void open_neighbours(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return;
  for (const char* name : {"libucm.so.0", "libucs.so.0", "libuct.so.0"}) {
    open_library(path.substr(0, slash + 1) + name);  // where it isn't there, the linker's own search is what remains
  }
}

void* find_function(void* library, const char* name, const std::string& path) {
  void* function = dlsym(library, name);
  if (function == nullptr) {
    throw Error(ErrorCode::transport_unavailable, path + " has no " + name + "; a newer UCX is needed");
  }
  return function;
}

bool same_handler(const struct sigaction& a, const struct sigaction& b) {
  return a.sa_flags == b.sa_flags && a.sa_sigaction == b.sa_sigaction;
}

}  // namespace

std::shared_ptr<const UcxApi> UcxApi::load(const std::string& path) {
  SignalGuard guard;
  open_neighbours(path);
  void* library = open_library(path);
  if (library == nullptr) {
    const char* reason = dlerror();
    throw Error(ErrorCode::transport_unavailable, std::string("UCX can't be loaded: ") + (reason ? reason : path));
  }
  auto api = std::make_shared<UcxApi>();
#define PENSTOCK_FIND(name) api->name = reinterpret_cast<decltype(&::name)>(find_function(library, #name, path));
  PENSTOCK_UCP_FUNCTIONS(PENSTOCK_FIND)
#undef PENSTOCK_FIND
  api->set_global = reinterpret_cast<decltype(api->set_global)>(dlsym(library, "ucs_global_opts_set_value"));
  api->get_global = reinterpret_cast<decltype(api->get_global)>(dlsym(library, "ucs_global_opts_get_value"));
  unsigned release = 0;
  api->ucp_get_version(&api->major, &api->minor, &release);
  api->version = api->ucp_get_version_string();
  api->path = path;
  if (api->major != UCP_API_MAJOR || api->minor < kOldestMinor) {
    throw Error(ErrorCode::transport_unavailable,
                path + " is UCX " + api->version + "; needed is 1." + std::to_string(kOldestMinor) + " or a later 1.x");
  }
  return api;
}

SignalGuard::SignalGuard() {
  for (int signal = 1; signal < static_cast<int>(before_.size()); ++signal) {
    const auto index = static_cast<size_t>(signal);
    known_[index] = sigaction(signal, nullptr, &before_[index]) == 0;
  }
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &mask_);
}

SignalGuard::~SignalGuard() {
  for (int signal = 1; signal < static_cast<int>(before_.size()); ++signal) {
    const auto index = static_cast<size_t>(signal);
    struct sigaction now;
    if (!known_[index] || sigaction(signal, nullptr, &now) != 0 || same_handler(now, before_[index])) continue;
    sigaction(signal, &before_[index], nullptr);
  }
  pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
}

}  // namespace penstock
