#include "gather.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "crc.h"

namespace penstock {
namespace {

constexpr int64_t kMaxGap = 4096;       // bytes worth reading to save a system call: about 0.3 us of copying
constexpr int64_t kMaxRun = 128 << 10;  // bytes a call: they and where they came from stay in L2 for the checksum
constexpr size_t kMaxVectors = 256;     // pieces a call; the kernel's own limit is 1024

// One preadv in the making: ranges that follow one another in the file, and the gaps between them.
class Run {
 public:
  explicit Run(std::byte* dest) : dest_(dest) {}

  bool takes(int64_t fd, int64_t offset, int64_t length) const {
    if (count_ == 0) return true;
    if (fd != fd_) return false;
    const int64_t gap = offset - end_;
    return gap >= 0 && gap <= kMaxGap && count_ + 2 <= kMaxVectors && end_ + gap + length - begin_ <= kMaxRun;
  }

  void add(int64_t fd, int64_t offset, int64_t length, int64_t dest_offset) {
    if (count_ == 0) {
      fd_ = static_cast<int>(fd);
      begin_ = end_ = offset;
    }
    if (offset > end_) push(sink_.data(), offset - end_);
    push(dest_ + dest_offset, length);
    end_ = offset + length;
  }

  // Reads it all. `reached` tells how far into the file the bytes came.
  int read(int64_t& reached) {
    reached = begin_;
    size_t first = 0;
    while (first < count_) {
      const ssize_t got = preadv(fd_, vectors_.data() + first, static_cast<int>(count_ - first), reached);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return errno;
      if (got == 0) break;
      reached += got;
      for (auto left = static_cast<size_t>(got); left > 0;) {
        iovec& vector = vectors_[first];
        const size_t taken = std::min(left, vector.iov_len);
        vector.iov_base = static_cast<std::byte*>(vector.iov_base) + taken;
        vector.iov_len -= taken;
        left -= taken;
        if (vector.iov_len == 0) ++first;
      }
    }
    count_ = 0;
    return 0;
  }

 private:
  void push(std::byte* data, int64_t size) {
    if (size > 0) vectors_[count_++] = {data, static_cast<size_t>(size)};
  }

  int fd_ = -1;
  std::byte* dest_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  size_t count_ = 0;
  std::array<iovec, kMaxVectors> vectors_;
  std::array<std::byte, kMaxGap> sink_;  // what lies between two ranges ends here and is never looked at
};

bool checksum_fits(const ReadPlan& plan, size_t index, const std::byte* dest, int64_t& found) {
  if (plan.expected_crcs == nullptr || plan.expected_crcs[index] < 0) return true;
  found = crc32c(dest + plan.dest_offsets[index], static_cast<size_t>(plan.lengths[index]));
  return found == plan.expected_crcs[index];
}

// Reads a run and checks the ranges [first, end) that it holds.
ReadResult finish_run(Run& run, size_t first, size_t end, const int64_t* file_offsets, const ReadPlan& plan,
                      const std::byte* dest) {
  int64_t reached = 0;
  const int error = run.read(reached);
  if (error != 0) return {ReadStatus::system_error, static_cast<int64_t>(first), error};
  for (size_t i = first; i < end; ++i) {
    if (file_offsets[i] + plan.lengths[i] > reached && plan.lengths[i] > 0) {
      return {ReadStatus::too_short, static_cast<int64_t>(i), std::max<int64_t>(0, reached - file_offsets[i])};
    }
    int64_t found = 0;
    if (!checksum_fits(plan, i, dest, found)) return {ReadStatus::bad_checksum, static_cast<int64_t>(i), found};
  }
  return {};
}

class File {
 public:
  // O_NONBLOCK keeps a named pipe from stalling us; on a regular file it means nothing.
  explicit File(const char* path) : fd_(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Reads a file that should hold `length` bytes. One byte more is asked for, which tells growth without an fstat.
ReadResult read_whole(int fd, std::byte* dest, int64_t length) {
  std::byte beyond;
  int64_t got = 0;
  while (got <= length) {
    const std::array<iovec, 2> vectors = {iovec{dest + got, static_cast<size_t>(length - got)}, iovec{&beyond, 1}};
    const ssize_t step = preadv(fd, vectors.data(), 2, got);
    if (step < 0 && errno == EINTR) continue;
    if (step < 0) return {ReadStatus::system_error, 0, errno};
    if (step == 0) break;
    got += step;
  }
  if (got > length) return {ReadStatus::too_long, 0, got};
  if (got < length) return {ReadStatus::too_short, 0, got};
  return {};
}

}  // namespace

ReadResult read_ranges(const int64_t* fds, const int64_t* file_offsets, const ReadPlan& plan, std::byte* dest) {
  Run run(dest);
  size_t first = 0;
  for (size_t i = 0; i < plan.count; ++i) {
    if (!run.takes(fds[i], file_offsets[i], plan.lengths[i])) {
      const ReadResult result = finish_run(run, first, i, file_offsets, plan, dest);
      if (result.status != ReadStatus::ok) return result;
      first = i;
    }
    run.add(fds[i], file_offsets[i], plan.lengths[i], plan.dest_offsets[i]);
  }
  return finish_run(run, first, plan.count, file_offsets, plan, dest);
}

ReadResult read_files(const char* const* paths, const ReadPlan& plan, std::byte* dest) {
  for (size_t i = 0; i < plan.count; ++i) {
    const auto index = static_cast<int64_t>(i);
    const File file(paths[i]);
    if (file.fd() < 0) return {ReadStatus::system_error, index, errno};
    ReadResult result = read_whole(file.fd(), dest + plan.dest_offsets[i], plan.lengths[i]);
    if (result.status != ReadStatus::ok) return {result.status, index, result.detail};
    int64_t found = 0;
    if (!checksum_fits(plan, i, dest, found)) return {ReadStatus::bad_checksum, index, found};
  }
  return {};
}

void scatter(const std::byte* piece, int64_t piece_start, int64_t piece_size, const int64_t* file_offsets,
             const ReadPlan& plan, std::byte* dest) {
  const int64_t piece_end = piece_start + piece_size;
  size_t low = 0;  // the first range that ends behind the piece's start
  for (size_t high = plan.count; low < high;) {
    const size_t middle = low + (high - low) / 2;
    if (file_offsets[middle] + plan.lengths[middle] <= piece_start) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  for (size_t i = low; i < plan.count && file_offsets[i] < piece_end; ++i) {
    const int64_t begin = std::max(file_offsets[i], piece_start);
    const int64_t end = std::min(file_offsets[i] + plan.lengths[i], piece_end);
    if (end <= begin) continue;
    std::memcpy(dest + plan.dest_offsets[i] + (begin - file_offsets[i]), piece + (begin - piece_start),
                static_cast<size_t>(end - begin));
  }
}

int64_t verify_crc32c(const std::byte* data, const ReadPlan& plan) {
  int64_t found = 0;
  for (size_t i = 0; i < plan.count; ++i) {
    if (!checksum_fits(plan, i, data, found)) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace penstock
