// Ways to read many small samples out of shards; bench/read_methods.py builds and runs this.
//
//   read_methods METHOD DEPTH DEST ADVICE CHECK PLACES SHARD...
//
//   METHOD  pread, preadv (neighbours in one call), uring, mmap, scratch (into a buffer in the cache, then streaming
//           stores), core (Penstock's read_ranges)
//   DEPTH   threads (preadv, core), or reads under way at once (uring)
//   DEST    memfd, memfd-huge, anon, anon-huge, or same: every sample into the same 128 KiB
//   ADVICE  none, random, sequential, willneed (for a batch before it is read)
//   CHECK   1: every sample's crc32c is verified after its read, and by core always
//   PLACES  a file of int64s, four a sample in order of delivery: shard, offset, length, crc32c
//
// Batches of 512 are read, sorted by place, into a ring of four regions, about as a loader's batches lie in its budget.
// Prints seconds and processor time as JSON.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "crc.h"
#include "gather.h"

namespace {

constexpr size_t kBatch = 512;
constexpr size_t kRegionBytes = 64 << 20;
constexpr size_t kRegions = 4;
constexpr int64_t kGap = 4096;
constexpr int64_t kRunBytes = 128 << 10;
constexpr size_t kRunVectors = 64;

struct Place {
  int64_t shard, offset, length, crc;
};
struct Target {
  Place place;
  char* dest;
};
// What one call reads: neighbours, and the gaps between them into a scrap buffer.
struct Run {
  int fd = -1;
  int64_t offset = 0, end = 0;
  size_t first = 0, last = 0;
  std::vector<iovec> vectors{};
};

struct Shard {
  int fd;
  const char* map;
};

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

std::vector<Shard> shards;
thread_local char scrap[kGap];

std::vector<Run> runs_of(const std::vector<Target>& batch, bool coalesce) {
  std::vector<Run> runs;
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto& [place, dest] = batch[i];
    const int fd = shards[static_cast<size_t>(place.shard)].fd;
    Run* run = runs.empty() ? nullptr : &runs.back();
    const int64_t gap = run ? place.offset - run->end : -1;
    if (!coalesce || !run || run->fd != fd || gap < 0 || gap > kGap || run->vectors.size() + 2 > kRunVectors ||
        place.offset + place.length - run->offset > kRunBytes) {
      runs.push_back({fd, place.offset, place.offset, i, i});
      run = &runs.back();
    } else if (gap > 0) {
      run->vectors.push_back({scrap, static_cast<size_t>(gap)});
    }
    run->vectors.push_back({dest, static_cast<size_t>(place.length)});
    run->end = place.offset + place.length;
    run->last = i + 1;
  }
  return runs;
}

bool checking = false;

void check(const std::vector<Target>& batch, size_t first, size_t last) {
  for (size_t i = first; checking && i < last; ++i) {
    const auto& [place, dest] = batch[i];
    if (penstock::crc32c(dest, static_cast<size_t>(place.length)) != place.crc) die("crc32c");
  }
}

void read_run(const Run& run) {
  if (preadv(run.fd, run.vectors.data(), static_cast<int>(run.vectors.size()), run.offset) != run.end - run.offset) {
    die("preadv");
  }
}

void by_preadv(const std::vector<Target>& batch, const std::vector<Run>& runs, int threads) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < runs.size();) {
      read_run(runs[i]);
      check(batch, runs[i].first, runs[i].last);
    }
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
}

void by_mmap(const std::vector<Target>& batch) {
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto& [place, dest] = batch[i];
    std::memcpy(dest, shards[static_cast<size_t>(place.shard)].map + place.offset, static_cast<size_t>(place.length));
    check(batch, i, i + 1);
  }
}

#if defined(__x86_64__)
// Stores that don't fetch the line they overwrite.
__attribute__((target("avx512f"))) void stream(char* to, const char* from, size_t size) {
  const size_t head = std::min(size, (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64);
  std::memcpy(to, from, head);
  size_t done = head;
  for (; size - done >= 64; done += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + done), _mm512_loadu_si512(from + done));
  }
  std::memcpy(to + done, from + done, size - done);
}
#else
void stream(char* to, const char* from, size_t size) { std::memcpy(to, from, size); }
#endif

