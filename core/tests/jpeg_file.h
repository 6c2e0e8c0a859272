// JPEG files of any kind, encoded by libjpeg-turbo: waves, and noise where it is asked for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <jpeglib.h>

namespace penstock::testing {

struct JpegKind {
  int width, height;
  int components = 3;        // 1: grey, 3: YCbCr, 4: CMYK
  int across = 0, down = 0;  // samples of the first component for each of the others; 0: as usual
  int quality = 75;
  bool own_codes = false;  // Huffman codes made for this picture, or the standard's
  unsigned restart_units = 0;
  double noise = 0;
  bool progressive = false;
  bool no_tables = false;
};

inline std::vector<uint8_t> encode(const JpegKind& kind, unsigned seed = 0) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &memory, &size);
  info.image_width = static_cast<JDIMENSION>(kind.width);
  info.image_height = static_cast<JDIMENSION>(kind.height);
  info.input_components = kind.components;
  info.in_color_space = kind.components == 1 ? JCS_GRAYSCALE : kind.components == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, kind.quality, TRUE);
  info.optimize_coding = kind.own_codes ? TRUE : FALSE;
  info.restart_interval = kind.restart_units;
  if (kind.progressive) jpeg_simple_progression(&info);
  if (kind.across > 0) info.comp_info[0].h_samp_factor = kind.across;
  if (kind.down > 0) info.comp_info[0].v_samp_factor = kind.down;
  if (kind.no_tables) jpeg_suppress_tables(&info, TRUE);
  jpeg_start_compress(&info, kind.no_tables ? FALSE : TRUE);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<uint8_t> row(static_cast<size_t>(kind.width * kind.components));
  for (int y = 0; y < kind.height; ++y) {
    for (size_t i = 0; i < row.size(); ++i) {
      const double wave = 90 * std::sin(y * 0.1 + static_cast<double>(i) * 0.03);
      const double value = 128 + wave + kind.noise * normal(random);
      row[i] = static_cast<uint8_t>(std::clamp(value, 0.0, 255.0));
    }
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&info, &pointer, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::vector<uint8_t> file(memory, memory + size);
  std::free(memory);
  return file;
}

}  // namespace penstock::testing
