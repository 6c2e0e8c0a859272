#include "gather.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "crc.h"

namespace penstock {
namespace {

constexpr int64_t kMaxGap = 4096;        // bytes worth reading to save a system call: about 0.3 us of copying
constexpr int64_t kMaxRun = 128 << 10;   // bytes a call: they and where they came from stay in L2 for the checksum
constexpr size_t kMaxVectors = 256;      // pieces a call; the kernel's own limit is 1024
constexpr size_t kLeastRuns = 4;         // runs that are worth a thread, whose start and end take some 20 us
constexpr int64_t kMaxAhead = 32 << 20;  // bytes asked for ahead of reading them, so that they are still there by then

// What is to be read, in the order of places: by file, then by offset.
class Ranges {
 public:
  Ranges(const int64_t* fds, const int64_t* file_offsets, const ReadPlan& plan, std::byte* dest)
      : fds_(fds), file_offsets_(file_offsets), plan_(plan), dest_(dest), order_(plan.count) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    const auto before = [&](size_t a, size_t b) {
      return std::pair(fds[a], file_offsets[a]) < std::pair(fds[b], file_offsets[b]);
    };
    if (!std::is_sorted(order_.begin(), order_.end(), before)) std::sort(order_.begin(), order_.end(), before);
  }

  size_t count() const { return order_.size(); }
  const ReadPlan& plan() const { return plan_; }
  const std::byte* memory() const { return dest_; }
  size_t index(size_t place) const { return order_[place]; }
  int fd(size_t place) const { return static_cast<int>(fds_[order_[place]]); }
  int64_t begin(size_t place) const { return file_offsets_[order_[place]]; }
  int64_t length(size_t place) const { return plan_.lengths[order_[place]]; }
  int64_t end(size_t place) const { return begin(place) + length(place); }
  std::byte* dest(size_t place) const { return dest_ + plan_.dest_offsets[order_[place]]; }

 private:
  const int64_t* fds_;
  const int64_t* file_offsets_;
  ReadPlan plan_;
  std::byte* dest_;
  std::vector<size_t> order_;
};

// Neighbours that one call reads: the places [first, last).
struct Run {
  size_t first;
  size_t last;
};

// Where the run that begins with a place ends: it holds what follows closely in the same file, up to a size.
size_t run_end(const Ranges& ranges, size_t first) {
  size_t last = first + 1;
  for (size_t pieces = 3; last < ranges.count() && pieces <= kMaxVectors; ++last, pieces += 2) {
    const int64_t gap = ranges.begin(last) - ranges.end(last - 1);
    if (ranges.fd(last) != ranges.fd(first) || gap < 0 || gap > kMaxGap) break;
    if (ranges.end(last) - ranges.begin(first) > kMaxRun) break;
  }
  return last;
}

std::vector<Run> runs_of(const Ranges& ranges) {
  std::vector<Run> runs;
  for (size_t first = 0; first < ranges.count(); first = runs.back().last) {
    runs.push_back({first, run_end(ranges, first)});
  }
  return runs;
}

// The pieces of memory that a run goes to. What lies between two ranges ends in a sink and is never looked at.
class Scattered {
 public:
  Scattered(const Ranges& ranges, Run run) {
    int64_t position = ranges.begin(run.first);
    for (size_t place = run.first; place < run.last; ++place) {
      push(sink_.data(), ranges.begin(place) - position);
      push(ranges.dest(place), ranges.length(place));
      position = ranges.end(place);
    }
  }

  bool done() const { return first_ == count_; }
  const iovec* pieces() const { return vectors_.data() + first_; }
  int count() const { return static_cast<int>(count_ - first_); }

  void advance(size_t bytes) {
    while (bytes > 0) {
      iovec& vector = vectors_[first_];
      const size_t taken = std::min(bytes, vector.iov_len);
      vector.iov_base = static_cast<std::byte*>(vector.iov_base) + taken;
      vector.iov_len -= taken;
      bytes -= taken;
      if (vector.iov_len == 0) ++first_;
    }
  }

 private:
  void push(std::byte* data, int64_t size) {
    if (size > 0) vectors_[count_++] = {data, static_cast<size_t>(size)};
  }

