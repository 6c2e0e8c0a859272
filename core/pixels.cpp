#include "pixels.h"

#include <algorithm>
#include <bit>
#include <cstring>

// The loops below are written so that the compiler turns them into SIMD for each kind of processor.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define PENSTOCK_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PENSTOCK_CLONES
#endif

namespace penstock {
namespace {

constexpr int kBits = 16;
constexpr int32_t fixed(double value) { return static_cast<int32_t>(value * (1 << kBits) + 0.5); }
constexpr int32_t kHalf = 1 << (kBits - 1);

inline uint8_t clamp_byte(int32_t value) { return static_cast<uint8_t>(std::min(255, std::max(0, value))); }

inline uint16_t to_bfloat16(float value) {  // round to nearest, ties to even; our values are finite
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The compiler believes `restrict` of parameters alone; without it this is no SIMD, and a sixth of a decode.
PENSTOCK_CLONES
void convert_ycc(const uint8_t* __restrict y_plane, const uint8_t* __restrict cb_plane,
                 const uint8_t* __restrict cr_plane, size_t count, uint8_t* __restrict red, uint8_t* __restrict green,
                 uint8_t* __restrict blue) {
  for (size_t i = 0; i < count; ++i) {
    const int32_t y = (y_plane[i] << kBits) + kHalf;
    const int32_t cb = cb_plane[i] - 128;
    const int32_t cr = cr_plane[i] - 128;
    red[i] = clamp_byte((y + fixed(1.402) * cr) >> kBits);
    green[i] = clamp_byte((y - fixed(0.344136286) * cb - fixed(0.714136286) * cr) >> kBits);
    blue[i] = clamp_byte((y + fixed(1.772) * cb) >> kBits);
  }
}

PENSTOCK_CLONES
void scale_to_float(const uint8_t* __restrict in, size_t count, float scale, float bias, float* __restrict out) {
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]) * scale + bias;
}

PENSTOCK_CLONES
void scale_to_bfloat16(const uint8_t* __restrict in, size_t count, float scale, float bias, uint16_t* __restrict out) {
  for (size_t i = 0; i < count; ++i) out[i] = to_bfloat16(static_cast<float>(in[i]) * scale + bias);
}

}  // namespace

void ycc_to_rgb(const uint8_t* ycc, size_t count, uint8_t* rgb) {
  convert_ycc(ycc, ycc + count, ycc + 2 * count, count, rgb, rgb + count, rgb + 2 * count);
}

void cmyk_to_rgb(const uint8_t* cmyk, size_t count, bool inverted, uint8_t* rgb) {
  const int flip = inverted ? 0 : 255;
  for (size_t i = 0; i < count; ++i) {
    const int white = cmyk[4 * i + 3] ^ flip;  // 255 = no black
    for (size_t c = 0; c < 3; ++c) {
      const int product = (cmyk[4 * i + c] ^ flip) * white + 128;
      rgb[3 * i + c] = static_cast<uint8_t>((product + (product >> 8)) >> 8);  // divided by 255, rounded
    }
  }
}

void orient(const uint8_t* planes, int width, int height, int orientation, uint8_t* out) {
  const bool turned = orientation >= 5;
  const int out_width = turned ? height : width;
  const int out_height = turned ? width : height;
  // Where each upright pixel is found: mirrored across, mirrored down, and with x and y exchanged.
  const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const auto area = static_cast<size_t>(width) * static_cast<size_t>(height);
  for (size_t c = 0; c < 3; ++c) {
    const uint8_t* plane = planes + c * area;
    uint8_t* to = out + c * area;
    for (int y = 0; y < out_height; ++y) {
      for (int x = 0; x < out_width; ++x) {
        int from_x = turned ? y : x;
        int from_y = turned ? x : y;
        if (mirror_x) from_x = width - 1 - from_x;
        if (mirror_y) from_y = height - 1 - from_y;
        *to++ = plane[static_cast<size_t>(from_y) * static_cast<size_t>(width) + static_cast<size_t>(from_x)];
      }
    }
  }
}

void store_pixels(const uint8_t* planes, size_t count, const PixelFormat& format, std::byte* out) {
  if (format.is_planes()) {
    if (reinterpret_cast<std::byte*>(const_cast<uint8_t*>(planes)) != out) std::memcpy(out, planes, 3 * count);
    return;
  }
  if (format.layout == Layout::chw) {
    for (size_t c = 0; c < 3; ++c) {
      const uint8_t* plane = planes + c * count;
      if (format.type == PixelType::float32) {
        scale_to_float(plane, count, format.scale[c], format.bias[c], reinterpret_cast<float*>(out) + c * count);
      } else {
        scale_to_bfloat16(plane, count, format.scale[c], format.bias[c], reinterpret_cast<uint16_t*>(out) + c * count);
      }
    }
    return;
  }
  for (size_t c = 0; c < 3; ++c) {
    const uint8_t* plane = planes + c * count;
    for (size_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(plane[i]) * format.scale[c] + format.bias[c];
      switch (format.type) {
        case PixelType::uint8: out[3 * i + c] = static_cast<std::byte>(plane[i]); break;
        case PixelType::float32: reinterpret_cast<float*>(out)[3 * i + c] = value; break;
        case PixelType::bfloat16: reinterpret_cast<uint16_t*>(out)[3 * i + c] = to_bfloat16(value); break;
      }
    }
  }
}

}  // namespace penstock
