#include "jpeg.h"

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include <jerror.h>
#include <jpeglib.h>

#include "jpeg_scan.h"
#include "pixels.h"
#include "resample.h"

namespace penstock {
namespace {

constexpr int kMostComponents = Scan::kMostParts;

// libjpeg-turbo can be built with the names of libjpeg 6 or of libjpeg 7 and later.
#if JPEG_LIB_VERSION >= 70
int scaled_width(const jpeg_component_info& part) { return part.DCT_h_scaled_size; }
int scaled_height(const jpeg_component_info& part) { return part.DCT_v_scaled_size; }
int least_scaled_height(const jpeg_decompress_struct& info) { return info.min_DCT_v_scaled_size; }
#else
int scaled_width(const jpeg_component_info& part) { return part.DCT_scaled_size; }
int scaled_height(const jpeg_component_info& part) { return part.DCT_scaled_size; }
int least_scaled_height(const jpeg_decompress_struct& info) { return info.min_DCT_scaled_size; }
#endif

struct Failure {
  jpeg_error_mgr manager;  // first, so that libjpeg's pointer to it is ours
  jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void fail(j_common_ptr info) {
  auto* failure = reinterpret_cast<Failure*>(info->err);
  failure->manager.format_message(info, failure->message);
  longjmp(failure->escape, 1);
}

// Warnings that mean missing or damaged pixels are failures: a half grey picture must not pass for a good one.
void judge_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // trace messages
  switch (info->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_NOT_SEQUENTIAL: fail(info);
    default: return;  // extraneous bytes, odd Adobe markers: the pixels are all there
  }
}

// Progressive files have about ten scans. Each goes over the whole picture, and costs a malicious file next to no
// bytes.
constexpr int kMostScans = 100;

void limit_scans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMostScans) return;
  auto* failure = reinterpret_cast<Failure*>(info->err);
  std::snprintf(failure->message, sizeof failure->message, "more than %d scans", kMostScans);
  longjmp(failure->escape, 1);
}

// How many pixels share a sample along one axis.
int spread(JDIMENSION pixels, JDIMENSION samples) { return pixels > samples ? 2 : 1; }

uint16_t big_endian16(const uint8_t* at) { return static_cast<uint16_t>(at[0] << 8 | at[1]); }

// The orientation tag of an Exif segment's TIFF part, or 1.
int32_t exif_orientation(const uint8_t* tiff, size_t size) {
  if (size < 8) return 1;
  const bool little = tiff[0] == 'I';
  const auto get16 = [&](size_t at) -> uint32_t {
    return little ? tiff[at] | static_cast<uint32_t>(tiff[at + 1]) << 8 : big_endian16(tiff + at);
  };
  const auto get32 = [&](size_t at) -> uint32_t {
    return little ? get16(at) | get16(at + 2) << 16 : get16(at) << 16 | get16(at + 2);
  };
  const size_t directory = get32(4);
  if (directory > size - 2 || size < 2) return 1;
  const uint32_t entries = get16(directory);
  for (uint32_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + size_t{12} * i;
    if (entry + 12 > size) return 1;
    if (get16(entry) != 0x0112) continue;
    const uint32_t value = get16(entry + 8);
    return value >= 1 && value <= 8 ? static_cast<int32_t>(value) : 1;
  }
  return 1;
}

}  // namespace

bool read_jpeg_header(const uint8_t* data, size_t size, JpegHeader& header) {
  if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return false;
  header = {};
  size_t at = 2;
  while (at + 4 <= size) {
    if (data[at] != 0xFF) return false;
    const uint8_t marker = data[at + 1];
    if (marker == 0xFF) {  // fill byte
      ++at;
      continue;
    }
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) {  // stand alone, without a length
      at += 2;
      continue;
    }
    const size_t length = big_endian16(data + at + 2);
    if (length < 2 || at + 2 + length > size) return false;
    const uint8_t* body = data + at + 4;
    const bool frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame) {
      if (length < 8) return false;
      header.height = big_endian16(body + 1);
      header.width = big_endian16(body + 3);
      header.components = body[5];
      // Baseline, extended and progressive, Huffman-coded, 8 bits: what every libjpeg-turbo decodes.
      return marker <= 0xC2 && body[0] == 8 && header.width > 0 && header.height > 0;
    }
    if (marker == 0xD9 || marker == 0xDA) return false;  // end or scan before any frame
    if (marker == 0xE1 && length >= 16 && std::memcmp(body, "Exif\0\0", 6) == 0) {
      header.orientation = exif_orientation(body + 6, length - 8);
    }
    at += 2 + length;
  }
  return false;
}

