// Antialiasing resize of planes of bytes, a few rows at a time: a triangle filter as wide as the reduction, in fixed
// point.
//
// The filter is the one that Pillow calls BILINEAR: each output sample is a weighted mean of all input samples within
// one output sample's distance of its centre (within one input sample's when enlarging). It is separable; the vertical
// pass comes first, since it runs along rows of memory, and leaves 15-bit values for the horizontal one. Rows are
// taken as a decoder makes them, and only those that an output still needs are kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace penstock {

template <typename T>
struct SimdAllocator {  // vectors that aligned loads may touch
  using value_type = T;
  SimdAllocator() = default;
  template <typename U>
  explicit SimdAllocator(const SimdAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* pointer, size_t) { ::operator delete(pointer, std::align_val_t{64}); }
  bool operator==(const SimdAllocator&) const { return true; }
};
using AlignedInt16s = std::vector<int16_t, SimdAllocator<int16_t>>;

// What SIMD code may read or write beyond the end of a row, in samples.
constexpr int kRowPadding = 64;

// The weights of one axis: output i is the sum of `taps` inputs from `first[i]` on, each times its weight.
// Weights are fixed point and add up to 1; unused ones are 0. They have 15 bits, those of long filters more.
struct Filter {
  int inputs = 0;
  int outputs = 0;
  int taps = 0;  // weights kept for each output
  int used = 0;  // how many of them any output needs
  int weight_bits = 15;
  std::vector<int32_t> first;
  std::vector<int16_t> weights;  // taps for each output

  // Weights for resampling [begin, begin + length) of `inputs` samples to `outputs` samples; the window may have
  // fractional borders. `flip` mirrors the output. `upsampling` is how often each input sample would have been
  // repeated first: by linear interpolation, as decoders do it to chroma planes. The triangle is as wide as both
  // filters together.
  void assign(int inputs, double begin, double length, int outputs, bool flip, int upsampling = 1);

  bool is_long() const;
  int needed_end(int output) const;  // the first input that outputs up to this one don't need
};

// Resizes a picture of `channels` interleaved samples a pixel into as many planes. Used again and again: its buffers
// grow to what the largest picture needs.
class Resizer {
 public:
  Filter down;  // set both before begin(); `down` must not be flipped, mirror the destination's rows instead
  Filter across;

  // Starts a picture: `planes[c]` is outputs x outputs bytes; the next input row to come is `first_row`. Rows have
  // room for `row_samples` samples: decoders write whole blocks, beyond what the picture has.
  void begin(int channels, int first_row, uint8_t* const* planes, ptrdiff_t out_stride, int row_samples);
  // Room for `count` further rows.
  uint8_t* rows(int count);
  ptrdiff_t stride() const { return stride_; }
  // Takes `count` rows that were written there, and resizes what has become possible.
  void commit(int count);
  bool finished() const { return next_output_ == down.outputs; }

 private:
  void mix(int output);  // the vertical pass
  void emit();           // the horizontal pass over what was mixed
  void mix_columns(const int16_t* rows, ptrdiff_t stride, uint8_t* out);
  bool finished_after(int output) const { return output + 1 == down.outputs; }

  int channels_ = 1;
  ptrdiff_t stride_ = 0;
  int base_row_ = 0;  // which input row stands first in the buffer
  int row_count_ = 0;
  int next_output_ = 0;
  uint8_t* planes_[3] = {};
  ptrdiff_t out_stride_ = 0;
  std::vector<uint8_t> buffer_;
  ptrdiff_t mixed_stride_ = 0;
  ptrdiff_t channel_stride_ = 0;
  int mixed_count_ = 0;
  int next_emitted_ = 0;
  std::vector<int16_t> mixed_;
  std::vector<int16_t> channel_;
  AlignedInt16s turned_;
};

}  // namespace penstock
