#include "bind.h"

#ifdef PENSTOCK_HAS_UCX

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <map>
#include <utility>
#include <vector>

#include "links.h"
#include "network.h"
#include "network_link.h"

namespace penstock {
namespace {

std::string to_string(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

void take_back(NetworkLink& link, const std::shared_ptr<Announcement>& announcement) {
  nb::gil_scoped_release unlocked;
  try {
    link.withdraw(announcement);
  } catch (const Error&) {  // what it would have said to somebody who waits
  }
}

// Links keep the network; whoever drops this closes it.
struct OpenNetwork {
  std::shared_ptr<Network> network;

  explicit OpenNetwork(std::shared_ptr<Network> opened) : network(std::move(opened)) {}
  OpenNetwork(const OpenNetwork&) = delete;
  OpenNetwork& operator=(const OpenNetwork&) = delete;
  ~OpenNetwork() {
    nb::gil_scoped_release unlocked;
    network->close(Network::Clock::now());
  }
};

std::shared_ptr<OpenNetwork> open_network(std::shared_ptr<Registry> registry, std::shared_ptr<Inbox> inbox,
                                          std::string library, std::map<std::string, std::string> settings,
                                          std::string name, const nb::bytes& instance, const nb::bytes& secret,
                                          double peer_timeout_s) {
  NetworkOptions options{std::move(library),  std::move(settings), std::move(name),
                         to_string(instance), to_string(secret),   nanoseconds(peer_timeout_s)};
  nb::gil_scoped_release unlocked;
  return std::make_shared<OpenNetwork>(
      std::make_shared<Network>(std::move(registry), std::move(inbox), std::move(options)));
}

void register_links(nb::module_& m) {
  nb::class_<NetworkLink>(m, "NetworkLink", "The initiator's end of a connection to a peer on another host.")
      .def_prop_ro("alive", &NetworkLink::alive)
      .def_prop_ro("lost", &NetworkLink::lost, nb::call_guard<nb::gil_scoped_release>(), "Why; empty = it is alive.")
      .def_prop_ro("peer_name", &NetworkLink::peer_name, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("transport", &NetworkLink::transport, nb::call_guard<nb::gil_scoped_release>(),
                   "What UCX uses for it, such as \"tcp/eth0\".")
      .def("lose", &NetworkLink::lose, nb::arg("reason"), nb::call_guard<nb::gil_scoped_release>(),
           "Take the peer for gone: what is under way fails with PeerLost.")
      .def(
          "notify",
          [](NetworkLink& self, const nb::bytes& message, double timeout_s) {
            const Deadline deadline = deadline_after(timeout_s);
            std::string copy = to_string(message);
            std::shared_ptr<Announcement> mine;
            {
              nb::gil_scoped_release unlocked;
              mine = self.announce(std::move(copy));
            }
            try {
              if (in_slices(deadline, [&](Deadline until) { return self.wait_announced(*mine, until); })) return;
            } catch (const nb::python_error&) {  // interrupted
              take_back(self, mine);
              throw;
            }
            nb::gil_scoped_release unlocked;
            self.withdraw(mine);
          },
          nb::arg("message"), nb::arg("timeout_s"),
          "Returns when it is on its way, in order. Waits while the target has too many that it hasn't taken.")
      .def("transfer", &make_transfer<NetworkLink>, nb::arg("operation"), nb::arg("local"), nb::arg("remote"),
           nb::arg("local_indices").none(), nb::arg("remote_indices").none(), nb::arg("merge"),
           "``operation``: 0 write, 1 read.")
      .def(
          "close",
          [](NetworkLink& self, double timeout_s) {
            const Deadline deadline = deadline_after(timeout_s);
            nb::gil_scoped_release unlocked;
            self.close(deadline);
          },
          nb::arg("timeout_s") = 1.0, "Say goodbye. What is under way fails with ClosedError.");
}

}  // namespace

void register_network(nb::module_& m) {
  m.attr("has_ucx_plane") = true;
  register_links(m);
  nb::class_<OpenNetwork>(m, "Network", "Connections to agents on other hosts, through UCX; has a thread of its own.")
      .def(nb::new_(&open_network), nb::arg("registry"), nb::arg("inbox"), nb::kw_only(), nb::arg("library"),
           nb::arg("settings"), nb::arg("name"), nb::arg("instance"), nb::arg("secret"), nb::arg("peer_timeout_s"),
           "``library``: path of libucp; ``settings``: UCX's, without the prefix ``UCX_``.\n\n"
           "Raises TransportUnavailable when it can't be loaded, or has no transport with these settings.")
      .def_prop_ro("address",
                   [](const OpenNetwork& self) {
                     const std::string& address = self.network->address();
                     return nb::bytes(address.data(), address.size());
                   })
      .def_prop_ro("version", [](const OpenNetwork& self) { return self.network->version(); })
      .def_prop_ro("transports", [](const OpenNetwork& self) { return self.network->transports(); })
      .def(
          "connect",
          [](const OpenNetwork& self, const nb::bytes& address, const nb::bytes& secret, double timeout_s) {
            const Deadline deadline = deadline_after(timeout_s);
            const std::string to = to_string(address);
            const std::string shown = to_string(secret);
            std::shared_ptr<NetworkLink> link;
            {
              nb::gil_scoped_release unlocked;
              link = Network::connect(self.network, to, shown);
            }
            try {
              if (in_slices(deadline, [&](Deadline until) { return link->wait_connected(until); })) return link;
            } catch (const nb::python_error&) {  // interrupted
              link->lose("it was given up");
              throw;
            }
            nb::gil_scoped_release unlocked;
            link->give_up();
            return link;
          },
          nb::arg("address"), nb::arg("secret"), nb::arg("timeout_s"),
          "Raises PeerUnreachable, PeerRefused; ClosedError after ``close()``.")
      .def_prop_ro(
          "completion_fd", [](const OpenNetwork& self) { return self.network->completion_fd(); },
          "Becomes readable when a transfer has ended, until ``clear_completions()``.")
      .def("clear_completions", [](const OpenNetwork& self) { self.network->clear_completions(); })
      .def(
          "close",
          [](const OpenNetwork& self, double timeout_s) {
            const Deadline deadline = deadline_after(timeout_s);
            nb::gil_scoped_release unlocked;
            self.network->close(deadline);
          },
          nb::arg("timeout_s"), "Say goodbye to all peers, and end the thread. Safe twice.");
}

}  // namespace penstock

#else

namespace penstock {

void register_network(nb::module_& m) { m.attr("has_ucx_plane") = false; }

}  // namespace penstock

#endif