void by_scratch(const std::vector<Target>& batch, const std::vector<Run>& runs) {
  static std::vector<char> buffer(2 * kRunBytes);
  for (const Run& run : runs) {
    const auto size = static_cast<size_t>(run.end - run.offset);
    if (pread(run.fd, buffer.data(), size, run.offset) != static_cast<ssize_t>(size)) die("pread");
    for (size_t i = run.first; i < run.last; ++i) {
      const Place& place = batch[i].place;
      const char* from = buffer.data() + (place.offset - run.offset);
      if (checking && penstock::crc32c(from, static_cast<size_t>(place.length)) != place.crc) die("crc32c");
      stream(batch[i].dest, from, static_cast<size_t>(place.length));
    }
  }
}

void by_core(const std::vector<Target>& batch, char* region, int threads) {
  std::vector<int64_t> fds, offsets, lengths, dests, crcs;
  auto* const base = reinterpret_cast<std::byte*>(region);
  for (const auto& [place, dest] : batch) {
    fds.push_back(shards[static_cast<size_t>(place.shard)].fd);
    offsets.push_back(place.offset);
    lengths.push_back(place.length);
    dests.push_back(reinterpret_cast<std::byte*>(dest) - base);
    crcs.push_back(place.crc);
  }
  const penstock::ReadPlan plan{batch.size(), lengths.data(), dests.data(), crcs.data()};
  const auto result = penstock::read_ranges(fds.data(), offsets.data(), plan, base, static_cast<size_t>(threads));
  if (result.status != penstock::ReadStatus::ok) die("read_ranges");
}

class Ring {
 public:
  explicit Ring(unsigned depth) {
    io_uring_params params{};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    fd_ = static_cast<int>(syscall(__NR_io_uring_setup, depth, &params));
    if (fd_ < 0) die("io_uring_setup");
    const size_t ring = std::max(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                                 params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    base_ = static_cast<char*>(map(ring, IORING_OFF_SQ_RING));
    entries_ = static_cast<io_uring_sqe*>(map(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
    params_ = params;
  }

  void submit(const Run& run, size_t index) {
    const unsigned tail = *at(params_.sq_off.tail);
    const unsigned slot = tail & *at(params_.sq_off.ring_mask);
    io_uring_sqe& entry = entries_[slot];
    entry = {};
    entry.opcode = IORING_OP_READV;
    entry.fd = run.fd;
    entry.off = static_cast<uint64_t>(run.offset);
    entry.addr = reinterpret_cast<uint64_t>(run.vectors.data());
    entry.len = static_cast<unsigned>(run.vectors.size());
    entry.user_data = index;
    at(params_.sq_off.array)[slot] = slot;
    __atomic_store_n(at(params_.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    ++queued_;
  }

  // Hands over what is queued, waits for one, and tells of all that are done.
  void reap(const std::function<void(size_t, int)>& done) {
    const long sent = syscall(__NR_io_uring_enter, fd_, queued_, 1, IORING_ENTER_GETEVENTS, nullptr, 0);
    if (sent < 0) die("io_uring_enter");
    queued_ -= static_cast<unsigned>(sent);
    unsigned head = *at(params_.cq_off.head);
    const auto* found = reinterpret_cast<io_uring_cqe*>(base_ + params_.cq_off.cqes);
    while (head != __atomic_load_n(at(params_.cq_off.tail), __ATOMIC_ACQUIRE)) {
      const io_uring_cqe& entry = found[head & *at(params_.cq_off.ring_mask)];
      done(entry.user_data, entry.res);
      ++head;
    }
    __atomic_store_n(at(params_.cq_off.head), head, __ATOMIC_RELEASE);
  }

 private:
  void* map(size_t bytes, off_t offset) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, offset);
    if (at == MAP_FAILED) die("mmap of the ring");
    return at;
  }
  unsigned* at(unsigned offset) { return reinterpret_cast<unsigned*>(base_ + offset); }

  int fd_ = -1;
  io_uring_params params_{};
  char* base_ = nullptr;
  io_uring_sqe* entries_ = nullptr;
  unsigned queued_ = 0;
};

void by_uring(const std::vector<Target>& batch, const std::vector<Run>& runs, size_t depth) {
  static Ring ring(static_cast<unsigned>(depth));
  size_t next = 0, under_way = 0;
  while (next < runs.size() || under_way > 0) {
    for (; next < runs.size() && under_way < depth; ++next, ++under_way) ring.submit(runs[next], next);
    ring.reap([&](size_t index, int got) {
      if (got != runs[index].end - runs[index].offset) die("short read");
      check(batch, runs[index].first, runs[index].last);
      --under_way;
    });
  }
}

void advise(const std::vector<Run>& runs) {
  for (const Run& run : runs) posix_fadvise(run.fd, run.offset, run.end - run.offset, POSIX_FADV_WILLNEED);
}

char* make_dest(const std::string& kind) {
  const size_t bytes = kRegions * kRegionBytes;
  const bool huge = kind.ends_with("-huge");
  int fd = -1;
  if (kind.starts_with("memfd")) {
    fd = memfd_create("dest", 0);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) die("memfd");
  }
  void* at = mmap(nullptr, bytes + (2 << 20), PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
                  fd, 0);
  if (at == MAP_FAILED) die("mmap");
  if (huge) madvise(at, bytes, MADV_HUGEPAGE);
  const auto address = (reinterpret_cast<uintptr_t>(at) + (2 << 20) - 1) & ~uintptr_t{(2 << 20) - 1};
  return reinterpret_cast<char*>(fd < 0 ? address : reinterpret_cast<uintptr_t>(at));
}

double processor_s() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

std::vector<Place> places_in(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) die(path);
  std::vector<Place> places;
  for (Place place; std::fread(&place, sizeof place, 1, file) == 1;) places.push_back(place);
  std::fclose(file);
  return places;
}

std::vector<Target> batch_at(const std::vector<Place>& places, size_t first, char* dest, bool same) {
  std::vector<Target> batch;
  for (size_t i = first; i < std::min(places.size(), first + kBatch); ++i) {
    batch.push_back({places[i], dest});
    if (!same) dest += places[i].length;
  }
  std::sort(batch.begin(), batch.end(), [](const Target& a, const Target& b) {
    return std::pair(a.place.shard, a.place.offset) < std::pair(b.place.shard, b.place.offset);
  });
  return batch;
}

}  // namespace

