// Our own decoding of JPEG scans against libjpeg-turbo's: what a Scan accepts has to be the same to the bit.
#ifdef PENSTOCK_HAS_LIBJPEG_TURBO
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <utility>
#include <vector>

#include <jerror.h>
#include <jpeglib.h>

#include "check.h"
#include "jpeg_file.h"
#include "jpeg_scan.h"

using namespace penstock;
using testing::encode;
using testing::JpegKind;

namespace {

using Bytes = std::vector<uint8_t>;

struct Planes {
  bool good = false;
  Bytes samples[3];
};

struct Failure {
  jpeg_error_mgr manager;
  jmp_buf escape;
};

void escape(j_common_ptr info) { longjmp(reinterpret_cast<Failure*>(info->err)->escape, 1); }
// It warns of an early end as soon as it looks for more, even when the bits at hand were enough.
void escape_at_warnings(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code != JWRN_JPEG_EOF) escape(info);
}

// Room for whole units around a picture, so that both decoders may write all that they have.
constexpr int kStride = 256;
constexpr int kRows = 16;

// The rows of a picture's planes as one decoder leaves them, cut to what the picture has.
void keep_rows(const jpeg_decompress_struct& info, const Bytes& unit_rows, int c, Planes& planes) {
  const jpeg_component_info& part = info.comp_info[c];
  const size_t have = planes.samples[c].size() / part.downsampled_width;
  const int rows = std::min(part.v_samp_factor * 8, static_cast<int>(part.downsampled_height - have));
  for (int y = 0; y < rows; ++y) {
    const uint8_t* row = unit_rows.data() + y * kStride;
    planes.samples[c].insert(planes.samples[c].end(), row, row + part.downsampled_width);
  }
}

template <typename Read>
Planes decode(const Bytes& file, Read read) {
  Planes planes;
  jpeg_decompress_struct info;
  Failure failure;
  info.err = jpeg_std_error(&failure.manager);
  failure.manager.error_exit = escape;
  failure.manager.emit_message = escape_at_warnings;
  jpeg_create_decompress(&info);
  if (setjmp(failure.escape) == 0) {
    jpeg_mem_src(&info, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_read_header(&info, TRUE);
    // Damage may have made it too large for this test.
    const bool fits = info.image_width <= kStride - 16 && info.num_components <= 3 && info.max_h_samp_factor <= 2 &&
                      info.max_v_samp_factor <= 2;
    planes.good = fits && read(info, planes);
  } else {
    planes.good = false;
  }
  jpeg_destroy_decompress(&info);
  return planes;
}

bool read_with_libjpeg(jpeg_decompress_struct& info, Planes& planes) {
  static Bytes rows[3] = {Bytes(kStride * kRows), Bytes(kStride * kRows), Bytes(kStride * kRows)};
  info.raw_data_out = TRUE;
  info.do_fancy_upsampling = FALSE;
  info.out_color_space = info.jpeg_color_space;
  jpeg_start_decompress(&info);
  JSAMPROW pointers[3][kRows];
  JSAMPARRAY arrays[3];
  for (int c = 0; c < info.num_components; ++c) {
    for (int y = 0; y < kRows; ++y) pointers[c][y] = rows[c].data() + y * kStride;
    arrays[c] = pointers[c];
  }
  while (info.output_scanline < info.output_height) {
    jpeg_read_raw_data(&info, arrays, static_cast<JDIMENSION>(info.max_v_samp_factor * 8));
    for (int c = 0; c < info.num_components; ++c) keep_rows(info, rows[c], c, planes);
  }
  return true;
}

JpegScan& shared_scan() {  // used again and again, as a decoder does
  static JpegScan scan;
  return scan;
}

bool read_with_scan(jpeg_decompress_struct& info, Planes& planes) {
  static Bytes rows[3] = {Bytes(kStride * kRows), Bytes(kStride * kRows), Bytes(kStride * kRows)};
  JpegScan& scan = shared_scan();
  if (!scan.begin(info)) return false;
  jpeg_calc_output_dimensions(&info);
  const int width = static_cast<int>(info.image_width), height = static_cast<int>(info.image_height);
  const int units = (width + scan.unit_width() - 1) / scan.unit_width();
  // A picture of one component comes block by block, whatever its sampling factors.
  const int steps = info.num_components == 1 ? 1 : info.comp_info[0].v_samp_factor;
  if (scan.unit_height() != steps * 8) return false;
  ScanRows targets[3];
  for (int y = 0; y < height; y += scan.unit_height()) {
    for (int c = 0; c < 3; ++c) targets[c] = {rows[c].data(), kStride};
    if (!scan.read_row(0, units, targets)) return false;
    for (int c = 0; c < info.num_components; ++c) {
      if (info.num_components == 1) info.comp_info[c].v_samp_factor = 1;
      keep_rows(info, rows[c], c, planes);
    }
  }
  return true;
}

std::vector<JpegKind> kinds() {
  std::vector<JpegKind> found;
  for (int quality : {30, 92, 100}) {
    for (const auto& [across, down] : {std::pair{1, 1}, {2, 1}, {2, 2}, {1, 2}}) {
      for (int size : {1, 8, 17, 64, 120}) {
        found.push_back({size, size / 2 + 3, 3, across, down, quality, quality == 92, 0, 12});
        found.push_back({size + 1, size, 3, across, down, quality, quality != 92, 3, 60});
      }
    }
    for (int size : {1, 9, 33}) found.push_back({size, size + 2, 1, 1, 1, quality, false, quality == 30 ? 2U : 0U, 30});
  }
  return found;
}

bool same(const Planes& a, const Planes& b) { return std::equal(a.samples, a.samples + 3, b.samples); }

void every_kind_is_the_same_to_the_bit() {
  for (const JpegKind& kind : kinds()) {
    const Bytes file = encode(kind, static_cast<unsigned>(kind.width * 7 + kind.quality));
    const Planes expected = decode(file, read_with_libjpeg), found = decode(file, read_with_scan);
    CHECK(expected.good && found.good);
    CHECK(same(expected, found));
  }
}

// Noise at the highest quality fills blocks to the last coefficient, which no end-of-block code follows then.
void full_blocks_end_where_they_do() {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Bytes file = encode({96, 96, 3, 2, 2, 100, seed % 2 == 0, seed % 3, 120}, seed);
    const Planes expected = decode(file, read_with_libjpeg), found = decode(file, read_with_scan);
    CHECK(found.good && same(expected, found));
  }
}