// The part of the stored picture that a window needs, in whole units, and the height of a unit.
struct Extent {
  int left, right;
  int top;
  int step;
};

struct JpegDecoder::State {
  jpeg_decompress_struct info{};
  Failure failure{};
  jpeg_progress_mgr progress{};
  Resizer resizers[kMostComponents];
  std::vector<uint8_t> ycc;   // three planes at the target's size
  std::vector<uint8_t> line;  // one row of four-component samples
  JpegScan scan;
  int rows_a_step[kMostComponents];
  int rows_left[kMostComponents];

  State() {
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = fail;
    failure.manager.emit_message = judge_message;
    progress.progress_monitor = limit_scans;
  }
  ~State() { jpeg_destroy_decompress(&info); }

  // Everything below runs between setjmp and longjmp: no local may need a destructor.
  bool run(const uint8_t* data, size_t size, const Window& window, int width, int height, bool flip, uint8_t* planes);
  void open(const uint8_t* data, size_t size);
  void choose_scale(const Window& window, int width, int height);
  bool planar() const;
  bool read_scan(const Window& window, int width, int height, bool flip);
  Extent extent_of(const Window& window, int width, int height) const;
  void begin_planes(const Window& window, int width, int height, bool flip, const Extent& extent);
  void commit_planes();
  bool planes_finished() const;
  void read_planar(const Window& window, int width, int height, bool flip);
  void finish_planar(size_t area, uint8_t* planes);
  void read_rows(const Window& window, int width, int height, bool flip, uint8_t* planes);
};

bool JpegDecoder::State::run(const uint8_t* data, size_t size, const Window& window, int width, int height, bool flip,
                             uint8_t* planes) {
  if (setjmp(failure.escape) != 0) {
    const bool no_memory = info.err->msg_code == JERR_OUT_OF_MEMORY;
    jpeg_abort_decompress(&info);
    if (no_memory) throw std::bad_alloc();
    return false;
  }
  open(data, size);
  if (!planar() || (window.width == width && window.height == height)) {
    choose_scale(window, width, height);
    read_rows(window, width, height, flip, planes);
  } else {
    const auto area = static_cast<size_t>(width) * static_cast<size_t>(height);
    if (ycc.size() < area * 3) ycc.resize(area * 3);
    if (!scan.begin(info) || !read_scan(window, width, height, flip)) {
      choose_scale(window, width, height);  // libjpeg still stands at the first scan: ours moves a reader of its own
      read_planar(window, width, height, flip);
    }
    finish_planar(area, planes);
  }
  jpeg_abort_decompress(&info);  // what is left of the file doesn't matter
  return true;
}

void JpegDecoder::State::open(const uint8_t* data, size_t size) {
  // Anew: a decoder that is used again keeps its tables, and lends them to a file that comes without. The first time
  // there is nothing to destroy; creating may fail, and so it is done here.
  jpeg_destroy_decompress(&info);
  jpeg_create_decompress(&info);
  info.progress = &progress;
  jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
  jpeg_read_header(&info, TRUE);
  info.dct_method = JDCT_ISLOW;
  jpeg_calc_output_dimensions(&info);
}

// libjpeg's inverse DCT can halve, quarter or eighth a picture for less than nothing. (The other eighths that libjpeg
// offers have no SIMD code and cost more than decoding everything.) It is left a reduction by two or more to smooth,
// since a block's own average is a coarser filter than the triangle: closer to the target, the pixels would suffer.
void JpegDecoder::State::choose_scale(const Window& window, int width, int height) {
  double reduction = std::min(window.width / width, window.height / height);
  info.scale_denom = 8;
  if (info.num_components == 4) reduction = 1;  // ink is mixed after this, and not linearly
  info.scale_num = reduction >= 16 ? 1 : reduction >= 8 ? 2 : reduction >= 4 ? 4 : 8;
}

bool JpegDecoder::State::planar() const {
  const bool grey = info.jpeg_color_space == JCS_GRAYSCALE && info.num_components == 1;
  const bool colour = info.jpeg_color_space == JCS_YCbCr && info.num_components == 3;
  const jpeg_component_info* components = info.comp_info;
  for (int c = 1; c < info.num_components; ++c) {
    if (components[c].h_samp_factor != 1 || components[c].v_samp_factor != 1) return false;
  }
  return (grey || colour) && components[0].h_samp_factor <= 2 && components[0].v_samp_factor <= 2;
}

