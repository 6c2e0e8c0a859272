// The decoder and its threads on real JPEG files, which the test itself encodes; and on damaged ones.
#ifdef PENSTOCK_HAS_LIBJPEG_TURBO
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "decode_pool.h"
#include "error.h"
#include "jpeg_file.h"

using namespace penstock;
using testing::encode;
using testing::JpegKind;

namespace {

struct Result {
  std::vector<int32_t> statuses;
  std::vector<std::string> messages;
  std::vector<std::byte> pixels;
};

Result decode(DecodePool& pool, const std::vector<std::vector<uint8_t>>& files, int width, int height, Window window,
              int64_t turn = 0) {
  std::vector<uint8_t> data;
  std::vector<int64_t> offsets, lengths;
  for (const auto& file : files) {
    offsets.push_back(static_cast<int64_t>(data.size()));
    lengths.push_back(static_cast<int64_t>(file.size()));
    data.insert(data.end(), file.begin(), file.end());
  }
  const std::vector<Window> windows(files.size(), window);
  const std::vector<uint8_t> flips(files.size(), 0);
  Result result;
  result.statuses.resize(files.size());
  result.pixels.resize(files.size() * static_cast<size_t>(3 * width * height));
  pool.decode({files.size(),
               data.data(),
               offsets.data(),
               lengths.data(),
               windows.data(),
               flips.data(),
               width,
               height,
               {},
               1 << 20,
               turn,
               result.pixels.data(),
               result.statuses.data(),
               &result.messages});
  return result;
}

void all_kinds_decode_alike_on_any_number_of_threads() {
  std::vector<std::vector<uint8_t>> files;
  for (int components : {1, 3, 4}) {
    for (bool progressive : {false, true}) {
      for (int size : {1, 8, 33, 120}) {
        const JpegKind kind = {.width = size, .height = size + 3, .components = components, .progressive = progressive};
        files.push_back(encode(kind));
      }
    }
  }
  for (const Window window : {Window{0, 0, 1, 1}, Window{0, 0, 120, 123}, Window{0.2, 0.3, 0.5, 0.6}}) {
    DecodePool one(1), four(4);
    const Result first = decode(one, files, 17, 23, window), second = decode(four, files, 17, 23, window);
    for (int32_t status : first.statuses) CHECK(status == 0);
    CHECK(first.pixels == second.pixels);
  }
}

void many_callers_share_a_pool() {
  DecodePool pool(3);
  const std::vector<std::vector<uint8_t>> files(9, encode({64, 48}));
  const Result expected = decode(pool, files, 20, 20, {0, 0, 64, 48});
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round)
        CHECK(decode(pool, files, 20, 20, {0, 0, 64, 48}).pixels == expected.pixels);
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(decode(pool, {}, 20, 20, {0, 0, 1, 1}).statuses.empty());
}

void what_is_no_jpeg_and_what_is_too_large_is_told_apart() {
  DecodePool pool(1);
  const std::vector<uint8_t> text = {'h', 'e', 'l', 'l', 'o'};
  auto vast = encode({16, 16});
  for (size_t i = 0; i + 9 < vast.size(); ++i) {
    if (vast[i] == 0xFF && vast[i + 1] == 0xC0)
      std::fill_n(vast.begin() + static_cast<ptrdiff_t>(i) + 5, 4, uint8_t{0xFF});
  }
  auto cut = encode({64, 64});
  cut.resize(cut.size() / 2);
  const Result result = decode(pool, {text, {}, vast, cut}, 8, 8, {0, 0, 16, 16});
  const std::vector<int32_t> expected = {1, 1, 3, 2};
  CHECK(result.statuses == expected);
  CHECK(!result.messages[3].empty());
}

// Each further scan of a progressive file costs it a few bytes, and us a walk over the whole picture.
void endless_scans_are_refused() {
  auto file = encode({.width = 64, .height = 64, .progressive = true});
  const auto marker_from = [&](size_t at) {  // the next one that isn't part of a scan's data
    while (file[at] != 0xFF || file[at + 1] == 0 || (file[at + 1] >= 0xD0 && file[at + 1] <= 0xD7)) ++at;
    return at;
  };
  size_t begin = 0;
  while (file[begin] != 0xFF || file[begin + 1] != 0xDA) ++begin;
  const size_t end = marker_from(begin + 2);
  const std::vector<uint8_t> scan(file.begin() + static_cast<ptrdiff_t>(begin),
                                  file.begin() + static_cast<ptrdiff_t>(end));
  for (int i = 0; i < 200; ++i) file.insert(file.begin() + static_cast<ptrdiff_t>(end), scan.begin(), scan.end());
  DecodePool pool(1);
  const Result result = decode(pool, {file}, 8, 8, {0, 0, 64, 64});
  CHECK(result.statuses[0] == 2);
  CHECK(result.messages[0] == "more than 100 scans");
}

