#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "bind.h"
#include "host_link.h"
#include "inbox.h"
#include "links.h"
#include "registry.h"
#include "remote_memory.h"
#include "segment.h"

namespace penstock {
namespace {

using Rows = nb::ndarray<const uint64_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Ranges = nb::ndarray<const uint64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Generations = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<Range> to_ranges(const Rows& rows) {
  std::vector<Range> ranges(rows.shape(0));
  for (size_t i = 0; i < ranges.size(); ++i) ranges[i] = {rows(i, 0), rows(i, 1)};
  return ranges;
}

std::optional<std::vector<Registry::Name>> to_names(const Rows& rows, const std::optional<Slots>& slots,
                                                    const std::optional<Generations>& generations) {
  if (!slots || !generations) return std::nullopt;
  if (slots->shape(0) != rows.shape(0) || generations->shape(0) != rows.shape(0)) {
    throw Error(ErrorCode::invalid_argument, "slots, generations and rows differ in count");
  }
  std::vector<Registry::Name> names(rows.shape(0));
  for (size_t i = 0; i < names.size(); ++i) names[i] = {(*slots)(i), (*generations)(i)};
  return names;
}

// A column of its own: NumPy frees it.
template <typename Number>
nb::ndarray<nb::numpy, Number, nb::ndim<1>> to_column(std::vector<Number> numbers) {
  auto* kept = new std::vector<Number>(std::move(numbers));
  nb::capsule owner(kept, [](void* vector) noexcept { delete static_cast<std::vector<Number>*>(vector); });
  return {kept->data(), {kept->size()}, owner};
}

auto names_of(const Prepared& prepared) {
  std::vector<uint32_t> slots;
  std::vector<uint64_t> generations;
  for (const Descriptor& descriptor : prepared.descriptors) {
    slots.push_back(descriptor.name.slot);
    generations.push_back(descriptor.name.generation);
  }
  return std::tuple(to_column(std::move(slots)), to_column(std::move(generations)));
}

int segment_get_buffer(PyObject* self, Py_buffer* view, int flags) {
  Segment* segment = nb::inst_ptr<Segment>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, segment->data(), static_cast<Py_ssize_t>(segment->size()), 0, flags);
}

PyType_Slot segment_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(segment_get_buffer)}, {0, nullptr}};

TransferState post(Transfer& transfer, const std::optional<nb::bytes>& notification, double timeout_s) {
  const Deadline deadline = deadline_after(timeout_s);
  std::string message;
  if (notification) message.assign(notification->c_str(), notification->size());
  const std::string* pointer = notification ? &message : nullptr;
  if (transfer.brief()) {
    const TransferState state = transfer.post(pointer, deadline);
    if (state != TransferState::active || !transfer.settles_in_wait()) return state;
  } else {
    nb::gil_scoped_release release;
    const TransferState state = transfer.post(pointer, deadline);
    if (state != TransferState::active || !transfer.settles_in_wait()) return state;
  }
  // The data is there, and there is no room for the notification yet.
  TransferState state = TransferState::active;
  in_slices(deadline, [&](Deadline until) {
    state = transfer.wait(until);
    return state != TransferState::active;
  });
  return transfer.poll();
}

// Each descriptor is taken over, whichever of them is refused.
std::shared_ptr<HostLink> make_link(std::shared_ptr<Registry> local, int table_fd, uint64_t table_bytes, int link_fd,
                                    uint64_t link_bytes, int wake_fd, int pid, std::string peer_name) {
  std::shared_ptr<Segment> table;
  try {
    table = Segment::map(table_fd, table_bytes, false);
  } catch (...) {
    close(link_fd);
    close(wake_fd);
    throw;
  }
  try {
    return std::make_shared<HostLink>(std::move(local), std::move(table), Segment::map(link_fd, link_bytes), wake_fd,
                                      pid, std::move(peer_name));
  } catch (...) {
    close(wake_fd);
    throw;
  }
}