  size_t first_ = 0;
  size_t count_ = 0;
  std::array<iovec, kMaxVectors> vectors_;
  std::array<std::byte, kMaxGap> sink_;
};

// Reads a run. `reached` tells how far into the file the bytes came; an error of EAGAIN: not all of it is in memory.
int read_pieces(const Ranges& ranges, Run run, bool only_cached, int64_t& reached) {
  Scattered to(ranges, run);
  reached = ranges.begin(run.first);
  while (!to.done()) {
    const ssize_t got = preadv2(ranges.fd(run.first), to.pieces(), to.count(), reached, only_cached ? RWF_NOWAIT : 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) break;
    reached += got;
    to.advance(static_cast<size_t>(got));
  }
  return 0;
}

bool checksum_fits(const ReadPlan& plan, size_t index, const std::byte* dest, int64_t& found) {
  if (plan.expected_crcs == nullptr || plan.expected_crcs[index] < 0) return true;
  found = crc32c(dest + plan.dest_offsets[index], static_cast<size_t>(plan.lengths[index]));
  return found == plan.expected_crcs[index];
}

// Looks at what a run brought while it is still in the processor's cache.
ReadResult check(const Ranges& ranges, Run run, int64_t reached) {
  for (size_t place = run.first; place < run.last; ++place) {
    const auto index = static_cast<int64_t>(ranges.index(place));
    if (ranges.end(place) > reached && ranges.length(place) > 0) {
      return {ReadStatus::too_short, index, std::max<int64_t>(0, reached - ranges.begin(place))};
    }
    int64_t found = 0;
    if (!checksum_fits(ranges.plan(), ranges.index(place), ranges.memory(), found)) {
      return {ReadStatus::bad_checksum, index, found};
    }
  }
  return {};
}

// The reading of one call, by several threads that take one run after the other.
//
// A run is first read as far as it is in the page cache. What isn't there is asked for and put off: the disk gets a
// deep queue of requests while the rest is copied, with neither a thread nor a ring of io_uring for each of them.
class Reading {
 public:
  Reading(const int64_t* fds, const int64_t* file_offsets, const ReadPlan& plan, std::byte* dest)
      : ranges_(fds, file_offsets, plan, dest), runs_(runs_of(ranges_)), after_(runs_.size()), bad_(runs_.size()) {}

  // What every thread does. It allocates nothing: a thread that can't would end the process.
  void take_part() {
    PutOff put_off{after_, run_count(), run_count()};
    int64_t asked_bytes = 0;
    for (size_t run; (run = next_.fetch_add(1)) < bad_.load();) {
      if (read(run, true)) continue;
      put_off.add(run);
      asked_bytes += ask_for(runs_[run]);
      if (asked_bytes < kMaxAhead) continue;
      read_all(put_off);
      asked_bytes = 0;
    }
    read_all(put_off);
  }

  size_t run_count() const { return runs_.size(); }
  // The first failure in the order of the ranges: all runs before it were read.
  ReadResult result() const { return result_; }

 private:
  // Runs that wait for the disk, one thread's, as a list through `after`.
  struct PutOff {
    std::vector<size_t>& after;
    size_t first, last;  // at the end of all runs: none

    void add(size_t run) {
      (first == after.size() ? first : after[last]) = run;
      after[last = run] = after.size();
    }
  };

  void read_all(PutOff& put_off) {
    for (; put_off.first < run_count(); put_off.first = after_[put_off.first]) read(put_off.first, false);
  }

  // False if the run has to wait for the disk.
  bool read(size_t index, bool only_cached) {
    if (index >= bad_.load()) return true;
    const Run run = runs_[index];
    int64_t reached = 0;
    const int error = read_pieces(ranges_, run, only_cached, reached);
    // Some file systems can't tell what is cached; theirs are those whose latency makes a deep queue worth most.
    if (only_cached && (error == EAGAIN || error == EOPNOTSUPP)) return false;
    const ReadResult found =
        error == 0 ? check(ranges_, run, reached)
                   : ReadResult{ReadStatus::system_error, static_cast<int64_t>(ranges_.index(run.first)), error};
    if (found.status != ReadStatus::ok) fail(index, found);
    return true;
  }

  int64_t ask_for(Run run) const {
    const int64_t begin = ranges_.begin(run.first);
    const int64_t bytes = ranges_.end(run.last - 1) - begin;
    posix_fadvise(ranges_.fd(run.first), begin, bytes, POSIX_FADV_WILLNEED);
    return bytes;
  }

  void fail(size_t index, const ReadResult& result) {
    std::lock_guard lock(mutex_);
    if (index >= bad_.load()) return;
    bad_.store(index);
    result_ = result;
  }

  const Ranges ranges_;
  const std::vector<Run> runs_;
  std::vector<size_t> after_;  // what each run's thread put off next
  std::atomic<size_t> next_{0};
  std::atomic<size_t> bad_;  // runs from here on need not be read
  std::mutex mutex_;
  ReadResult result_;
};

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

ReadResult read_ranges(const int64_t* fds, const int64_t* file_offsets, const ReadPlan& plan, std::byte* dest,
                       size_t threads) {
  Reading reading(fds, file_offsets, plan, dest);
  std::vector<std::thread> helpers;
  const size_t wanted = std::min(threads, reading.run_count() / kLeastRuns);
  helpers.reserve(wanted);
  try {
    while (helpers.size() + 1 < wanted) helpers.emplace_back([&reading] { reading.take_part(); });
  } catch (const std::exception&) {  // no more threads, or no memory for one: those that are there do it
  }
  reading.take_part();
  for (std::thread& helper : helpers) helper.join();
  return reading.result();
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
