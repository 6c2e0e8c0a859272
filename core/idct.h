// The inverse discrete cosine transform of JPEG files: blocks of coefficients to blocks of samples.
//
// It is the accurate integer transform that libjpeg calls "islow": Loeffler, Ligtenberg and Moschytz, "Practical fast
// 1-D DCT algorithms with 11 multiplications", ICASSP 1989, with 13-bit constants, first over columns, then over rows.
// Samples are the same to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

constexpr int kBlockSide = 8;
constexpr int kBlockSize = kBlockSide * kBlockSide;

// Where a block of samples goes, and what its coefficients are to be multiplied with.
struct BlockTarget {
  uint8_t* at;
  ptrdiff_t stride;
  const int16_t* quantization;  // kBlockSize values in the coefficients' order
};

// Transforms two blocks, whose coefficients lie one after the other, row by row, and leaves zeros in their place.
void inverse_dct(int16_t* coefficients, const BlockTarget* targets);
// The same for blocks with only a first coefficient.
void inverse_dct_flat(int16_t* coefficients, const BlockTarget* targets);
// One block; the reference that the faster code is tested against.
void inverse_dct_plain(const int16_t* coefficients, const BlockTarget& target);

}  // namespace penstock
