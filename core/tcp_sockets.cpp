#include "tcp_sockets.h"

#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace penstock {
namespace {

using GetName = int (*)(int, sockaddr*, socklen_t*);

SocketName name_of(int fd, GetName get) {
  SocketName name;
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (get(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return name;
  std::memcpy(name.bytes.data(), &address.ss_family, 2);
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    std::memcpy(name.bytes.data() + 2, &v4.sin_port, 2);
    std::memcpy(name.bytes.data() + 4, &v4.sin_addr, 4);
  } else {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    std::memcpy(name.bytes.data() + 2, &v6.sin6_port, 2);
    std::memcpy(name.bytes.data() + 4, &v6.sin6_addr, 16);
  }
  return name;
}

int option(int fd, int which) {
  int value = -1;
  socklen_t length = sizeof(value);
  return getsockopt(fd, SOL_SOCKET, which, &value, &length) == 0 ? value : -1;
}

bool is_tcp(int fd) {
  const int domain = option(fd, SO_DOMAIN);
  return (domain == AF_INET || domain == AF_INET6) && option(fd, SO_PROTOCOL) == IPPROTO_TCP;
}

}  // namespace

SocketName TcpSocket::remote() const { return name_of(fd, getpeername); }

std::vector<TcpSocket> tcp_sockets() {
  std::vector<TcpSocket> sockets;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  while (const dirent* entry = folder ? readdir(folder.get()) : nullptr) {
    char* end = nullptr;
    const int fd = static_cast<int>(std::strtol(entry->d_name, &end, 10));
    struct stat status;
    if (end == entry->d_name || !is_tcp(fd) || fstat(fd, &status) != 0) continue;
    sockets.push_back({fd, status.st_ino, option(fd, SO_ACCEPTCONN) == 1, name_of(fd, getsockname)});
  }
  return sockets;
}

std::vector<TcpSocket> new_sockets(const std::vector<TcpSocket>& before, const std::vector<TcpSocket>& after) {
  std::vector<TcpSocket> fresh;
  for (const TcpSocket& socket : after) {
    const auto same = [&](const TcpSocket& old) { return old.inode == socket.inode; };
    if (std::none_of(before.begin(), before.end(), same)) fresh.push_back(socket);
  }
  return fresh;
}

void shut_down(const TcpSocket& socket) {
  struct stat status;
  if (fstat(socket.fd, &status) == 0 && status.st_ino == socket.inode && is_tcp(socket.fd)) {
    shutdown(socket.fd, SHUT_RDWR);
  }
}

std::string pack_names(const std::vector<SocketName>& names) {
  std::string packed;
  for (const SocketName& name : names) {
    packed.append(reinterpret_cast<const char*>(name.bytes.data()), name.bytes.size());
  }
  return packed;
}

std::vector<SocketName> unpack_names(std::string_view packed) {
  std::vector<SocketName> names(packed.size() / sizeof(SocketName));
  for (size_t i = 0; i < names.size(); ++i) {
    std::memcpy(names[i].bytes.data(), packed.data() + i * sizeof(SocketName), sizeof(SocketName));
  }
  return names;
}

bool contains(const std::vector<SocketName>& names, const SocketName& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace penstock