int main(int count, char** argument) {
  if (count < 8) return 2;
  const std::string method = argument[1], kind = argument[3], advice = argument[4];
  const int depth = std::atoi(argument[2]);
  checking = std::atoi(argument[5]) != 0;
  const auto places = places_in(argument[6]);
  for (int i = 7; i < count; ++i) {
    const int fd = open(argument[i], O_RDONLY);
    struct stat found{};
    if (fd < 0 || fstat(fd, &found) != 0) die(argument[i]);
    void* map =
        method == "mmap" ? mmap(nullptr, static_cast<size_t>(found.st_size), PROT_READ, MAP_SHARED, fd, 0) : nullptr;
    if (advice == "random") posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    if (advice == "sequential") posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    shards.push_back({fd, static_cast<const char*>(map)});
  }
  char* const dest = make_dest(kind);
  const auto epoch = [&] {
    for (size_t first = 0, region = 0; first < places.size(); first += kBatch, region = (region + 1) % kRegions) {
      const auto batch = batch_at(places, first, dest + region * kRegionBytes, kind == "same");
      const auto runs = method == "core" ? std::vector<Run>() : runs_of(batch, method != "pread");
      if (advice == "willneed") advise(runs);
      if (method == "mmap") {
        by_mmap(batch);
      } else if (method == "scratch") {
        by_scratch(batch, runs);
      } else if (method == "core") {
        by_core(batch, dest + region * kRegionBytes, depth);
      } else if (method == "uring") {
        by_uring(batch, runs, static_cast<size_t>(depth));
      } else {
        by_preadv(batch, runs, depth);
      }
    }
  };
  const double processor_before = processor_s();
  const auto started = std::chrono::steady_clock::now();
  epoch();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
  std::printf("{\"seconds\": %.6f, \"processor_s\": %.6f, \"samples\": %zu}\n", seconds.count(),
              processor_s() - processor_before, places.size());
  return 0;
}