void register_memory(nb::module_& m) {
  nb::class_<Segment>(m, "Segment", nb::type_slots(segment_slots),
                      "Memory that other processes can map, through the buffer protocol (writable). Zeros at first.")
      .def_static(
          "create", [](uint64_t size) { return Segment::create(size); }, nb::arg("size"),
          nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("address", [](const Segment& self) { return reinterpret_cast<uint64_t>(self.data()); })
      .def_prop_ro("size_bytes", &Segment::size)
      .def("__len__", &Segment::size);

  m.def(
      "find_shared",
      [](uint64_t address, uint64_t length) -> std::optional<std::tuple<uint64_t, uint64_t, uint64_t>> {
        const auto found = find_shared(address, length);
        if (!found) return std::nullopt;
        return std::tuple(found->id, found->bytes, found->offset);
      },
      nb::arg("address"), nb::arg("length"),
      "(segment id, bytes of the segment, offset in it) where other processes can map this memory; else None.");
  m.def(
      "shared_segment",
      [](uint64_t id) -> std::optional<std::tuple<int, uint64_t>> {
        const auto found = dup_shared(id);
        if (!found) return std::nullopt;
        return std::tuple(found->fd, found->bytes);
      },
      nb::arg("segment_id"), "(a new descriptor, which is the caller's; bytes) of a segment; None = it is gone.");
  m.def("can_reach_process", &can_reach_process, nb::arg("pid"), nb::arg("address"));

  nb::class_<Registry>(m, "Registry", "An agent's registered memory: slots with generations.")
      .def(nb::new_([] { return std::make_shared<Registry>(); }))
      .def(
          "add",
          [](Registry& self, const Ranges& ranges, bool vram, uint32_t device) {
            std::vector<Range> list(ranges.shape(0));
            for (size_t i = 0; i < list.size(); ++i) list[i] = {ranges(i, 0), ranges(i, 1)};
            const Registry::Name name = self.add(std::move(list), vram ? MemoryKind::vram : MemoryKind::dram, device);
            return std::tuple(name.slot, name.generation);
          },
          nb::arg("ranges"), nb::arg("vram"), nb::arg("device"))
      .def(
          "retire", [](Registry& self, uint32_t slot, uint64_t generation) { self.retire({slot, generation}); },
          nb::arg("slot"), nb::arg("generation"))
      .def(
          "quiet", [](Registry& self, uint32_t slot, uint64_t generation) { return self.quiet({slot, generation}); },
          nb::arg("slot"), nb::arg("generation"))
      .def(
          "wait_quiet",
          [](Registry& self, uint32_t slot, uint64_t generation, double timeout_s) {
            return in_slices(deadline_after(timeout_s),
                             [&](Deadline until) { return self.wait_quiet({slot, generation}, until); });
          },
          nb::arg("slot"), nb::arg("generation"), nb::arg("timeout_s"))
      .def(
          "prepare",
          [](Registry& self, const Rows& rows, const std::optional<Slots>& slots,
             const std::optional<Generations>& generations) {
            const auto names = to_names(rows, slots, generations);
            return prepare_local(self, to_ranges(rows), names ? &*names : nullptr);
          },
          nb::arg("rows"), nb::arg("slots").none() = nb::none(), nb::arg("generations").none() = nb::none())
      .def_prop_ro("table_fd", [](const Registry& self) { return self.table().fd(); })
      .def_prop_ro("table_address",
                   [](const Registry& self) { return reinterpret_cast<uint64_t>(self.table().data()); })
      .def_prop_ro("table_bytes", [](const Registry& self) { return self.table().size(); });

  nb::class_<Prepared>(m, "Prepared", "Descriptors that were checked against registrations.")
      .def("__len__", [](const Prepared& self) { return self.descriptors.size(); })
      .def("names", &names_of, "(slots, generations) of the registrations that they lie in: (N,) uint32, (N,) uint64.")
      .def_prop_ro("vram", [](const Prepared& self) { return self.kind == MemoryKind::vram; })
      .def_prop_ro("mapped", [](const Prepared& self) {
        return std::all_of(self.descriptors.begin(), self.descriptors.end(),
                           [](const Descriptor& d) { return d.mapped; });
      });

  nb::class_<RemoteMemory>(m, "RemoteMemory", "What is known of a peer's registered memory.")
      .def(nb::init<>())
      .def(
          "add",
          [](RemoteMemory& self, uint32_t slot, uint64_t generation, bool vram, uint32_t device, uint64_t segment_id,
             const Rows& ranges) {
            std::vector<RemoteRange> list(ranges.shape(0));
            for (size_t i = 0; i < list.size(); ++i) list[i] = {ranges(i, 0), ranges(i, 1), ranges(i, 2)};
            self.add({slot, generation}, vram ? MemoryKind::vram : MemoryKind::dram, device, segment_id, list);
          },
          nb::arg("slot"), nb::arg("generation"), nb::arg("vram"), nb::arg("device"), nb::arg("segment_id"),
          nb::arg("ranges"), "``ranges``: address, length, offset in the segment.")
      .def("clear", &RemoteMemory::clear)
      .def("prune", &RemoteMemory::prune)
      .def("unmapped", &RemoteMemory::unmapped)
      .def(
          "map",
          [](RemoteMemory& self, uint64_t segment_id, int fd, uint64_t bytes) {
            self.map(segment_id, fd < 0 ? nullptr : Segment::map(fd, bytes));
          },
          nb::arg("segment_id"), nb::arg("fd"), nb::arg("size"), "Takes ``fd`` over; -1 = the segment is gone.")
      .def(
          "prepare",
          [](const RemoteMemory& self, const Rows& rows, const std::optional<Slots>& slots,
             const std::optional<Generations>& generations) {
            const auto names = to_names(rows, slots, generations);
            return self.prepare(to_ranges(rows), names ? &*names : nullptr);
          },
          nb::arg("rows"), nb::arg("slots").none() = nb::none(), nb::arg("generations").none() = nb::none());
}

void register_notifications(nb::module_& m) {
  nb::class_<IncomingLink>(m, "IncomingLink", "The target's end of a connection from a peer on this host.")
      .def(nb::init<std::string>(), nb::arg("sender"))
      .def_prop_ro("fd", [](const IncomingLink& self) { return self.segment().fd(); })
      .def_prop_ro("size_bytes", [](const IncomingLink& self) { return self.segment().size(); });

  nb::class_<Inbox>(m, "Inbox", "Notifications that arrived.")
      .def(nb::init<std::shared_ptr<Registry>>(), nb::arg("registry"))
      .def(
          "drain",
          [](Inbox& self, size_t limit) {
            nb::typed<nb::list, nb::typed<nb::tuple, nb::str, nb::bytes>> result;
            for (const Notification& notification : self.drain(limit)) {
              result.append(nb::make_tuple(nb::str(notification.sender->data(), notification.sender->size()),
                                           nb::bytes(notification.message.data(), notification.message.size())));
            }
            return result;
          },
          nb::arg("limit"), "(sender, message) of what arrived, in order for each sender.")
      .def("empty", &Inbox::empty)
      .def("arm", &Inbox::arm, "Have ``wake_fd`` become readable when something comes, until ``disarm()``.")
      .def("disarm", &Inbox::disarm)
      .def("clear", &Inbox::clear, "``wake_fd`` is readable no more; to be called before one drains.")
      .def("close", &Inbox::close)
      .def_prop_ro("wake_fd", &Inbox::wake_fd)
      .def(
          "attach",
          [](Inbox& self, Registry& registry, std::shared_ptr<IncomingLink> link) {
            registry.attach(link);
            self.attach(std::move(link));
          },
          nb::arg("registry"), nb::arg("link"))
      .def(
          "detach",
          [](Inbox& self, Registry& registry, const std::shared_ptr<IncomingLink>& link) {
            link->gone.store(true);
            registry.detach(link);
            self.retire(link, link->sender());
          },
          nb::arg("registry"), nb::arg("link"), "Its process is gone. What it sent before can still be drained.");
}

void register_links(nb::module_& m) {
  nb::class_<Transfer>(m, "Transfer", "A prepared transfer: state 0 idle, 1 active, 2 done, 3 failed.")
      .def(
          "post",
          [](Transfer& self, const std::optional<nb::bytes>& notification, double timeout_s) {
            return static_cast<int>(post(self, notification, timeout_s));
          },
          nb::arg("notification").none(), nb::arg("timeout_s"))
      .def("poll", [](Transfer& self) { return static_cast<int>(self.poll()); })
      .def(
          "wait",
          [](Transfer& self, double timeout_s) {
            TransferState state = self.poll();
            in_slices(deadline_after(timeout_s), [&](Deadline until) {
              state = self.wait(until);
              return state != TransferState::active;
            });
            return static_cast<int>(state);
          },
          nb::arg("timeout_s"))
      .def("quiet", &Transfer::quiet)
      .def(
          "raise_error", [](const Transfer& self) { throw self.error(); }, "Raise why it failed.")
      .def_prop_ro("total_bytes", &Transfer::total_bytes)
      .def_prop_ro("piece_count", &Transfer::piece_count);

  nb::class_<HostLink>(m, "HostLink", "The initiator's end of a connection to a peer on this host.")
      .def(nb::new_(&make_link), nb::arg("local"), nb::arg("table_fd"), nb::arg("table_bytes"), nb::arg("link_fd"),
           nb::arg("link_bytes"), nb::arg("wake_fd"), nb::arg("pid"), nb::arg("peer_name"),
           "Takes the three descriptors over.")
      .def_prop_ro("alive", &HostLink::alive)
      .def_prop_ro("lost", &HostLink::lost)
      .def("lose", &HostLink::lose, nb::arg("reason"))
      .def(
          "wait_idle",
          [](const HostLink& self, double timeout_s) {
            return in_slices(deadline_after(timeout_s), [&](Deadline until) { return self.wait_idle(until); });
          },
          nb::arg("timeout_s"), "After ``lose``: whether transfers of other threads have ended.")
      .def(
          "notify",
          [](HostLink& self, const nb::bytes& message, double timeout_s) {
            const std::string_view view(message.c_str(), message.size());
            if (self.try_notify(view)) return;
            const Deadline deadline = deadline_after(timeout_s);
            const bool sent = in_slices(deadline, [&](Deadline until) { return self.wait_notify(view, until); });
            if (!sent) self.throw_full();
          },
          nb::arg("message"), nb::arg("timeout_s"))
      .def("transfer", &make_transfer<HostLink>, nb::arg("operation"), nb::arg("local"), nb::arg("remote"),
           nb::arg("local_indices").none(), nb::arg("remote_indices").none(), nb::arg("merge"),
           "``operation``: 0 write, 1 read.");
}

}  // namespace

void register_transfer(nb::module_& m) {
  register_memory(m);
  register_notifications(m);
  register_links(m);
}

}  // namespace penstock