bool JpegDecoder::State::read_scan(const Window& window, int width, int height, bool flip) {
  const Extent extent = extent_of(window, width, height);
  begin_planes(window, width, height, flip, extent);
  for (int y = 0; y < extent.top; y += extent.step) {
    if (!scan.read_row(0, 0, nullptr)) return false;
  }
  const int first = extent.left / scan.unit_width(), last = extent.right / scan.unit_width();
  ScanRows rows[kMostComponents];
  while (!planes_finished()) {
    for (int c = 0; c < info.num_components; ++c) rows[c] = {resizers[c].rows(rows_a_step[c]), resizers[c].stride()};
    if (!scan.read_row(first, last, rows)) return false;
    commit_planes();
  }
  return true;
}

Extent JpegDecoder::State::extent_of(const Window& window, int width, int height) const {
  const int unit_width = scan.unit_width(), unit_height = scan.unit_height();
  // No filter reaches further than this from the window, in pixels; chroma samples stand for two.
  const double reach_x = 2 * window.width / width + 4, reach_y = 2 * window.height / height + 4;
  const auto left = static_cast<int>(std::max(0.0, window.x - reach_x));
  const auto right = static_cast<int>(std::min<double>(info.image_width, window.x + window.width + reach_x));
  const auto top = static_cast<int>(std::max(0.0, window.y - reach_y));
  return {left / unit_width * unit_width, (right + unit_width - 1) / unit_width * unit_width,
          top / unit_height * unit_height, unit_height};
}

// Planes cover the picture's area, whose right and bottom borders may cut their last samples in two.
void JpegDecoder::State::begin_planes(const Window& window, int width, int height, bool flip, const Extent& extent) {
  const auto area = static_cast<size_t>(width) * static_cast<size_t>(height);
  for (int c = 0; c < info.num_components; ++c) {
    const jpeg_component_info& part = info.comp_info[c];
    const double scale_x = 1.0 * part.h_samp_factor * scaled_width(part) / (info.max_h_samp_factor * DCTSIZE);
    const double scale_y = 1.0 * part.v_samp_factor * scaled_height(part) / (info.max_v_samp_factor * DCTSIZE);
    const auto left = static_cast<int>(extent.left * scale_x), right = static_cast<int>(extent.right * scale_x);
    const auto top = static_cast<int>(extent.top * scale_y);
    const auto part_width = static_cast<int>(part.downsampled_width);
    const auto part_height = static_cast<int>(part.downsampled_height);
    Resizer& resizer = resizers[c];
    if (c == 2) {  // both chroma planes are sampled alike
      resizer.across = resizers[1].across;
      resizer.down = resizers[1].down;
    } else {
      resizer.across.assign(std::min(part_width, right) - left, window.x * scale_x - left, window.width * scale_x,
                            width, flip, spread(info.output_width, part.downsampled_width));
      resizer.down.assign(part_height, window.y * scale_y, window.height * scale_y, height, false,
                          spread(info.output_height, part.downsampled_height));
    }
    uint8_t* plane = ycc.data() + area * static_cast<size_t>(c);
    resizer.begin(1, top, &plane, width, right - left);
    rows_a_step[c] = static_cast<int>(extent.step * scale_y);
    rows_left[c] = part_height - top;
  }
}

void JpegDecoder::State::commit_planes() {
  for (int c = 0; c < info.num_components; ++c) {
    const int rows = std::min(rows_a_step[c], rows_left[c]);
    resizers[c].commit(rows);
    rows_left[c] -= rows;
  }
}

bool JpegDecoder::State::planes_finished() const {
  return std::all_of(resizers, resizers + info.num_components, [](const Resizer& part) { return part.finished(); });
}