// libjpeg keeps the tables of one file for the next, which would show one picture's pixels through another's tables.
void a_file_without_tables_borrows_none() {
  const auto without = encode({.width = 40, .height = 40, .no_tables = true});
  DecodePool pool(1);
  const Result alone = decode(pool, {without}, 8, 8, {0, 0, 40, 40});
  const Result after = decode(pool, {encode({40, 40}), without}, 8, 8, {0, 0, 40, 40});
  CHECK(alone.statuses[0] == 2);
  CHECK(after.statuses[0] == 0 && after.statuses[1] == 2);
}

// A lone component's sampling factors mean nothing, but size what libjpeg delivers at once.
void grey_decodes_alike_whatever_its_sampling() {
  DecodePool pool(1);
  const Window window{0, 0, 60, 60};
  const Result usual = decode(pool, {encode({60, 60, 1})}, 20, 20, window);
  for (int sampling = 2; sampling <= 4; ++sampling) {
    for (bool progressive : {false, true}) {
      const JpegKind kind = {
          .width = 60, .height = 60, .components = 1, .across = sampling, .down = sampling, .progressive = progressive};
      const Result odd = decode(pool, {encode(kind)}, 20, 20, window);
      CHECK(odd.statuses[0] == 0);
      int most = 0;
      for (size_t i = 0; i < odd.pixels.size(); ++i)
        most = std::max(most, std::abs(static_cast<int>(odd.pixels[i]) - static_cast<int>(usual.pixels[i])));
      CHECK(most <= 2);  // resized before or after the conversion to RGB
    }
  }
}

// Random damage: whatever happens, it is reported and nothing outside of the buffers is touched. PENSTOCK_FUZZ_ROUNDS
// makes it longer; under a sanitizer, of course.
void damaged_files_are_harmless() {
  const char* wish = std::getenv("PENSTOCK_FUZZ_ROUNDS");
  const int rounds = wish ? std::atoi(wish) : 2000;
  std::mt19937 random(static_cast<unsigned>(rounds));
  const std::vector<std::vector<uint8_t>> seeds = {encode({40, 30}),
                                                   encode({.width = 33, .height = 17, .progressive = true}),
                                                   encode({20, 20, 1}), encode({20, 20, 4})};
  DecodePool pool(1);
  for (int round = 0; round < rounds; ++round) {
    auto file = seeds[random() % seeds.size()];
    for (unsigned change = random() % 10 + 1; change > 0; --change)
      file[random() % file.size()] = static_cast<uint8_t>(random());
    if (random() % 4 == 0) file.resize(random() % file.size() + 1);
    const double x = random() % 20, y = random() % 20;
    decode(pool, {file}, static_cast<int>(random() % 40 + 1), static_cast<int>(random() % 40 + 1),
           {x, y, random() % 50 + 0.5, random() % 50 + 0.5});
  }
}

void a_pool_that_is_resized_while_it_works_decodes_alike() {
  DecodePool pool(1);
  const std::vector<std::vector<uint8_t>> files(9, encode({64, 48}));
  const Result expected = decode(pool, files, 20, 20, {0, 0, 64, 48});
  std::atomic<bool> done = false;
  std::thread resizer([&] {
    for (int i = 0; !done; ++i) pool.resize(1 + i * 7 % 5);
  });
  for (int round = 0; round < 40; ++round) CHECK(decode(pool, files, 20, 20, {0, 0, 64, 48}).pixels == expected.pixels);
  done = true;
  resizer.join();
  pool.resize(2);
  CHECK(pool.thread_count() == 2);
}

void an_earlier_turn_goes_first_although_it_comes_later() {
  DecodePool pool(1);
  const std::vector<std::vector<uint8_t>> many(5000, encode({64, 48})), one(1, many[0]);
  std::atomic<bool> begun = false, done = false;
  std::thread later([&] {
    begun = true;
    decode(pool, many, 20, 20, {0, 0, 64, 48}, 2);
    done = true;
  });
  while (!begun) std::this_thread::yield();
  decode(pool, one, 20, 20, {0, 0, 64, 48}, 1);
  CHECK(!done);
  later.join();
}

}  // namespace

int main() {
  return testing::run({
      {"all kinds decode alike on any number of threads", all_kinds_decode_alike_on_any_number_of_threads},
      {"many callers share a pool", many_callers_share_a_pool},
      {"a pool that is resized while it works decodes alike", a_pool_that_is_resized_while_it_works_decodes_alike},
      {"an earlier turn goes first although it comes later", an_earlier_turn_goes_first_although_it_comes_later},
      {"what is no JPEG and what is too large is told apart", what_is_no_jpeg_and_what_is_too_large_is_told_apart},
      {"endless scans are refused", endless_scans_are_refused},
      {"a file without tables borrows none", a_file_without_tables_borrows_none},
      {"grey decodes alike whatever its sampling", grey_decodes_alike_whatever_its_sampling},
      {"damaged files are harmless", damaged_files_are_harmless},
  });
}
#else
int main() { return 0; }
#endif
