// What the binding files share. Only files in this folder know Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "error.h"
#include "gather.h"

namespace nb = nanobind;

namespace penstock {

using Int64s = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The memory of a Python object that has the buffer protocol, contiguous, held for this object's lifetime.
// Made and destroyed with the GIL; the bytes may be used without it.
class BufferView {
 public:
  BufferView(nb::handle object, bool writable) {
    const int flags = writable ? PyBUF_WRITABLE | PyBUF_SIMPLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nb::python_error();
  }
  ~BufferView() { PyBuffer_Release(&view_); }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(view_.buf); }
  int64_t size() const { return view_.len; }

 private:
  Py_buffer view_;
};

// Refuses ranges that don't lie within `size` bytes, naming the first one. What follows may trust them.
inline void check_ranges(const Int64s& offsets, const Int64s& lengths, int64_t size, const char* what) {
  if (offsets.shape(0) != lengths.shape(0)) {
    throw Error(ErrorCode::invalid_argument, "offsets and lengths differ in count");
  }
  for (size_t i = 0; i < offsets.shape(0); ++i) {
    const int64_t offset = offsets.data()[i];
    const int64_t length = lengths.data()[i];
    if (offset < 0 || length < 0 || length > size || offset > size - length) {
      throw Error(ErrorCode::invalid_argument, "range " + std::to_string(i) + " (offset " + std::to_string(offset) +
                                                   ", length " + std::to_string(length) + ") lies outside of " + what +
                                                   ", which has " + std::to_string(size) + " bytes");
    }
  }
}

inline ReadPlan make_plan(const Int64s& lengths, const Int64s& dest_offsets, const std::optional<Int64s>& crcs) {
  if (crcs && crcs->shape(0) != lengths.shape(0)) {
    throw Error(ErrorCode::invalid_argument, "lengths and expected_crcs differ in count");
  }
  return {lengths.shape(0), lengths.data(), dest_offsets.data(), crcs ? crcs->data() : nullptr};
}

inline std::chrono::nanoseconds nanoseconds(double seconds) {
  if (!(seconds >= 0)) throw Error(ErrorCode::invalid_argument, "a timeout is a number of seconds of at least 0");
  // A century is for ever, and still fits into the clock's type.
  return std::chrono::nanoseconds(static_cast<int64_t>(std::min(seconds, 3.0e9) * 1e9));
}

inline std::chrono::steady_clock::time_point deadline_after(double seconds) {
  return std::chrono::steady_clock::now() + nanoseconds(seconds);
}

// Waits without the GIL, in slices short enough that Ctrl-C is seen. `wait(until)`: true = it has come.
template <typename Wait>
bool in_slices(std::chrono::steady_clock::time_point deadline, Wait wait) {
  while (true) {
    const auto slice = std::min(deadline, std::chrono::steady_clock::now() + std::chrono::milliseconds(100));
    bool come = false;
    {
      nb::gil_scoped_release release;
      come = wait(slice);
    }
    if (come) return true;
    if (slice == deadline) return false;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

void register_budget(nb::module_& m);
void register_crc(nb::module_& m);
void register_decode(nb::module_& m);
void register_gather(nb::module_& m);
void register_manifest_text(nb::module_& m);
void register_network(nb::module_& m);
void register_transfer(nb::module_& m);

}  // namespace penstock
