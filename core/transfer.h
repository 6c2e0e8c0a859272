// A prepared transfer: which bytes go where, and what became of it.
//
// Planning is pure: `match` pairs the descriptors of two prepared lists and joins neighbours. Each plane acts on that:
// HostTransfer copies inside post(); NetworkTransfer posts messages and is completed by its plane's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "error.h"
#include "registry.h"

namespace penstock {

enum class Operation : int { write = 0, read = 1 };
enum class TransferState : int { idle = 0, active = 1, done = 2, failed = 3 };

struct Descriptor {
  uint64_t address;  // in its owner's process
  uint64_t length;
  Registry::Name name;  // of the registration that it lies in
  std::byte*
      mapped;  // where we can reach it: local memory itself, a peer's mapped region; null = not by load and store
};

// A list of descriptors, all checked against registrations when it was made.
struct Prepared {
  std::vector<Descriptor> descriptors;
  MemoryKind kind = MemoryKind::dram;
  uint32_t device = 0;                             // of the first
  std::vector<std::shared_ptr<Segment>> segments;  // keeps what is mapped mapped
};

struct Piece {
  Descriptor local;  // both of the same length, and each within one registration
  Descriptor remote;
};

// Pairs local[local_indices[i]] with remote[remote_indices[i]]; no indices = all, in order. With `merge`, pairs that
// are neighbours on both sides become one piece. Throws Error(invalid_argument) for indices out of range, counts or
// lengths that differ, and nothing at all.
std::vector<Piece> match(const Prepared& local, const Prepared& remote, const std::vector<uint32_t>* local_indices,
                         const std::vector<uint32_t>* remote_indices, bool merge);

class Transfer {
 public:
  Transfer(Operation operation, std::vector<Piece> pieces);
  virtual ~Transfer() = default;
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Begins it (again); `notification` follows the data to the target, null = none. What can't begin, or failed within
  // the call, is told by the state. Throws Error(transfer_active) while it runs. Never blocks beyond `deadline`, which
  // is also when a transfer that is still running fails.
  virtual TransferState post(const std::string* notification, Deadline deadline) = 0;
  // Where it is; a deadline that has passed makes it failed.
  virtual TransferState poll() = 0;
  // Sleeps until it has ended, or until `until`.
  virtual TransferState wait(Deadline until) = 0;
  // True when no byte of the local memory will be touched any more (a failed transfer may linger until its peer is
  // done or gone).
  virtual bool quiet() = 0;
  // Whether post() returns within microseconds.
  virtual bool brief() const = 0;
  // Whether a post that is still active goes on only in wait() or poll(), by the caller's own hand.
  virtual bool settles_in_wait() const { return false; }

  uint64_t total_bytes() const { return total_bytes_; }
  uint64_t piece_count() const { return pieces_.size(); }
  Operation operation() const { return operation_; }
  Error error() const;  // of a failed one

 protected:
  TransferState fail(const Error& error);  // returns failed

  const Operation operation_;
  const std::vector<Piece> pieces_;
  uint64_t total_bytes_ = 0;
  std::atomic<TransferState> state_{TransferState::idle};
  mutable std::mutex error_mutex_;
  ErrorCode error_code_ = ErrorCode::peer_lost;
  std::string error_text_;
};

}  // namespace penstock
