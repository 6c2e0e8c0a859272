#include "segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "error.h"

namespace penstock {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

[[noreturn]] void refuse(const std::string& what, int error) {
  throw Error(ErrorCode::out_of_memory, what + ": " + std::strerror(error));
}

// Maps the whole of it, on a boundary of huge pages when it is large enough to have some.
std::byte* map_whole(int fd, uint64_t bytes, bool writable) {
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  const int flags = MAP_SHARED | MAP_NORESERVE;
  void* data = MAP_FAILED;
  if (bytes < kHugePage) {
    data = mmap(nullptr, bytes, protection, flags, fd, 0);
  } else {
    void* room = mmap(nullptr, bytes + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) refuse("can't map a segment of " + std::to_string(bytes) + " bytes", errno);
    const auto begin = reinterpret_cast<uintptr_t>(room);
    const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
    data = mmap(reinterpret_cast<void*>(aligned), bytes, protection, flags | MAP_FIXED, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      munmap(room, bytes + kHugePage);
      refuse("can't map a segment of " + std::to_string(bytes) + " bytes", error);
    }
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t end = (aligned + bytes + page - 1) / page * page;
    if (aligned > begin) munmap(room, aligned - begin);
    if (begin + bytes + kHugePage > end) munmap(reinterpret_cast<void*>(end), begin + bytes + kHugePage - end);
    madvise(data, bytes, MADV_HUGEPAGE);  // where it isn't allowed, small pages do
  }
  if (data == MAP_FAILED) refuse("can't map a segment of " + std::to_string(bytes) + " bytes", errno);
  madvise(data, bytes, MADV_DONTDUMP);
  return static_cast<std::byte*>(data);
}

struct SharedMapping {
  uint64_t bytes;
  int fd;
  uint64_t id;
};

std::mutex shared_mutex;
uint64_t next_shared_id = 1;

std::map<const std::byte*, SharedMapping>& shared_mappings() {
  static auto* mappings = new std::map<const std::byte*, SharedMapping>;  // outlives whatever is destroyed at exit
  return *mappings;
}

}  // namespace

uint64_t share_mapping(const std::byte* data, uint64_t bytes, int fd) {
  std::lock_guard lock(shared_mutex);
  const uint64_t id = next_shared_id++;
  shared_mappings()[data] = {bytes, fd, id};
  return id;
}

void unshare_mapping(const std::byte* data) noexcept {
  std::lock_guard lock(shared_mutex);
  shared_mappings().erase(data);
}

std::optional<Shared> find_shared(uint64_t address, uint64_t length) {
  std::lock_guard lock(shared_mutex);
  auto it = shared_mappings().upper_bound(reinterpret_cast<const std::byte*>(address));
  if (it == shared_mappings().begin()) return std::nullopt;
  --it;
  const uint64_t offset = address - reinterpret_cast<uint64_t>(it->first);
  const SharedMapping& mapping = it->second;
  if (offset >= mapping.bytes || length > mapping.bytes - offset) return std::nullopt;
  return Shared{mapping.id, mapping.fd, mapping.bytes, offset};
}

std::optional<SharedDescriptor> dup_shared(uint64_t id) {
  std::lock_guard lock(shared_mutex);
  for (const auto& [data, mapping] : shared_mappings()) {
    if (mapping.id != id) continue;
    const int fd = fcntl(mapping.fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) refuse("can't duplicate a segment's descriptor", errno);
    return SharedDescriptor{fd, mapping.bytes};
  }
  return std::nullopt;
}

Segment::Segment(int fd, std::byte* data, uint64_t size, uint64_t id, bool ours)
    : fd_(fd), data_(data), size_(size), id_(id), owner_pid_(ours ? getpid() : 0) {}

Segment::~Segment() {
  if (id_ != 0) unshare_mapping(data_);
  // A peer that still maps it must not keep the memory. A forked child, which shares it, has no say in this.
  if (owner_pid_ == getpid()) {
    fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(size_));
  }
  munmap(data_, size_);
  close(fd_);
}

std::shared_ptr<Segment> Segment::create(uint64_t bytes, Use use) {
  if (bytes == 0) throw Error(ErrorCode::invalid_argument, "a segment has at least one byte");
  if (bytes > (uint64_t{1} << 62)) refuse("can't make a segment of " + std::to_string(bytes) + " bytes", ENOMEM);
  const int fd = memfd_create("penstock-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) refuse("memfd_create", errno);
  std::byte* data = nullptr;
  try {
    if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 || fcntl(fd, F_ADD_SEALS, kSizeSeals) != 0) {
      refuse("can't make a segment of " + std::to_string(bytes) + " bytes", errno);
    }
    data = map_whole(fd, bytes, true);
    if (madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
      // EINVAL: a kernel before 5.14. Anything else: there is no room.
      if (errno != EINVAL || fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0) {
        refuse("no memory for a segment of " + std::to_string(bytes) + " bytes", errno == EFAULT ? ENOMEM : errno);
      }
    }
    // Our own mapping can be written to already. Kernels before 5.1 don't know this seal.
    if (use == Use::look_up) fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL);  // or one peer could lock all others out
    const uint64_t id = use == Use::memory ? share_mapping(data, bytes, fd) : 0;
    return std::shared_ptr<Segment>(new Segment(fd, data, bytes, id, true));
  } catch (...) {
    if (data != nullptr) munmap(data, bytes);
    close(fd);
    throw;
  }
}

std::shared_ptr<Segment> Segment::map(int fd, uint64_t bytes, bool writable) {
  std::byte* data = nullptr;
  try {
    struct stat status{};
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &status) != 0) {
      throw Error(ErrorCode::peer_refused, "a peer's segment must be a memfd whose size is sealed");
    }
    if (bytes == 0 || static_cast<uint64_t>(status.st_size) < bytes) {
      throw Error(ErrorCode::peer_refused, "a peer's segment has " + std::to_string(status.st_size) + " bytes, not " +
                                               std::to_string(bytes) + " as it says");
    }
    data = map_whole(fd, bytes, writable);
    return std::shared_ptr<Segment>(new Segment(fd, data, bytes, 0, false));
  } catch (...) {
    if (data != nullptr) munmap(data, bytes);
    close(fd);
    throw;
  }
}

}  // namespace penstock