void codes_that_cannot_be_are_refused() {
  const uint8_t symbols[256] = {};
  const auto refused = [&](std::initializer_list<std::pair<int, int>> lengths) {
    uint8_t counts[17] = {};
    for (const auto& [length, count] : lengths) counts[length] = static_cast<uint8_t>(count);
    return !HuffmanTable().assign(counts, symbols);
  };
  CHECK(!refused({{1, 1}, {2, 1}}));
  CHECK(!refused({{16, 255}}));
  CHECK(refused({{1, 2}}));              // the second is all ones
  CHECK(refused({{1, 1}, {2, 2}}));      // the same
  CHECK(refused({{1, 3}}));              // more than there are
  CHECK(refused({{8, 200}, {9, 200}}));  // more symbols than a byte can name
}

void what_libjpeg_must_judge_is_left_to_it() {
  Bytes whole = encode({64, 64, 3, 2, 2, 90, false, 2, 20}, 1);
  for (size_t cut : {whole.size() / 2, whole.size() - 40}) {
    const Bytes file(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(cut));
    CHECK(!decode(file, read_with_scan).good);
  }
  for (size_t i = 0; i + 1 < whole.size(); ++i) {
    if (whole[i] != 0xFF || whole[i + 1] != 0xD1) continue;
    Bytes file = whole;
    file[i + 1] = 0xD5;  // a restart marker out of turn
    CHECK(!decode(file, read_with_scan).good);
  }
}

// Random damage: what the scan still reads, libjpeg reads without a warning, and both see the same samples.
void damage_never_passes_alone() {
  const char* wish = std::getenv("PENSTOCK_FUZZ_ROUNDS");
  const int rounds = wish ? std::atoi(wish) : 4000;
  std::mt19937 random(static_cast<unsigned>(rounds));
  std::vector<Bytes> seeds;
  for (const JpegKind& kind : kinds()) {
    if (kind.width < 80) seeds.push_back(encode(kind, 5));
  }
  int accepted = 0;
  int overflown = 0;
  for (int round = 0; round < rounds; ++round) {
    Bytes file = seeds[random() % seeds.size()];
    for (unsigned change = random() % 3 + 1; change > 0; --change) {
      // Mostly into the entropy-coded data, which is the latter part.
      const size_t from = random() % 4 == 0 ? 0 : std::min<size_t>(600, file.size() / 2);
      file[from + random() % (file.size() - from)] = static_cast<uint8_t>(random());
    }
    if (random() % 8 == 0) file.resize(random() % file.size() + 1);
    const Planes found = decode(file, read_with_scan);
    if (!found.good) continue;
    ++accepted;
    const Planes expected = decode(file, read_with_libjpeg);
    CHECK(expected.good);
    overflown += same(expected, found) ? 0 : 1;
  }
  // Sums that no encoder can make overflow in libjpeg's own kernels in one way or another.
  CHECK(overflown <= accepted / 100);
  CHECK(accepted > rounds / 20);  // or nothing was tested
}

}  // namespace

int main() {
  return testing::run({
      {"every kind is the same to the bit", every_kind_is_the_same_to_the_bit},
      {"full blocks end where they do", full_blocks_end_where_they_do},
      {"codes that cannot be are refused", codes_that_cannot_be_are_refused},
      {"what libjpeg must judge is left to it", what_libjpeg_must_judge_is_left_to_it},
      {"damage never passes alone", damage_never_passes_alone},
  });
}
#else
int main() { return 0; }
#endif
