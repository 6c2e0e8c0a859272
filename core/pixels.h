// Pixels at the size that was asked for: colour conversion, orientation, and the form that training wants.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

// Three planes of YCbCr to three planes of RGB, `count` samples each (JFIF 1.02: ITU-R BT.601, full range).
void ycc_to_rgb(const uint8_t* ycc, size_t count, uint8_t* rgb);

// A row of CMYK to interleaved RGB, as Pillow does it. `inverted`: 0 means full ink, as Adobe's files have it.
void cmyk_to_rgb(const uint8_t* cmyk, size_t count, bool inverted, uint8_t* rgb);

// Mirrors and turns three planes of width x height (as stored) so that Exif orientation 1 to 8 stands upright.
// The result has swapped sides for 5 to 8.
void orient(const uint8_t* planes, int width, int height, int orientation, uint8_t* out);

enum class Layout : int { chw = 0, hwc = 1 };
enum class PixelType : int { uint8 = 0, float32 = 1, bfloat16 = 2 };

// How a batch of pixels is to look. Real types hold byte * scale[channel] + bias[channel].
struct PixelFormat {
  Layout layout = Layout::chw;
  PixelType type = PixelType::uint8;
  float scale[3] = {1, 1, 1};
  float bias[3] = {0, 0, 0};

  size_t sample_bytes() const { return type == PixelType::uint8 ? 1 : type == PixelType::float32 ? 4 : 2; }
  // Planes can be written where they belong, without another pass.
  bool is_planes() const { return layout == Layout::chw && type == PixelType::uint8; }
};

// Three planes of `count` samples each into the form of `format`.
void store_pixels(const uint8_t* planes, size_t count, const PixelFormat& format, std::byte* out);

}  // namespace penstock
