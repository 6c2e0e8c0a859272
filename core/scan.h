// The entropy-coded data of baseline JPEG files, decoded row by row into planes of samples (ITU-T T.81, annexes A, F).
//
// Sequential Huffman coding with all components in one scan: what cameras and datasets write. It is twice as fast as
// libjpeg-turbo there, and can leave out what a crop doesn't show. It judges nothing: whatever is unusual or damaged
// makes it give up, and libjpeg-turbo has the word.
//
// Threads: a Scan belongs to one at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "huffman.h"
#include "idct.h"

namespace penstock {

struct ScanPart {  // a component, as a unit (T.81's "MCU") holds it
  int blocks_across;
  int blocks_down;
  const HuffmanTable* dc;
  const HuffmanPairs* ac;
  const int16_t* quantization;  // kBlockSize values, row by row
};

struct ScanRows {  // where a row of units leaves a component's samples
  uint8_t* at;     // of the first kept unit; blocks_down * 8 rows
  ptrdiff_t stride;
};

class Scan {
 public:
  static constexpr int kMostParts = 3;

  // `data` begins behind the scan's header and must stay as long as rows are read, the parts' tables too.
  void begin(const uint8_t* data, const uint8_t* end, const ScanPart* parts, int part_count, int units_a_row,
             int restart_interval);
  // The next row of units; those from `first` to `last` - 1 leave samples. False: this data isn't ours to decode,
  // and samples are undefined.
  bool read_row(int first, int last, const ScanRows* rows);

 private:
  template <bool kKeep>
  bool read_units(int count, const ScanRows* rows);
  bool restart();
  void flush();

  BitReader reader_;
  ScanPart parts_[kMostParts] = {};
  int part_count_ = 0;
  int units_a_row_ = 0;
  int restart_interval_ = 0;
  int units_to_restart_ = 0;
  int restart_number_ = 0;
  int16_t predictors_[kMostParts] = {};
  // Blocks wait here for their transform: a processor can't read wide what it has only just written piece by piece.
  static constexpr int kMostPending = 8;
  // Zeros, but for what is pending, and one coefficient behind it.
  alignas(64) int16_t coefficients_[(kMostPending + 1) * kBlockSize] = {};
  BlockTarget targets_[kMostPending] = {};
  bool flat_[kMostPending] = {};
  int pending_ = 0;
};

}  // namespace penstock
