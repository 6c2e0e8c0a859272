#include "gather.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <tuple>
#include <vector>

#include "bind.h"

namespace penstock {
namespace {

constexpr int64_t kAnySize = std::numeric_limits<int64_t>::max();

std::tuple<int, int64_t, int64_t> as_tuple(const ReadResult& result) {
  return {static_cast<int>(result.status), result.index, result.detail};
}

}  // namespace

void register_gather(nb::module_& m) {
  m.def(
      "read_ranges",
      [](Int64s fds, Int64s file_offsets, Int64s lengths, nb::handle dest, Int64s dest_offsets,
         std::optional<Int64s> expected_crcs, size_t threads) {
        const BufferView view(dest, true);
        check_ranges(file_offsets, lengths, kAnySize, "the file");
        check_ranges(dest_offsets, lengths, view.size(), "dest");
        if (fds.shape(0) != lengths.shape(0))
          throw Error(ErrorCode::invalid_argument, "fds and lengths differ in count");
        const ReadPlan plan = make_plan(lengths, dest_offsets, expected_crcs);
        nb::gil_scoped_release unlocked;
        return as_tuple(read_ranges(fds.data(), file_offsets.data(), plan, view.data(), threads));
      },
      nb::arg("fds"), nb::arg("file_offsets"), nb::arg("lengths"), nb::arg("dest"), nb::arg("dest_offsets"),
      nb::arg("expected_crcs").none() = nb::none(), nb::arg("threads") = 1,
      nb::sig("def read_ranges(fds: Int64s, file_offsets: Int64s, lengths: Int64s, dest: Buffer, dest_offsets: Int64s, "
              "expected_crcs: Int64s | None = None, threads: int = 1) -> tuple[int, int, int]"),
      "Read ranges, each of an open file, into ``dest``; ascending neighbours become one system call.\n\n"
      "Returns (status, index of the first bad range, detail); the statuses are READ_*.");
  m.def(
      "read_files",
      [](const std::vector<nb::bytes>& paths, Int64s lengths, nb::handle dest, Int64s dest_offsets,
         std::optional<Int64s> expected_crcs) {
        const BufferView view(dest, true);
        check_ranges(dest_offsets, lengths, view.size(), "dest");
        if (paths.size() != lengths.shape(0)) {
          throw Error(ErrorCode::invalid_argument, "paths and lengths differ in count");
        }
        const ReadPlan plan = make_plan(lengths, dest_offsets, expected_crcs);
        std::vector<const char*> names;
        names.reserve(paths.size());
        for (const nb::bytes& path : paths) names.push_back(path.c_str());
        nb::gil_scoped_release unlocked;
        return as_tuple(read_files(names.data(), plan, view.data()));
      },
      nb::arg("paths"), nb::arg("lengths"), nb::arg("dest"), nb::arg("dest_offsets"),
      nb::arg("expected_crcs").none() = nb::none(),
      nb::sig("def read_files(paths: list[bytes], lengths: Int64s, dest: Buffer, dest_offsets: Int64s, "
              "expected_crcs: Int64s | None = None) -> tuple[int, int, int]"),
      "Read whole files, each exactly ``length`` bytes long, into ``dest``. Returns as read_ranges.");
  m.def(
      "scatter",
      [](nb::handle piece, int64_t piece_start, Int64s file_offsets, Int64s lengths, nb::handle dest,
         Int64s dest_offsets) {
        const BufferView from(piece, false);
        const BufferView to(dest, true);
        check_ranges(file_offsets, lengths, kAnySize, "the file");
        check_ranges(dest_offsets, lengths, to.size(), "dest");
        const ReadPlan plan = make_plan(lengths, dest_offsets, std::nullopt);
        nb::gil_scoped_release unlocked;
        scatter(from.data(), piece_start, from.size(), file_offsets.data(), plan, to.data());
      },
      nb::arg("piece"), nb::arg("piece_start"), nb::arg("file_offsets"), nb::arg("lengths"), nb::arg("dest"),
      nb::arg("dest_offsets"),
      nb::sig("def scatter(piece: Buffer, piece_start: int, file_offsets: Int64s, lengths: Int64s, dest: Buffer, "
              "dest_offsets: Int64s) -> None"),
      "Copy what a streamed piece of a file holds of each range to its place. Ranges ascend, without overlap.");
  m.def(
      "verify_crc32c",
      [](nb::handle data, Int64s offsets, Int64s lengths, Int64s expected) {
        const BufferView view(data, false);
        check_ranges(offsets, lengths, view.size(), "data");
        const ReadPlan plan = make_plan(lengths, offsets, expected);
        nb::gil_scoped_release unlocked;
        return verify_crc32c(view.data(), plan);
      },
      nb::arg("data"), nb::arg("offsets"), nb::arg("lengths"), nb::arg("expected"),
      nb::sig("def verify_crc32c(data: Buffer, offsets: Int64s, lengths: Int64s, expected: Int64s) -> int"),
      "The index of the first range whose CRC-32C isn't the expected one (-1 there: unknown), or -1.");

  m.attr("READ_OK") = static_cast<int>(ReadStatus::ok);
  m.attr("READ_SYSTEM_ERROR") = static_cast<int>(ReadStatus::system_error);
  m.attr("READ_TOO_SHORT") = static_cast<int>(ReadStatus::too_short);
  m.attr("READ_TOO_LONG") = static_cast<int>(ReadStatus::too_long);
  m.attr("READ_BAD_CHECKSUM") = static_cast<int>(ReadStatus::bad_checksum);
}

}  // namespace penstock