void JpegDecoder::State::read_planar(const Window& window, int width, int height, bool flip) {
  info.raw_data_out = TRUE;
  info.do_fancy_upsampling = FALSE;
  info.out_color_space = info.jpeg_color_space;
  jpeg_start_decompress(&info);
  const int unit_width = info.max_h_samp_factor * DCTSIZE, step_rows = info.max_v_samp_factor * DCTSIZE;
  const int whole_width = (static_cast<int>(info.image_width) + unit_width - 1) / unit_width * unit_width;
  begin_planes(window, width, height, flip, {0, whole_width, 0, step_rows});
  JSAMPROW row_pointers[kMostComponents][2 * DCTSIZE];
  JSAMPARRAY component_rows[kMostComponents];
  const auto step = static_cast<JDIMENSION>(info.max_v_samp_factor * least_scaled_height(info));
  while (info.output_scanline < info.output_height && !planes_finished()) {
    for (int c = 0; c < info.num_components; ++c) {
      uint8_t* rows = resizers[c].rows(rows_a_step[c]);
      for (int i = 0; i < rows_a_step[c]; ++i) row_pointers[c][i] = rows + i * resizers[c].stride();
      component_rows[c] = row_pointers[c];
    }
    jpeg_read_raw_data(&info, component_rows, step);
    commit_planes();
  }
}

void JpegDecoder::State::finish_planar(size_t area, uint8_t* planes) {
  if (info.num_components == 1) {
    for (size_t c = 0; c < 3; ++c) std::memcpy(planes + area * c, ycc.data(), area);
  } else {
    ycc_to_rgb(ycc.data(), area, planes);
  }
}

void JpegDecoder::State::read_rows(const Window& window, int width, int height, bool flip, uint8_t* planes) {
  const bool inverted_ink = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.raw_data_out = FALSE;
  info.do_fancy_upsampling = TRUE;
  info.out_color_space = inverted_ink ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  // Blocks shrink by exactly this, also where the picture's size isn't a multiple of theirs.
  const double scale = static_cast<double>(least_scaled_height(info)) / DCTSIZE;
  const double left = window.x * scale, columns = window.width * scale;
  const double top = window.y * scale, rows = window.height * scale;
  const auto bottom = static_cast<JDIMENSION>(
      std::min<double>(info.output_height, std::ceil(top + rows + std::max(1.0, rows / height))));
  const double reach_x = std::max(1.0, columns / width), reach_y = std::max(1.0, rows / height);
  auto crop_x = static_cast<JDIMENSION>(std::max(0.0, std::floor(left - reach_x)));
  auto crop_width =
      static_cast<JDIMENSION>(std::min<double>(info.output_width, std::ceil(left + columns + reach_x)) - crop_x);
  if (crop_width < info.output_width) jpeg_crop_scanline(&info, &crop_x, &crop_width);
  const auto skip = static_cast<JDIMENSION>(std::max(0.0, std::floor(top - reach_y)));
  Resizer& resizer = resizers[0];
  resizer.across.assign(static_cast<int>(crop_width), left - crop_x, columns, width, flip);
  resizer.down.assign(static_cast<int>(info.output_height), top, rows, height, false);
  const auto area = static_cast<size_t>(width) * static_cast<size_t>(height);
  uint8_t* targets[3] = {planes, planes + area, planes + 2 * area};
  resizer.begin(3, static_cast<int>(skip), targets, width, static_cast<int>(crop_width) * 3);
  if (skip > 0) jpeg_skip_scanlines(&info, skip);
  if (inverted_ink) line.resize(static_cast<size_t>(crop_width) * 4 + 64);
  JSAMPROW pointers[2 * DCTSIZE];
  while (info.output_scanline < bottom && !resizer.finished()) {
    const int step = static_cast<int>(std::min<JDIMENSION>(DCTSIZE, info.output_height - info.output_scanline));
    uint8_t* room = resizer.rows(step);
    int got = 0;
    while (got < step) {
      uint8_t* row = room + got * resizer.stride();
      if (inverted_ink) {
        pointers[0] = line.data();
        jpeg_read_scanlines(&info, pointers, 1);
        cmyk_to_rgb(line.data(), crop_width, info.saw_Adobe_marker != 0, row);
        ++got;
        continue;
      }
      for (int i = got; i < step; ++i) pointers[i - got] = room + i * resizer.stride();
      got += static_cast<int>(jpeg_read_scanlines(&info, pointers, static_cast<JDIMENSION>(step - got)));
    }
    resizer.commit(step);
  }
}

JpegDecoder::JpegDecoder() : state_(std::make_unique<State>()) {}
JpegDecoder::~JpegDecoder() = default;

std::string JpegDecoder::decode(const uint8_t* data, size_t size, const Window& window, int width, int height,
                                bool flip, uint8_t* planes) {
  if (state_->run(data, size, window, width, height, flip, planes)) return {};
  return state_->failure.message;
}

}  // namespace penstock
