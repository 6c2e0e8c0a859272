// Feeds anything to the JPEG decoder, through every route: `scripts/fuzz jpeg` builds and runs it with libFuzzer.
//
// It may refuse, never touch what isn't its own. What two decoders say of the same bytes must be the same, whatever
// they decoded before.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "jpeg.h"

namespace {

constexpr int64_t kMostPixels = 1 << 20;  // the pool's limit stands before the decoder

struct Result {
  std::string message;
  std::vector<uint8_t> planes;
  bool operator==(const Result&) const = default;
};

Result decode(penstock::JpegDecoder& decoder, const uint8_t* data, size_t size, const penstock::Window& window,
              int side, bool flip) {
  Result result;
  result.planes.assign(static_cast<size_t>(3 * side * side), 0);
  result.message = decoder.decode(data, size, window, side, side, flip, result.planes.data());
  if (!result.message.empty()) result.planes.clear();  // undefined
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  penstock::JpegHeader header;
  if (!penstock::read_jpeg_header(data, size, header)) return 0;
  if (int64_t{header.width} * header.height > kMostPixels) return 0;
  static penstock::JpegDecoder used;
  penstock::JpegDecoder fresh;
  const double width = header.width, height = header.height;
  const penstock::Window windows[] = {{0, 0, width, height}, {width * 0.3, height * 0.2, width * 0.5, height * 0.7}};
  for (const penstock::Window& window : windows) {
    for (int side : {3, 29}) {
      const bool flip = size % 2 == 0;
      if (decode(used, data, size, window, side, flip) == decode(fresh, data, size, window, side, flip)) continue;
      std::fprintf(stderr, "jpeg_fuzz: what was decoded before changes the pixels\n");
      std::abort();
    }
  }
  return 0;
}
