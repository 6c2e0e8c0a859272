// JPEG files to resized pixels, without ever holding a whole picture.
//
// Pictures are taken as the planes that the file stores: no chroma upsampling, no colour conversion at full size. Rows
// go straight into resizers, and colour is converted only at the size that was asked for. Baseline files are decoded by
// our own Scan, only as much of them as the window shows. libjpeg-turbo reads all headers, decodes every other kind of
// file, delivers what isn't resized at all, and judges what is damaged.
//
// Threads: a JpegDecoder serves one thread at a time and keeps its buffers from picture to picture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace penstock {

// What a JPEG file says about itself (ITU-T T.81, section B.2; orientation from Exif 2.32, tag 0x0112).
struct JpegHeader {
  int32_t width = 0;  // as stored, before orientation
  int32_t height = 0;
  int32_t components = 0;
  int32_t orientation = 1;  // 1 to 8
};

// Reads no further than the first frame header. False: these bytes are no JPEG file that we know how to decode.
bool read_jpeg_header(const uint8_t* data, size_t size, JpegHeader& header);

// A part of a picture, in pixels of the stored picture; borders may be fractional.
struct Window {
  double x, y, width, height;
};

class JpegDecoder {
 public:
  JpegDecoder();
  ~JpegDecoder();
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  // Decodes `window` of a picture and resizes it to width x height: three planes R, G, B of bytes, without gaps.
  // Returns an empty string, or what is wrong with the file.
  std::string decode(const uint8_t* data, size_t size, const Window& window, int width, int height, bool flip,
                     uint8_t* planes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace penstock
