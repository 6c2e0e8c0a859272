// Gathering: many byte ranges of files into one block of memory, with as few system calls as it takes.
//
// Threads: plain functions without state; any thread, any number at once. They block on the disk; threads that
// read_ranges starts end before it returns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

enum class ReadStatus : int {
  ok = 0,
  system_error = 1,  // detail: errno
  too_short = 2,     // the file ends before the range does; detail: bytes of it that were there
  too_long = 3,      // a whole file has more bytes than it was sized at
  bad_checksum = 4,  // detail: the crc32c that was found
};

struct ReadResult {
  ReadStatus status = ReadStatus::ok;
  int64_t index = -1;  // of the first range that failed
  int64_t detail = 0;
};

// Where n ranges come from and go to. `expected_crcs` may be null; an entry of -1 means unknown.
struct ReadPlan {
  size_t count;
  const int64_t* lengths;
  const int64_t* dest_offsets;
  const int64_t* expected_crcs;
};

// Reads ranges, each of a file that is open as fds[i], with up to `threads` threads, this one included. Ranges that
// are neighbours in a file, with gaps of at most a few KiB (a tar header, say), become one preadv that scatters them.
// What isn't in the page cache is asked for all at once. A failure is the first in the order of files and offsets.
ReadResult read_ranges(const int64_t* fds, const int64_t* file_offsets, const ReadPlan& plan, std::byte* dest,
                       size_t threads = 1);

// Reads whole files, each exactly as long as planned.
ReadResult read_files(const char* const* paths, const ReadPlan& plan, std::byte* dest);

// Copies what a streamed piece, bytes [piece_start, piece_start + piece_size) of a file, holds of each range.
// The ranges ascend and don't overlap.
void scatter(const std::byte* piece, int64_t piece_start, int64_t piece_size, const int64_t* file_offsets,
             const ReadPlan& plan, std::byte* dest);

// The index of the first range in `data` whose crc32c isn't the expected one, or -1.
int64_t verify_crc32c(const std::byte* data, const ReadPlan& plan);

}  // namespace penstock
