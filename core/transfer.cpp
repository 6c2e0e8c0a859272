#include "transfer.h"

#include <algorithm>

namespace penstock {
namespace {

const Descriptor& at(const Prepared& list, const std::vector<uint32_t>* indices, size_t i, const char* side) {
  const size_t index = indices != nullptr ? (*indices)[i] : i;
  if (index >= list.descriptors.size()) {
    throw Error(ErrorCode::invalid_argument, "index " + std::to_string(index) + " of the " + side +
                                                 " side, which has " + std::to_string(list.descriptors.size()) +
                                                 " descriptors");
  }
  return list.descriptors[index];
}

bool follows(const Descriptor& before, const Descriptor& next) {
  return before.address + before.length == next.address && before.name.slot == next.name.slot &&
         before.name.generation == next.name.generation && (before.mapped == nullptr) == (next.mapped == nullptr) &&
         (next.mapped == nullptr || before.mapped + before.length == next.mapped);
}

}  // namespace

std::vector<Piece> match(const Prepared& local, const Prepared& remote, const std::vector<uint32_t>* local_indices,
                         const std::vector<uint32_t>* remote_indices, bool merge) {
  const size_t count = local_indices != nullptr ? local_indices->size() : local.descriptors.size();
  const size_t remote_count = remote_indices != nullptr ? remote_indices->size() : remote.descriptors.size();
  if (count != remote_count || count == 0) {
    throw Error(ErrorCode::invalid_argument, std::to_string(count) + " local descriptors for " +
                                                 std::to_string(remote_count) +
                                                 " remote ones; a transfer needs as many on both sides, at least one");
  }
  std::vector<Piece> pieces;
  pieces.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const Descriptor& from = at(local, local_indices, i, "local");
    const Descriptor& to = at(remote, remote_indices, i, "remote");
    if (from.length != to.length) {
      throw Error(ErrorCode::invalid_argument, "descriptor " + std::to_string(i) + " has " +
                                                   std::to_string(from.length) + " bytes on the local side and " +
                                                   std::to_string(to.length) + " on the remote one");
    }
    if (merge && !pieces.empty() && follows(pieces.back().local, from) && follows(pieces.back().remote, to)) {
      pieces.back().local.length += from.length;
      pieces.back().remote.length += from.length;
    } else {
      pieces.push_back({from, to});
    }
  }
  return pieces;
}

Transfer::Transfer(Operation operation, std::vector<Piece> pieces) : operation_(operation), pieces_(std::move(pieces)) {
  for (const Piece& piece : pieces_) total_bytes_ += piece.local.length;
}

Error Transfer::error() const {
  std::lock_guard lock(error_mutex_);
  return Error(error_code_, error_text_);
}

TransferState Transfer::fail(const Error& error) {
  {
    std::lock_guard lock(error_mutex_);
    error_code_ = error.code;
    error_text_ = error.what();
  }
  state_.store(TransferState::failed, std::memory_order_release);
  return TransferState::failed;
}

}  // namespace penstock
