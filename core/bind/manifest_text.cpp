#include "manifest_text.h"

#include <memory>
#include <utility>
#include <vector>

#include "bind.h"

namespace penstock {
namespace {

// Hands a vector's memory to NumPy, which frees it with the array.
template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T>&& values) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
  return {kept->data(), {kept->size()}, owner};
}

nb::tuple to_python(ManifestColumns&& columns) {
  return nb::make_tuple(to_numpy(std::move(columns.location_index)), to_numpy(std::move(columns.offset)),
                        to_numpy(std::move(columns.length)), to_numpy(std::move(columns.label_id)),
                        to_numpy(std::move(columns.crc32c)),
                        nb::bytes(columns.location_text.data(), columns.location_text.size()),
                        to_numpy(std::move(columns.location_lengths)));
}

}  // namespace

void register_manifest_text(nb::module_& m) {
  nb::class_<ManifestParser>(m, "ManifestParser",
                             "Reads a manifest's text as a stream, into columns. Not for two threads at once.")
      .def(nb::init<>())
      .def(
          "feed",
          [](ManifestParser& parser, nb::handle chunk) {
            const BufferView view(chunk, false);
            {
              nb::gil_scoped_release unlocked;
              parser.feed({reinterpret_cast<const char*>(view.data()), static_cast<size_t>(view.size())});
            }
            return to_python(parser.take());
          },
          nb::arg("chunk"),
          nb::sig("def feed(self, chunk: Buffer) -> tuple[UInt32s, Int64s, Int64s, Int64s, Int64s, bytes, Int64s]"),
          "Parses the next piece of text.\n\n"
          "Returns the rows that it completed, as columns of their own memory: location index, byte offset, byte\n"
          "length, label id and crc32c (-1 where absent); then the text of locations not seen in the row before,\n"
          "end to end, and their sizes in bytes. Raises ManifestError, which begins with the line's number.")
      .def(
          "finish",
          [](ManifestParser& parser) {
            parser.finish();
            return to_python(parser.take());
          },
          nb::sig("def finish(self) -> tuple[UInt32s, Int64s, Int64s, Int64s, Int64s, bytes, Int64s]"),
          "Ends the text and returns its last row when no newline ended it, as ``feed`` does.")
      .def_prop_ro("version", &ManifestParser::version, "0 or 1; -1 before the header.")
      .def_prop_ro("row_count", &ManifestParser::row_count, "Rows so far.")
      .def_prop_ro("canonical", &ManifestParser::canonical,
                   "Whether the text so far is exactly what a writer would make of its rows.");
}

}  // namespace penstock
