// Decoding pictures. Where the core was built without libjpeg-turbo, HAS_JPEG is False and the rest isn't there.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind.h"

#ifdef PENSTOCK_HAS_LIBJPEG_TURBO
#include "decode_pool.h"
#include "jpeg.h"
#include "pixels.h"

namespace penstock {
namespace {

static_assert(sizeof(Window) == 4 * sizeof(double), "windows come as rows of four doubles");

using Windows = nb::ndarray<const double, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::ndarray<nb::numpy, T> owned_array(std::unique_ptr<T[]> values, std::initializer_list<size_t> shape) {
  T* raw = values.release();
  nb::capsule owner(raw, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
  return nb::ndarray<nb::numpy, T>(raw, shape, owner);
}

auto jpeg_headers(nb::handle data, Int64s offsets, Int64s lengths) {
  const BufferView view(data, false);
  check_ranges(offsets, lengths, view.size(), "data");
  const size_t count = offsets.shape(0);
  auto values = std::make_unique<int32_t[]>(count * 4);
  {
    nb::gil_scoped_release unlocked;
    const auto* bytes = reinterpret_cast<const uint8_t*>(view.data());
    for (size_t i = 0; i < count; ++i) {
      JpegHeader header;
      if (!read_jpeg_header(bytes + offsets.data()[i], static_cast<size_t>(lengths.data()[i]), header)) header = {};
      const int32_t row[] = {header.height, header.width, header.components, header.orientation};
      std::copy_n(row, 4, values.get() + 4 * i);
    }
  }
  return owned_array(std::move(values), {count, 4});
}

auto decode(DecodePool& pool, nb::handle data, Int64s offsets, Int64s lengths, Windows windows, Flags flips,
            std::pair<int, int> hw, int layout, int type, nb::sequence scale, nb::sequence bias, int64_t most_pixels,
            nb::handle out, int64_t turn) {
  const BufferView from(data, false);
  const BufferView to(out, true);
  check_ranges(offsets, lengths, from.size(), "data");
  const size_t count = offsets.shape(0);
  if (windows.shape(0) != count || flips.shape(0) != count) {
    throw Error(ErrorCode::invalid_argument, "offsets, windows and flips differ in count");
  }
  if (!std::all_of(windows.data(), windows.data() + 4 * count, [](double value) { return std::isfinite(value); })) {
    throw Error(ErrorCode::invalid_argument, "a window that isn't made of numbers");
  }
  if (hw.first < 1 || hw.second < 1 || layout < 0 || layout > 1 || type < 0 || type > 2) {
    throw Error(ErrorCode::invalid_argument, "a size, layout or type that doesn't exist");
  }
  PixelFormat format{static_cast<Layout>(layout), static_cast<PixelType>(type)};
  for (size_t c = 0; c < 3; ++c) {
    format.scale[c] = nb::cast<float>(scale[c]);
    format.bias[c] = nb::cast<float>(bias[c]);
  }
  const auto needed = static_cast<int64_t>(count * 3 * format.sample_bytes()) * hw.first * hw.second;
  if (to.size() < needed) {
    throw Error(ErrorCode::invalid_argument,
                "out has " + std::to_string(to.size()) + " bytes, the pixels need " + std::to_string(needed));
  }
  auto statuses = std::make_unique<int32_t[]>(count);
  std::vector<std::string> messages;
  {
    nb::gil_scoped_release unlocked;
    pool.decode({count, reinterpret_cast<const uint8_t*>(from.data()), offsets.data(), lengths.data(),
                 reinterpret_cast<const Window*>(windows.data()), flips.data(), hw.second, hw.first, format,
                 most_pixels, turn, to.data(), statuses.get(), &messages});
  }
  return std::make_pair(owned_array(std::move(statuses), {count}), messages);
}

void resize(DecodePool& pool, int thread_count) {
  if (thread_count < 1) throw Error(ErrorCode::invalid_argument, "a pool has at least one thread");
  pool.resize(thread_count);
}

}  // namespace

void register_decode(nb::module_& m) {
  m.attr("HAS_JPEG") = true;
  m.def("jpeg_headers", &jpeg_headers, nb::arg("data"), nb::arg("offsets"), nb::arg("lengths"),
        nb::sig("def jpeg_headers(data: Buffer, offsets: Int64s, lengths: Int64s) -> Int32s"),
        "Height, width, components and Exif orientation of each JPEG file, int32 ``[n, 4]``; zeros for other bytes.");
  nb::class_<DecodePool>(m, "DecodePool", "Threads that decode batches of JPEG files; they stop when it is dropped.")
      .def(nb::init<int>(), nb::arg("thread_count"))
      .def_prop_ro("thread_count", &DecodePool::thread_count)
      .def("resize", &resize, nb::arg("thread_count"),
           "Have so many threads from the next picture on, at least 1; those that aren't wanted wait.")
      .def("decode", &decode, nb::arg("data"), nb::arg("offsets"), nb::arg("lengths"), nb::arg("windows"),
           nb::arg("flips"), nb::arg("hw"), nb::arg("layout"), nb::arg("type"), nb::arg("scale"), nb::arg("bias"),
           nb::arg("most_pixels"), nb::arg("out"), nb::arg("turn") = 0,
           nb::sig("def decode(self, data: Buffer, offsets: Int64s, lengths: Int64s, windows: Float64s, flips: UInt8s, "
                   "hw: tuple[int, int], layout: int, type: int, scale: Sequence[float], bias: Sequence[float], "
                   "most_pixels: int, out: Buffer, turn: int = 0) -> tuple[Int32s, list[str]]"),
           "Decode, crop, resize, mirror and normalise a batch into ``out``; the GIL is released. Of the batches\n"
           "that wait, the one with the lowest ``turn`` goes first.\n\n"
           "Returns a DECODE_* status and a message for each file.");
  m.attr("DECODE_OK") = static_cast<int>(DecodeStatus::ok);
  m.attr("DECODE_NOT_JPEG") = static_cast<int>(DecodeStatus::not_jpeg);
  m.attr("DECODE_DAMAGED") = static_cast<int>(DecodeStatus::damaged);
  m.attr("DECODE_TOO_LARGE") = static_cast<int>(DecodeStatus::too_large);
  m.attr("DECODE_NO_MEMORY") = static_cast<int>(DecodeStatus::no_memory);
}

}  // namespace penstock

#else

namespace penstock {

void register_decode(nb::module_& m) { m.attr("HAS_JPEG") = false; }

}  // namespace penstock
#endif
