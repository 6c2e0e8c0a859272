// The system calls of read_ranges. preadv2 and posix_fadvise are this file's own here: they go to the kernel, unless a
// test wants them to behave as kernels, disks and file systems sometimes do.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "crc.h"
#include "gather.h"
#include "temporary_file.h"

using namespace penstock;
using testing::random_bytes;
using testing::TemporaryFile;

namespace {

struct Call {
  bool is_advice;
  bool only_cached;
  int64_t offset;
};

constexpr ssize_t kAsTheKernel = -1000;
// Called instead of the kernel, one call at a time; returns what preadv2 returns, or kAsTheKernel.
using Behaviour = std::function<ssize_t(const iovec* pieces, int count, int64_t offset, bool only_cached)>;

std::mutex mutex;
std::vector<Call> calls;
Behaviour behaviour;

ssize_t read_from_kernel(int fd, const iovec* pieces, int count, int64_t offset) {
  return syscall(SYS_preadv2, fd, pieces, count, offset, 0, 0);
}

ssize_t failure(int error) {
  errno = error;
  return -1;
}

}  // namespace

extern "C" ssize_t preadv2(int fd, const iovec* pieces, int count, off_t offset, int flags) {
  const bool only_cached = (flags & RWF_NOWAIT) != 0;
  std::lock_guard lock(mutex);
  calls.push_back({false, only_cached, offset});
  const ssize_t found = behaviour ? behaviour(pieces, count, offset, only_cached) : kAsTheKernel;
  return found == kAsTheKernel ? read_from_kernel(fd, pieces, count, offset) : found;
}

extern "C" int posix_fadvise(int, off_t offset, off_t, int) noexcept {
  std::lock_guard lock(mutex);
  calls.push_back({true, false, offset});
  return 0;
}

namespace {

// Samples of 1000 bytes with `gap` bytes between them, and what reading them comes to.
class Samples {
 public:
  explicit Samples(size_t count, int64_t gap = 512) : content_(random_bytes(count * (1000 + 512))), file_(content_) {
    for (size_t i = 0; i < count; ++i) {
      fds_.push_back(file_.fd());
      offsets_.push_back(static_cast<int64_t>(i) * (1000 + gap));
      lengths_.push_back(1000);
      dests_.push_back(static_cast<int64_t>(i) * 1000);
      crcs_.push_back(crc32c(content_.data() + offsets_.back(), 1000));
    }
  }

  ReadResult read(size_t threads, Behaviour wanted = nullptr) {
    out_.assign(offsets_.size() * 1000, std::byte{0});
    calls.clear();
    behaviour = std::move(wanted);
    const ReadPlan plan{offsets_.size(), lengths_.data(), dests_.data(), crcs_.data()};
    return read_ranges(fds_.data(), offsets_.data(), plan, out_.data(), threads);
  }

  bool arrived() const {
    for (size_t i = 0; i < offsets_.size(); ++i) {
      if (std::memcmp(out_.data() + dests_[i], content_.data() + offsets_[i], 1000) != 0) return false;
    }
    return true;
  }

  int fd() const { return file_.fd(); }
  int64_t offset(size_t index) const { return offsets_[index]; }

 private:
  std::vector<unsigned char> content_;
  TemporaryFile file_;
  std::vector<int64_t> fds_, offsets_, lengths_, dests_, crcs_;
  std::vector<std::byte> out_;
};

size_t count_calls(const std::function<bool(const Call&)>& wanted) {
  return static_cast<size_t>(std::count_if(calls.begin(), calls.end(), wanted));
}

void neighbours_share_a_system_call() {
  Samples samples(1000);
  CHECK(samples.read(1).status == ReadStatus::ok && samples.arrived());
  CHECK(calls.size() == 1000 * (1000 + 512) / (128 << 10) + 1);
  CHECK(count_calls([](const Call& call) { return call.is_advice || !call.only_cached; }) == 0);
}

void calls_may_come_short_and_be_interrupted() {
  Samples samples(1000);
  for (const size_t threads : {1u, 3u}) {
    std::mt19937 random(11);
    const auto result = samples.read(threads, [&](const iovec* pieces, int, int64_t offset, bool only_cached) {
      switch (random() % 4) {
        case 0: return failure(EINTR);
        case 1: return only_cached ? failure(EAGAIN) : kAsTheKernel;
        case 2: return kAsTheKernel;
        default: {
          const iovec some{pieces->iov_base, 1 + random() % pieces->iov_len};
          return read_from_kernel(samples.fd(), &some, 1, offset);
        }
      }
    });
    CHECK(result.status == ReadStatus::ok && samples.arrived());
  }
}

// All that the disk has to bring is asked for before anything waits for it.
void the_disk_gets_all_requests_at_once() {
  for (const int error : {EAGAIN, EOPNOTSUPP}) {
    Samples samples(1000);
    const auto result = samples.read(1, [&](const iovec*, int, int64_t offset, bool only_cached) {
      return only_cached && offset >= samples.offset(200) ? failure(error) : kAsTheKernel;
    });
    CHECK(result.status == ReadStatus::ok && samples.arrived());
    const auto is_advice = [](const Call& call) { return call.is_advice; };
    const auto waits = [](const Call& call) { return !call.is_advice && !call.only_cached; };
    const size_t put_off = count_calls(waits);
    CHECK(put_off >= 8 && count_calls(is_advice) == put_off);
    const auto first_wait = std::find_if(calls.begin(), calls.end(), waits);
    CHECK(std::none_of(first_wait, calls.end(), is_advice));
    for (const Call& call : calls) CHECK(!is_advice(call) || call.offset >= samples.offset(200));
  }
}

void the_first_failure_is_named() {
  Samples samples(1000);
  for (const size_t threads : {1u, 4u}) {
    for (const bool cached : {true, false}) {
      const auto result = samples.read(threads, [&](const iovec*, int, int64_t offset, bool only_cached) {
        if (!cached && only_cached) return failure(EAGAIN);
        return offset >= samples.offset(300) ? failure(EIO) : kAsTheKernel;
      });
      CHECK(result.status == ReadStatus::system_error && result.detail == EIO);
      CHECK(result.index >= 300 && result.index < 300 + (128 << 10) / (1000 + 512) + 1);
      const int64_t named = samples.offset(static_cast<size_t>(result.index));
      CHECK(std::any_of(calls.begin(), calls.end(), [&](const Call& call) { return call.offset == named; }));
      CHECK(count_calls([&](const Call& call) { return call.offset >= samples.offset(300) && call.offset < named; }) ==
            0);
    }
  }
}

void a_file_that_ends_early_ends_the_reading() {
  Samples samples(1000);
  const auto result = samples.read(2, [&](const iovec*, int, int64_t offset, bool) {
    return offset >= samples.offset(500) ? ssize_t{0} : kAsTheKernel;
  });
  CHECK(result.status == ReadStatus::too_short && result.detail == 0);
  CHECK(result.index >= 500 && result.index < 500 + (128 << 10) / (1000 + 512) + 1);
}

}  // namespace

int main() {
  return testing::run({
      {"neighbours share a system call", neighbours_share_a_system_call},
      {"calls may come short and be interrupted", calls_may_come_short_and_be_interrupted},
      {"the disk gets all requests at once", the_disk_gets_all_requests_at_once},
      {"the first failure is named", the_first_failure_is_named},
      {"a file that ends early ends the reading", a_file_that_ends_early_ends_the_reading},
  });
}
