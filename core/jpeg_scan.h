// From a header that libjpeg-turbo has read to a Scan: which files are ours to decode, and their tables.
#pragma once

#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

#include "huffman.h"
#include "idct.h"
#include "scan.h"

namespace penstock {

class JpegScan {
 public:
  // Goes on behind the header that jpeg_read_header() has read. False: nothing for a Scan. Table by table it keeps what
  // the last file had.
  bool begin(const jpeg_decompress_struct& info);

  // See Scan::read_row().
  bool read_row(int first, int last, const ScanRows* rows) { return scan_.read_row(first, last, rows); }
  int unit_width() const { return parts_[0].blocks_across * kBlockSide; }  // pixels
  int unit_height() const { return parts_[0].blocks_down * kBlockSide; }

 private:
  bool assign_part(const jpeg_decompress_struct& info, int c);

  Scan scan_;
  ScanPart parts_[Scan::kMostParts] = {};
  HuffmanTable dc_tables_[NUM_HUFF_TBLS];
  HuffmanPairs ac_pairs_[NUM_HUFF_TBLS];
  int16_t quantization_[Scan::kMostParts][kBlockSize] = {};
};

}  // namespace penstock
