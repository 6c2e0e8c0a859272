#include "crc.h"

#include <cstring>
#include <memory>

#include "bind.h"

namespace penstock {

void register_crc(nb::module_& m) {
  m.def(
      "crc32c",
      [](nb::handle data, uint32_t value) {
        const BufferView view(data, false);
        nb::gil_scoped_release unlocked;
        return crc32c(view.data(), static_cast<size_t>(view.size()), value);
      },
      nb::arg("data"), nb::arg("value") = 0, nb::sig("def crc32c(data: Buffer, value: int = 0) -> int"),
      "CRC-32C (RFC 3720) of ``data``, going on from ``value``.");
  m.def("crc32c_implementation", &crc32c_implementation, "vpclmulqdq, sse4.2, armv8 or table.");
  m.def(
      "crc32c_many",
      [](nb::handle data, Int64s offsets, Int64s lengths) {
        const BufferView view(data, false);
        check_ranges(offsets, lengths, view.size(), "data");
        const size_t count = offsets.shape(0);
        auto values = std::make_unique<uint32_t[]>(count);
        {
          nb::gil_scoped_release unlocked;
          for (size_t i = 0; i < count; ++i) {
            values[i] = crc32c(view.data() + offsets.data()[i], static_cast<size_t>(lengths.data()[i]));
          }
        }
        uint32_t* raw = values.release();
        nb::capsule owner(raw, [](void* pointer) noexcept { delete[] static_cast<uint32_t*>(pointer); });
        return nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>>(raw, {count}, owner);
      },
      nb::arg("data"), nb::arg("offsets"), nb::arg("lengths"),
      nb::sig("def crc32c_many(data: Buffer, offsets: Int64s, lengths: Int64s) -> UInt32s"),
      "CRC-32C of each ``data[offset : offset + length]``.");
}

}  // namespace penstock
