// The TCP sockets of this process, by the names of their two ends.
//
// UCX offers no way to break a connection in the middle of a message, and its memory isn't free before that. So it is
// remembered which sockets a connection uses, and a peer that fell silent is shut out by the kernel.
// Threads: any.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace penstock {

struct SocketName {
  std::array<unsigned char, 20> bytes{};  // family, port, address; all zeros = none
  bool operator==(const SocketName&) const = default;
};

struct TcpSocket {
  int fd;
  ino_t inode;  // tells whether `fd` still is this socket
  bool listening;
  SocketName local;
  SocketName remote() const;  // none before it is connected
};

std::vector<TcpSocket> tcp_sockets();
// Those of `after` that `before` doesn't have.
std::vector<TcpSocket> new_sockets(const std::vector<TcpSocket>& before, const std::vector<TcpSocket>& after);
// Ends both directions at once, if the descriptor is still the same socket.
void shut_down(const TcpSocket& socket);

std::string pack_names(const std::vector<SocketName>& names);
std::vector<SocketName> unpack_names(std::string_view packed);  // of any length; a rest is left out
bool contains(const std::vector<SocketName>& names, const SocketName& name);

}  // namespace penstock
