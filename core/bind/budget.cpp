#include "budget.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <mutex>
#include <utility>

#include "arena.h"
#include "bind.h"

namespace penstock {
namespace {

// Budget and Charge as Python sees them: the ledger with the arena that belongs to it, made when first needed.
struct Memory {
  explicit Memory(uint64_t total_bytes) : ledger(std::make_shared<Ledger>(total_bytes)) {}

  std::shared_ptr<Arena> arena_for_use() {
    std::lock_guard lock(mutex);
    if (!arena) arena = std::make_shared<Arena>(ledger->total_bytes());
    return arena;
  }

  uint64_t resident_bytes() {
    std::lock_guard lock(mutex);
    return arena ? arena->resident_bytes() : 0;
  }

  std::shared_ptr<Ledger> ledger;
  std::shared_ptr<Arena> arena;
  std::mutex mutex;
};

struct Budget {
  explicit Budget(uint64_t total_bytes) : memory(std::make_shared<Memory>(total_bytes)) {}
  std::shared_ptr<Memory> memory;
};

struct BoundCharge {
  std::shared_ptr<Memory> memory;
  Charge charge;
};

int region_get_buffer(PyObject* self, Py_buffer* view, int flags) {
  Region* region = nb::inst_ptr<Region>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, region->data(), static_cast<Py_ssize_t>(region->size()), 0, flags);
}

PyType_Slot region_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(region_get_buffer)}, {0, nullptr}};

}  // namespace

void register_budget(nb::module_& m) {
  nb::class_<Region>(m, "Region", nb::type_slots(region_slots),
                     "Contiguous bytes with their charge, through the buffer protocol (writable).\n\n"
                     "The charge goes back to the budget when the last view of the bytes is gone.")
      .def_prop_ro("size_bytes", &Region::size)
      .def_prop_ro("arena_offset", &Region::offset, "Where the bytes begin in the budget's arena.")
      .def("__len__", &Region::size);

  nb::class_<BoundCharge>(m, "Charge", "A held part of a budget.")
      .def_prop_ro("size_bytes", [](const BoundCharge& self) { return self.charge.bytes(); })
      .def(
          "split", [](BoundCharge& self, uint64_t size) { return BoundCharge{self.memory, self.charge.split(size)}; },
          nb::arg("size"), "Cut ``size`` bytes off into a charge of their own.")
      .def(
          "region",
          [](BoundCharge& self) {
            auto arena = self.memory->arena_for_use();
            return arena->allocate(std::move(self.charge));
          },
          "Memory of exactly this charge's bytes; the region takes the charge over and this one becomes empty.")
      .def("release", [](BoundCharge& self) { self.charge.release(); }, "Give the bytes back. Safe twice.");

  nb::class_<Budget>(m, "Budget", "An account of bytes: whatever is held was charged here first, in order.")
      .def(nb::init<uint64_t>(), nb::arg("total_bytes"))
      .def_prop_ro("total_bytes", [](const Budget& self) { return self.memory->ledger->total_bytes(); })
      .def_prop_ro("charged_bytes", [](const Budget& self) { return self.memory->ledger->statistics().charged_bytes; })
      .def_prop_ro("peak_bytes", [](const Budget& self) { return self.memory->ledger->statistics().peak_bytes; })
      .def_prop_ro("waiting_count", [](const Budget& self) { return self.memory->ledger->statistics().waiting_count; })
      .def_prop_ro("waiting_bytes", [](const Budget& self) { return self.memory->ledger->statistics().waiting_bytes; })
      .def_prop_ro("resident_bytes", [](const Budget& self) { return self.memory->resident_bytes(); })
      .def_prop_ro(
          "arena",
          [](const Budget& self) {
            const auto arena = self.memory->arena_for_use();
            return nb::make_tuple(arena->fd(), arena->span_bytes());
          },
          nb::sig("def arena(self) -> tuple[int, int]"),
          "The file in memory where regions lie, and its size: what another process maps to see them.\n\n"
          "The file descriptor is the budget's own and lives as long as it.")
      .def(
          "reserve",
          [](const Budget& self, uint64_t size, double timeout_s) {
            const auto timeout = nanoseconds(timeout_s);
            nb::gil_scoped_release unlocked;
            return BoundCharge{self.memory, self.memory->ledger->reserve(size, timeout)};
          },
          nb::arg("size"), nb::arg("timeout_s"),
          "Wait in line for ``size`` bytes.\n\n"
          "Raises UnitTooLarge at once, DeadlineExceeded after ``timeout_s`` seconds, ClosedError when closed.")
      .def(
          "try_reserve",
          [](const Budget& self, uint64_t size) -> std::optional<BoundCharge> {
            BoundCharge bound{self.memory, {}};
            if (!self.memory->ledger->try_reserve(size, bound.charge)) return std::nullopt;
            return bound;
          },
          nb::arg("size"), "Take ``size`` bytes if they are free now and nobody waits; else None.")
      .def(
          "close", [](const Budget& self) { self.memory->ledger->close(); },
          "Wake all who wait with ClosedError. What was granted stays valid.")
      .def(
          "reopen", [](const Budget& self) { self.memory->ledger->reopen(); },
          "Grant charges again after ``close()``; what was granted before still counts.");
}

}  // namespace penstock
