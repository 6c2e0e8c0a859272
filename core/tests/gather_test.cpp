#include "gather.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "crc.h"
#include "error.h"
#include "temporary_file.h"

using namespace penstock;
using testing::random_bytes;
using testing::TemporaryFile;

namespace {

using Int64Vector = std::vector<int64_t>;

// One bit at a time, straight from the definition.
uint32_t reference_crc32c(const unsigned char* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0);
  }
  return ~crc;
}

void every_crc_agrees_with_the_definition() {
  CHECK(crc32c("123456789", 9) == 0xE3069283u);  // the check value of CRC-32/ISCSI
  const auto bytes = random_bytes(30'000);
  std::vector<size_t> sizes = {12'287, 12'288, 12'289, 25'000, 29'900};
  for (size_t size = 0; size < 1700; ++size) sizes.push_back(size);
  std::mt19937 random(5);
  for (const auto& [name, update] : crc32c_implementations()) {
    std::printf("  %s\n", name);
    for (const size_t size : sizes) {
      const auto* data = bytes.data() + random() % 65;  // no implementation may count on an alignment
      const uint32_t expected = reference_crc32c(data, size);
      CHECK(~update(~0u, data, size) == expected);
      const size_t cut = random() % (size + 1);
      CHECK(~update(update(~0u, data, cut), data + cut, size - cut) == expected);
    }
  }
  CHECK(crc32c(bytes.data(), 30'000) == reference_crc32c(bytes.data(), 30'000));
  CHECK(crc32c_implementation() == crc32c_implementations().front().name);
}

void ranges_land_where_they_belong() {
  const auto content = random_bytes(3 << 20);
  const TemporaryFile file(content);
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    Int64Vector offsets, lengths, dests, crcs;
    int64_t position = 0, dest = 0;
    const bool mixed = round % 4 == 3;
    while (true) {
      position += random() % 3 ? random() % 1024 : random() % 100'000;
      const int64_t length = random() % 4 ? random() % 3000 : random() % 700'000;
      if (position + length > static_cast<int64_t>(content.size())) break;
      offsets.push_back(position);
      lengths.push_back(length);
      dests.push_back(dest);
      const uint32_t crc = crc32c(content.data() + position, static_cast<size_t>(length));
      crcs.push_back(random() % 2 ? int64_t{crc} : -1);
      position += length;
      dest += length;
    }
    if (mixed) {
      const auto seed = random();
      for (auto* list : {&offsets, &lengths, &crcs}) std::shuffle(list->begin(), list->end(), std::mt19937(seed));
      dest = 0;
      for (size_t i = 0; i < lengths.size(); ++i) dests[i] = std::exchange(dest, dest + lengths[i]);
    }
    std::vector<std::byte> out(static_cast<size_t>(dest));
    const ReadPlan plan{offsets.size(), lengths.data(), dests.data(), crcs.data()};
    const Int64Vector fds(offsets.size(), file.fd());
    const size_t threads = 1 + static_cast<size_t>(round) % 3;
    CHECK(read_ranges(fds.data(), offsets.data(), plan, out.data(), threads).status == ReadStatus::ok);
    std::vector<std::byte> scattered(out.size());
    for (size_t i = 0; i < offsets.size(); ++i) {
      CHECK(std::memcmp(out.data() + dests[i], content.data() + offsets[i], static_cast<size_t>(lengths[i])) == 0);
    }
    if (mixed) continue;
    for (int64_t start = 0; start < static_cast<int64_t>(content.size());) {
      const int64_t size = std::min<int64_t>(random() % 50'000 + 1, static_cast<int64_t>(content.size()) - start);
      scatter(reinterpret_cast<const std::byte*>(content.data()) + start, start, size, offsets.data(), plan,
              scattered.data());
      start += size;
    }
    CHECK(scattered == out);
    CHECK(verify_crc32c(out.data(), plan) == -1);
  }
}

void ranges_of_several_files_come_in_one_call() {
  const auto first = random_bytes(1000), second = random_bytes(1000);
  const TemporaryFile file(first), other(second);
  const Int64Vector fds{file.fd(), other.fd(), file.fd()}, offsets{0, 100, 200}, lengths{100, 100, 100},
      dests{0, 100, 200};
  std::vector<std::byte> out(300);
  const ReadPlan plan{3, lengths.data(), dests.data(), nullptr};
  CHECK(read_ranges(fds.data(), offsets.data(), plan, out.data()).status == ReadStatus::ok);
  CHECK(std::memcmp(out.data(), first.data(), 100) == 0);
  CHECK(std::memcmp(out.data() + 100, second.data() + 100, 100) == 0);
  CHECK(std::memcmp(out.data() + 200, first.data() + 200, 100) == 0);
}

void a_range_beyond_the_end_is_short() {
  const TemporaryFile file(random_bytes(1000));
  const Int64Vector offsets{0, 500, 900}, lengths{100, 100, 101}, dests{0, 100, 200};
  std::vector<std::byte> out(301);
  const ReadPlan plan{3, lengths.data(), dests.data(), nullptr};
  const Int64Vector fds(offsets.size(), file.fd());
  const ReadResult result = read_ranges(fds.data(), offsets.data(), plan, out.data());
  CHECK(result.status == ReadStatus::too_short && result.index == 2 && result.detail == 100);

  const Int64Vector behind{1000, 5000, 5000}, few{0, 0, 1};
  const ReadPlan beyond{3, few.data(), dests.data(), nullptr};
  const ReadResult nothing = read_ranges(fds.data(), behind.data(), beyond, out.data());
  CHECK(nothing.status == ReadStatus::too_short && nothing.index == 2 && nothing.detail == 0);
}

void a_wrong_checksum_is_named() {
  const auto content = random_bytes(1000);
  const TemporaryFile file(content);
  const Int64Vector offsets{0, 500}, lengths{100, 100}, dests{0, 100};
  const Int64Vector crcs{crc32c(content.data(), 100), 12345};
  std::vector<std::byte> out(200);
  const ReadPlan plan{2, lengths.data(), dests.data(), crcs.data()};
  const Int64Vector fds(offsets.size(), file.fd());
  const ReadResult result = read_ranges(fds.data(), offsets.data(), plan, out.data());
  CHECK(result.status == ReadStatus::bad_checksum && result.index == 1);
  CHECK(result.detail == reference_crc32c(content.data() + 500, 100));
  CHECK(verify_crc32c(out.data(), plan) == 1);
}

void system_errors_carry_their_number() {
  const Int64Vector zero{0}, one{1}, closed_fd{-1};
  std::byte out[1];
  const ReadPlan plan{1, one.data(), zero.data(), nullptr};
  const ReadResult closed = read_ranges(closed_fd.data(), zero.data(), plan, out);
  CHECK(closed.status == ReadStatus::system_error && closed.detail == EBADF);
  const char* missing = "/nonexistent/file";
  CHECK(read_files(&missing, plan, out).detail == ENOENT);
  const char* folder = "/tmp";
  CHECK(read_files(&folder, plan, out).detail == EISDIR);
}

void whole_files_must_have_their_size() {
  const auto content = random_bytes(5000);
  const TemporaryFile file(content), empty({});
  const char* paths[] = {empty.path(), file.path()};
  std::vector<std::byte> out(5001);
  auto read = [&](int64_t first, int64_t second) {
    const Int64Vector lengths{first, second}, dests{0, 0};
    return read_files(paths, {2, lengths.data(), dests.data(), nullptr}, out.data());
  };
  CHECK(read(0, 5000).status == ReadStatus::ok);
  CHECK(std::memcmp(out.data(), content.data(), 5000) == 0);
  CHECK(read(0, 4999).status == ReadStatus::too_long && read(0, 4999).index == 1);
  CHECK(read(0, 5001).status == ReadStatus::too_short && read(0, 5001).detail == 5000);
  CHECK(read(1, 5000).status == ReadStatus::too_short && read(1, 5000).index == 0);
}

void nothing_to_read_is_fine() {
  const ReadPlan plan{0, nullptr, nullptr, nullptr};
  CHECK(read_ranges(nullptr, nullptr, plan, nullptr).status == ReadStatus::ok);
}

}  // namespace

int main() {
  return testing::run({
      {"every crc agrees with the definition", every_crc_agrees_with_the_definition},
      {"ranges land where they belong", ranges_land_where_they_belong},
      {"ranges of several files come in one call", ranges_of_several_files_come_in_one_call},
      {"a range beyond the end is short", a_range_beyond_the_end_is_short},
      {"a wrong checksum is named", a_wrong_checksum_is_named},
      {"system errors carry their number", system_errors_carry_their_number},
      {"whole files must have their size", whole_files_must_have_their_size},
      {"nothing to read is fine", nothing_to_read_is_fine},
  });
}
