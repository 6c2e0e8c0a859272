// What we know of a peer's registered memory, from its metadata, and where we reach it.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "transfer.h"

namespace penstock {

struct RemoteRange {
  uint64_t address;  // in the peer's process
  uint64_t length;
  uint64_t segment_offset;  // of the address in its segment
};

class RemoteMemory {
 public:
  // A registration of the peer. `segment_id` 0 = memory of its process that isn't a segment.
  void add(Registry::Name name, MemoryKind kind, uint32_t device, uint64_t segment_id,
           const std::vector<RemoteRange>& ranges);
  void clear();
  // Lets go of segments that no registration lies in (any more).
  void prune();
  // Segments that registrations lie in and nobody has mapped yet.
  std::vector<uint64_t> unmapped() const;
  // From now on this segment's memory is reached by load and store; null = it is gone at the peer.
  void map(uint64_t segment_id, std::shared_ptr<Segment> segment);

  // Finds each row's registration. `names`: the registrations that the rows were described with, or null when only
  // addresses are known. Throws Error: not_registered, stale_descriptor, invalid_argument (kinds of memory differ).
  std::shared_ptr<Prepared> prepare(const std::vector<Range>& rows, const std::vector<Registry::Name>* names) const;

 private:
  struct Registration {
    Registry::Name name;
    MemoryKind kind;
    uint32_t device;
    uint64_t segment_id;
  };
  struct Place {
    uint32_t registration;
    uint64_t segment_offset;
  };

  Descriptor describe(size_t row, Range range, const Registry::Name* name, Prepared& into) const;

  mutable std::mutex mutex_;
  std::vector<Registration> registrations_;
  std::vector<Place> places_;                 // of ranges, by tag
  mutable RangeIndex index_;                  // sorts itself when it is searched
  std::map<uint32_t, uint64_t> generations_;  // by slot, the newest that we know
  std::map<uint64_t, std::shared_ptr<Segment>> segments_;
};

// The same for memory of our own.
std::shared_ptr<Prepared> prepare_local(Registry& registry, const std::vector<Range>& rows,
                                        const std::vector<Registry::Name>* names);

}  // namespace penstock
