// Memory that other processes can map: a memfd of fixed size, ours or a peer's.
//
// The size is sealed, so that nobody who maps it can be killed by somebody else's truncation. Huge pages where the
// machine allows them. Nothing stays behind in any file system when the processes that map it are gone.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace penstock {

class Segment {
 public:
  enum class Use {
    memory,   // for whoever registers a part of it: find_shared() knows it
    link,     // handed to one peer, who writes to it
    look_up,  // handed to all peers, who can't write to it
  };
  // `bytes` of zeros. Committed at once, so that a machine without room says so here and not by a SIGBUS later.
  static std::shared_ptr<Segment> create(uint64_t bytes, Use use = Use::memory);
  // A peer's: takes the descriptor over, in any case. Refuses one that isn't sealed, or has fewer bytes.
  static std::shared_ptr<Segment> map(int fd, uint64_t bytes, bool writable = true);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_; }
  uint64_t id() const { return id_; }

 private:
  Segment(int fd, std::byte* data, uint64_t size, uint64_t id, bool ours);

  int fd_;
  std::byte* data_;
  uint64_t size_;
  uint64_t id_;      // 0 = not for find_shared()
  pid_t owner_pid_;  // 0 = a peer's
};

// Where mappings that other processes may share lie in this process: segments of our own, and the arenas of budgets.
struct Shared {
  uint64_t id;      // of the segment; never used again in this process
  int fd;           // borrowed: as long as its owner lives
  uint64_t bytes;   // of the whole segment
  uint64_t offset;  // of the address that was looked up
};
uint64_t share_mapping(const std::byte* data, uint64_t bytes, int fd);  // returns its id
void unshare_mapping(const std::byte* data) noexcept;
std::optional<Shared> find_shared(uint64_t address, uint64_t length);
// The descriptor of a segment, duplicated (the caller closes it), and the segment's bytes; nothing = it is gone.
struct SharedDescriptor {
  int fd;
  uint64_t bytes;
};
std::optional<SharedDescriptor> dup_shared(uint64_t id);

}  // namespace penstock
