#include "arena.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "error.h"

using namespace penstock;
using namespace std::chrono_literals;

namespace {

constexpr uint64_t kPage = 4096;

std::unique_ptr<Region> allocate(Ledger& ledger, const std::shared_ptr<Arena>& arena, uint64_t bytes) {
  return arena->allocate(ledger.reserve(bytes, 1min));
}

// What the kernel says is really there.
uint64_t kernel_resident_bytes(const Arena& arena) {
  struct stat status;
  CHECK(fstat(arena.fd(), &status) == 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

bool is_filled(const Region& region, unsigned char value) {
  const auto* data = reinterpret_cast<const unsigned char*>(region.data());
  // Each byte equals the one before it, and the first is right: memcmp does it at full speed under sanitizers too.
  return data[0] == value && std::memcmp(data, data + 1, region.size() - 1) == 0;
}

void a_region_has_its_bytes_and_returns_its_charge() {
  auto ledger = std::make_shared<Ledger>(1 << 20);
  auto arena = std::make_shared<Arena>(1 << 20);
  auto region = allocate(*ledger, arena, 1000);
  CHECK(region->size() == 1000);
  CHECK(reinterpret_cast<uintptr_t>(region->data()) % 64 == 0);
  std::memset(region->data(), 7, region->size());
  CHECK(ledger->statistics().charged_bytes == 1000);
  region.reset();
  CHECK(ledger->statistics().charged_bytes == 0);
  CHECK(arena->live_count() == 0);
}

void a_region_outlives_its_arena_and_ledger() {
  auto ledger = std::make_shared<Ledger>(4096);
  auto arena = std::make_shared<Arena>(4096);
  auto region = allocate(*ledger, arena, 4096);
  ledger.reset();
  arena.reset();
  std::memset(region->data(), 1, region->size());
  CHECK(static_cast<int>(region->data()[4095]) == 1);
}

void two_halves_of_the_budget_fit_again_and_again() {
  auto ledger = std::make_shared<Ledger>(1 << 20);
  auto arena = std::make_shared<Arena>(1 << 20);
  std::unique_ptr<Region> last;
  for (int i = 0; i < 100; ++i) {
    auto next = allocate(*ledger, arena, 1 << 19);
    std::memset(next->data(), i, next->size());
    last = std::move(next);
  }
  CHECK(kernel_resident_bytes(*arena) <= 1 << 20);
}

void warm_pages_are_used_again() {
  auto ledger = std::make_shared<Ledger>(1 << 20);
  auto arena = std::make_shared<Arena>(1 << 20);
  auto first = allocate(*ledger, arena, 500'000);
  const std::byte* place = first->data();
  first.reset();
  for (uint64_t size : {499'000u, 480'001u, 500'000u}) {
    CHECK(allocate(*ledger, arena, size)->data() == place);
  }
}

void an_empty_region_is_a_region() {
  auto ledger = std::make_shared<Ledger>(1);
  auto arena = std::make_shared<Arena>(1);
  auto nothing = allocate(*ledger, arena, 0);
  auto one = allocate(*ledger, arena, 1);
  CHECK(nothing->size() == 0 && one->size() == 1);
  CHECK(nothing->data() != one->data());
}

// Random sizes and lifetimes: regions never overlap, keep their bytes, and the kernel never holds more than allowed.
void random_lives_stay_apart_and_within_the_budget() {
  std::mt19937_64 random(20261122);
  for (const uint64_t total : {uint64_t{1} << 16, uint64_t{1} << 20, uint64_t{5'000'017}}) {
    auto ledger = std::make_shared<Ledger>(total);
    auto arena = std::make_shared<Arena>(total);
    std::vector<std::pair<std::unique_ptr<Region>, unsigned char>> live;
    for (int step = 0; step < 3000; ++step) {
      const uint64_t scale = uint64_t{1} << random() % 23;
      const uint64_t bytes = std::min(total, random() % scale + 1);
      Charge charge;
      while (!ledger->try_reserve(bytes, charge)) {
        std::swap(live[random() % live.size()], live.back());
        const auto& [region, value] = live.back();
        CHECK(is_filled(*region, value));
        live.pop_back();
      }
      auto region = arena->allocate(std::move(charge));
      const auto value = static_cast<unsigned char>(random());
      std::memset(region->data(), value, region->size());
      live.emplace_back(std::move(region), value);
      const uint64_t allowed = total + kPage * (2 * live.size() + 1);
      CHECK(kernel_resident_bytes(*arena) <= allowed);
      CHECK(arena->resident_bytes() >= kernel_resident_bytes(*arena));
    }
  }
}

void many_threads_share_an_arena() {
  auto ledger = std::make_shared<Ledger>(1 << 18);
  auto arena = std::make_shared<Arena>(1 << 18);
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int i = 0; i < 300; ++i) {
        auto region = allocate(*ledger, arena, random() % 100'000 + 1);
        std::memset(region->data(), static_cast<int>(seed), region->size());
        const auto* data = reinterpret_cast<const unsigned char*>(region->data());
        CHECK(data[0] == seed && data[region->size() - 1] == seed);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(ledger->statistics().charged_bytes == 0);
  CHECK(arena->live_count() == 0);
}

}  // namespace

int main() {
  return testing::run({
      {"a region has its bytes and returns its charge", a_region_has_its_bytes_and_returns_its_charge},
      {"a region outlives its arena and ledger", a_region_outlives_its_arena_and_ledger},
      {"two halves of the budget fit again and again", two_halves_of_the_budget_fit_again_and_again},
      {"warm pages are used again", warm_pages_are_used_again},
      {"an empty region is a region", an_empty_region_is_a_region},
      {"random lives stay apart and within the budget", random_lives_stay_apart_and_within_the_budget},
      {"many threads share an arena", many_threads_share_an_arena},
  });
}
