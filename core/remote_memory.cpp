#include "remote_memory.h"

#include <algorithm>
#include <set>
#include <string>

namespace penstock {
namespace {

std::string describe_row(size_t row, Range range) {
  return "descriptor " + std::to_string(row) + " (" + std::to_string(range.length) + " bytes at " +
         std::to_string(range.address) + ")";
}

void check_row(size_t row, Range range) {
  if (range.length == 0) {
    throw Error(ErrorCode::invalid_argument, describe_row(row, range) + " has no bytes; leave it out");
  }
}

void agree(size_t row, MemoryKind kind, uint32_t device, Prepared& into) {
  if (row == 0) {
    into.kind = kind;
    into.device = device;
  } else if (into.kind != kind) {
    throw Error(ErrorCode::invalid_argument, "descriptor " + std::to_string(row) +
                                                 " is of another kind of memory than the first; "
                                                 "prepare DRAM and VRAM apart");
  }
}

}  // namespace

void RemoteMemory::add(Registry::Name name, MemoryKind kind, uint32_t device, uint64_t segment_id,
                       const std::vector<RemoteRange>& ranges) {
  std::lock_guard lock(mutex_);
  const auto registration = static_cast<uint32_t>(registrations_.size());
  registrations_.push_back({name, kind, device, segment_id});
  uint64_t& newest = generations_[name.slot];
  newest = std::max(newest, name.generation);
  for (const RemoteRange& range : ranges) {
    index_.add({range.address, range.length}, places_.size());
    places_.push_back({registration, range.segment_offset});
  }
}

void RemoteMemory::clear() {
  std::lock_guard lock(mutex_);
  registrations_.clear();
  places_.clear();
  index_ = RangeIndex{};
  generations_.clear();
}

void RemoteMemory::prune() {
  std::lock_guard lock(mutex_);
  std::set<uint64_t> used;
  for (const Registration& registration : registrations_) used.insert(registration.segment_id);
  // One that was gone is asked for again: its owner may have registered it anew.
  std::erase_if(segments_, [&](const auto& entry) { return entry.second == nullptr || !used.contains(entry.first); });
}

std::vector<uint64_t> RemoteMemory::unmapped() const {
  std::lock_guard lock(mutex_);
  std::set<uint64_t> ids;
  for (const Registration& registration : registrations_) {
    const uint64_t id = registration.segment_id;
    if (id != 0 && !segments_.contains(id)) ids.insert(id);
  }
  return {ids.begin(), ids.end()};
}

void RemoteMemory::map(uint64_t segment_id, std::shared_ptr<Segment> segment) {
  std::lock_guard lock(mutex_);
  segments_[segment_id] = std::move(segment);
}

Descriptor RemoteMemory::describe(size_t row, Range range, const Registry::Name* name, Prepared& into) const {
  Descriptor descriptor{range.address, range.length, {}, nullptr};
  const bool found = index_.find(range, [&](uint64_t tag, uint64_t begin) {
    const Place& place = places_[tag];
    const Registration& registration = registrations_[place.registration];
    if (name != nullptr && (registration.name.slot != name->slot || registration.name.generation != name->generation)) {
      return false;
    }
    agree(row, registration.kind, registration.device, into);
    descriptor.name = registration.name;
    const auto segment = segments_.find(registration.segment_id);
    if (segment != segments_.end() && segment->second != nullptr) {
      const uint64_t offset = place.segment_offset + (range.address - begin);
      // The offset is the peer's word.
      if (offset > segment->second->size() || range.length > segment->second->size() - offset) return false;
      descriptor.mapped = segment->second->data() + offset;
    }
    return true;
  });
  if (found) return descriptor;
  if (name != nullptr) {
    const auto known = generations_.find(name->slot);
    if (known != generations_.end() && known->second > name->generation) {
      throw Error(ErrorCode::stale_descriptor,
                  describe_row(row, range) + " is of a registration that its owner has closed or renewed");
    }
  }
  throw Error(ErrorCode::not_registered, describe_row(row, range) +
                                             " lies outside of the memory that the peer registered, as far as its "
                                             "metadata tells; load its newest metadata");
}

std::shared_ptr<Prepared> RemoteMemory::prepare(const std::vector<Range>& rows,
                                                const std::vector<Registry::Name>* names) const {
  auto prepared = std::make_shared<Prepared>();
  prepared->descriptors.reserve(rows.size());
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < rows.size(); ++i) {
    check_row(i, rows[i]);
    prepared->descriptors.push_back(describe(i, rows[i], names != nullptr ? &(*names)[i] : nullptr, *prepared));
  }
  for (const auto& [id, segment] : segments_) {
    if (segment != nullptr) prepared->segments.push_back(segment);
  }
  return prepared;
}

std::shared_ptr<Prepared> prepare_local(Registry& registry, const std::vector<Range>& rows,
                                        const std::vector<Registry::Name>* names) {
  auto prepared = std::make_shared<Prepared>();
  prepared->descriptors.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    check_row(i, rows[i]);
    if (names != nullptr && !registry.live((*names)[i])) {
      throw Error(ErrorCode::stale_descriptor,
                  describe_row(i, rows[i]) + " is of a registration that was closed or renewed");
    }
    const auto found = registry.find(rows[i]);
    if (!found) {
      throw Error(ErrorCode::not_registered,
                  describe_row(i, rows[i]) + " lies outside of this agent's registered memory; register() it first");
    }
    agree(i, found->kind, found->device, *prepared);
    std::byte* mapped = found->kind == MemoryKind::dram ? reinterpret_cast<std::byte*>(rows[i].address) : nullptr;
    prepared->descriptors.push_back({rows[i].address, rows[i].length, found->name, mapped});
  }
  return prepared;
}

}  // namespace penstock
