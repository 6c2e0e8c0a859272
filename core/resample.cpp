#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

constexpr int kWeightBits = 15;
constexpr int kBetweenBits = 7;      // the vertical pass keeps 8 + 7 bits, which just fit a signed 16-bit lane
constexpr int kBlockRows = 16;       // outputs rows that go through the horizontal pass together
constexpr double kLongReach = 64;    // beyond it, what each product is rounded by would add up to what one can see
constexpr int kLongWeightBits = 23;  // the most with which a sum of weighted bytes fits 32 bits

// Weights of one output: a triangle sampled at `count` places from `start` on, `slope` apart, adding up to 1 << bits.
void weigh(float start, float slope, int count, int bits, int16_t* weights) {
  float total = 0;
  for (int k = 0; k < count; ++k) total += std::max(0.0F, 1 - std::abs(start + static_cast<float>(k) * slope));
  const float unit = total > 0 ? static_cast<float>(1 << bits) / total : 0;
  int rest = 1 << bits;
  int largest = 0;
  for (int k = 0; k < count; ++k) {
    const float exact = std::max(0.0F, 1 - std::abs(start + static_cast<float>(k) * slope)) * unit;
    const int weight = std::min(static_cast<int>(exact + 0.5F), INT16_MAX);
    weights[k] = static_cast<int16_t>(weight);
    rest -= weight;
    if (weight > weights[largest]) largest = k;
  }
  // A flat area stays as it is, but for the one case that a signed lane can't hold: a single weight of 1.
  weights[largest] = static_cast<int16_t>(std::min(weights[largest] + rest, INT16_MAX));
}

// One row of the vertical pass: a weighted sum of `taps` rows of `width` bytes, rounded after every product as
// pmulhrsw does: (a * b + (1 << 14)) >> 15 with a = byte << 7.
void mix_rows_plain(const uint8_t* rows, ptrdiff_t stride, const int16_t* weights, int taps, int width, int16_t* out) {
  for (int x = 0; x < width; ++x) {
    int32_t sum = 0;
    for (int tap = 0; tap < taps; ++tap) {
      sum += ((rows[tap * stride + x] << kBetweenBits) * weights[tap] + (1 << 14)) >> 15;
    }
    out[x] = static_cast<int16_t>(sum);
  }
}

// The horizontal pass over kBlockRows rows of `stride` samples that the vertical pass left.
void mix_columns_plain(const int16_t* rows, ptrdiff_t stride, const Filter& filter, int row_count, uint8_t* out,
                       ptrdiff_t out_stride) {
  for (int y = 0; y < row_count; ++y) {
    for (int i = 0; i < filter.outputs; ++i) {
      const int16_t* in = rows + y * stride + filter.first[static_cast<size_t>(i)];
      const int16_t* weights = filter.weights.data() + static_cast<ptrdiff_t>(i) * filter.taps;
      int32_t sum = 0;
      for (int tap = 0; tap < filter.used; ++tap) sum += (in[tap] * weights[tap] + (1 << 14)) >> 15;
      const int32_t value = (sum + (1 << (kBetweenBits - 1))) >> kBetweenBits;
      out[y * out_stride + i] = static_cast<uint8_t>(std::clamp(value, 0, 255));
    }
  }
}

// The same two passes for long filters, rounded once.
void mix_rows_long(const uint8_t* rows, ptrdiff_t stride, const int16_t* weights, int taps, int bits, int width,
                   int16_t* out) {
  for (int x = 0; x < width; x += kRowPadding) {  // the last step may run into the padding
    int32_t sums[kRowPadding] = {};
    for (int tap = 0; tap < taps; ++tap) {
      const uint8_t* row = rows + tap * stride + x;
      for (int i = 0; i < kRowPadding; ++i) sums[i] += row[i] * weights[tap];
    }
    const int shift = bits - kBetweenBits;
    for (int i = 0; i < kRowPadding; ++i) out[x + i] = static_cast<int16_t>((sums[i] + (1 << (shift - 1))) >> shift);
  }
}

void mix_columns_long(const int16_t* rows, ptrdiff_t stride, const Filter& filter, int row_count, uint8_t* out,
                      ptrdiff_t out_stride) {
  const int shift = filter.weight_bits + kBetweenBits;
  for (int y = 0; y < row_count; ++y) {
    for (int i = 0; i < filter.outputs; ++i) {
      const int first = filter.first[static_cast<size_t>(i)];
      const int taps = std::min(filter.used, filter.inputs - first);
      const int16_t* in = rows + y * stride + first;
      const int16_t* weights = filter.weights.data() + static_cast<ptrdiff_t>(i) * filter.taps;
      int64_t sum = int64_t{1} << (shift - 1);
      for (int tap = 0; tap < taps; ++tap) sum += in[tap] * weights[tap];
      out[y * out_stride + i] = static_cast<uint8_t>(std::clamp<int64_t>(sum >> shift, 0, 255));
    }
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void mix_rows_avx2(const uint8_t* rows, ptrdiff_t stride, const int16_t* weights,
                                                   int taps, int width, int16_t* out) {
  for (int x = 0; x < width; x += 32) {  // the last step may run into the padding
    __m256i low = _mm256_setzero_si256();
    __m256i high = _mm256_setzero_si256();
    for (int tap = 0; tap < taps; ++tap) {
      const __m256i weight = _mm256_set1_epi16(weights[tap]);
      const auto* at = reinterpret_cast<const __m128i*>(rows + tap * stride + x);
      const __m256i a = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(at)), kBetweenBits);
      const __m256i b = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(at + 1)), kBetweenBits);
      low = _mm256_add_epi16(low, _mm256_mulhrs_epi16(a, weight));
      high = _mm256_add_epi16(high, _mm256_mulhrs_epi16(b, weight));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x + 16), high);
  }
}

__attribute__((target("avx2"))) inline void transpose8(const int16_t* in, ptrdiff_t stride, __m128i (&out)[8]) {
  __m128i a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * stride));
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    a[4 * i] = _mm_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = _mm_unpacklo_epi64(a[i], a[i + 4]);
    out[2 * i + 1] = _mm_unpackhi_epi64(a[i], a[i + 4]);
  }
}

// Sixteen rows side by side: turned by 90 degrees, so that the sum over neighbours runs down the lanes as well.
__attribute__((target("avx2"))) void mix_columns_avx2(const int16_t* rows, ptrdiff_t stride, const Filter& filter,
                                                      int16_t* turned, uint8_t* out, ptrdiff_t out_stride) {
  __m128i tile[8];
  for (int x = 0; x < filter.inputs; x += 8) {
    for (int half = 0; half < kBlockRows; half += 8) {
      transpose8(rows + half * stride + x, stride, tile);
      for (int i = 0; i < 8; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(turned + (x + i) * kBlockRows + half), tile[i]);
      }
    }
  }
  alignas(32) int16_t mixed[8 * kBlockRows];
  const __m256i half_unit = _mm256_set1_epi16(1 << (kBetweenBits - 1));
  for (int i = 0; i < filter.outputs; i += 8) {
    const int count = std::min(8, filter.outputs - i);
    for (int k = 0; k < count; ++k) {
      const auto* in = reinterpret_cast<const __m256i*>(turned + filter.first[static_cast<size_t>(i + k)] * kBlockRows);
      const int16_t* weights = filter.weights.data() + static_cast<ptrdiff_t>(i + k) * filter.taps;
      __m256i sum = half_unit;
      for (int tap = 0; tap < filter.used; ++tap) {
        sum = _mm256_adds_epi16(sum, _mm256_mulhrs_epi16(_mm256_load_si256(in + tap), _mm256_set1_epi16(weights[tap])));
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(mixed + k * kBlockRows), _mm256_srai_epi16(sum, kBetweenBits));
    }
    for (int half = 0; half < kBlockRows; half += 8) {
      transpose8(mixed + half, kBlockRows, tile);
      for (int y = 0; y < 8; ++y) {
        const int64_t eight = _mm_cvtsi128_si64(_mm_packus_epi16(tile[y], tile[y]));
        std::memcpy(out + (half + y) * out_stride + i, &eight, static_cast<size_t>(count));
      }
    }
  }
}
const bool kHasAvx2 = __builtin_cpu_supports("avx2");
#endif

void mix_rows(const uint8_t* rows, ptrdiff_t stride, const int16_t* weights, int taps, int width, int16_t* out) {
#if defined(__x86_64__)
  if (kHasAvx2) return mix_rows_avx2(rows, stride, weights, taps, width, out);
#endif
  mix_rows_plain(rows, stride, weights, taps, width, out);
}

}  // namespace

void Filter::assign(int input_count, double begin, double length, int output_count, bool flip, int upsampling) {
  inputs = input_count;
  outputs = output_count;
  const double scale = length / output_count;
  double reach = std::max(scale, 1.0);
  if (upsampling > 1) reach = std::hypot(1.0, std::max(scale, 1.0 / upsampling));  // variances add up
  taps = 2 * static_cast<int>(std::ceil(reach)) + 1;
  weight_bits = kWeightBits;
  // A weight is about 1 / reach, a third more where the picture ends: the more there are, the more bits each can have.
  if (reach > kLongReach) weight_bits = std::min(kLongWeightBits, kWeightBits - 1 + std::ilogb(reach));
  used = 0;
  first.resize(static_cast<size_t>(outputs));
  weights.assign(static_cast<size_t>(outputs) * static_cast<size_t>(taps), 0);
  const auto slope = static_cast<float>(1 / reach);
  for (int i = 0; i < outputs; ++i) {
    const double centre = begin + (i + 0.5) * scale;
    const int low = std::clamp(static_cast<int>(centre - reach + 0.5), 0, inputs - 1);
    const int count = std::max(1, std::min({inputs, static_cast<int>(centre + reach + 0.5), low + taps}) - low);
    const auto place = static_cast<size_t>(flip ? outputs - 1 - i : i);
    first[place] = low;
    used = std::max(used, count);
    weigh(static_cast<float>((low + 0.5 - centre) / reach), slope, count, weight_bits,
          weights.data() + place * static_cast<size_t>(taps));
  }
}

template <typename Buffer>
void grow(Buffer& buffer, ptrdiff_t size) {
  if (buffer.size() < static_cast<size_t>(size)) buffer.resize(static_cast<size_t>(size));
}

bool Filter::is_long() const { return weight_bits > kWeightBits; }

int Filter::needed_end(int output) const { return std::min(inputs, first[static_cast<size_t>(output)] + used); }

void Resizer::begin(int channels, int first_row, uint8_t* const* planes, ptrdiff_t out_stride, int row_samples) {
  channels_ = channels;
  const int samples = std::max(across.inputs * channels, row_samples);
  stride_ = static_cast<ptrdiff_t>(samples + kRowPadding - 1) / kRowPadding * kRowPadding;
  base_row_ = first_row;
  row_count_ = 0;
  next_output_ = 0;
  std::copy_n(planes, channels, planes_);
  out_stride_ = out_stride;
  mixed_count_ = 0;
  next_emitted_ = 0;
  mixed_stride_ = stride_ + kRowPadding;
  channel_stride_ = (static_cast<ptrdiff_t>(across.inputs) + kRowPadding - 1) / kRowPadding * kRowPadding;
  grow(mixed_, mixed_stride_ * kBlockRows);
  grow(channel_, channel_stride_ * kBlockRows);
  grow(turned_, (channel_stride_ + across.taps) * kBlockRows);
}

uint8_t* Resizer::rows(int count) {
  // Rows above the next output's window are of no more use: the rest moves up when the buffer would overflow.
  const auto needed = static_cast<size_t>((row_count_ + count + down.taps) * stride_);
  if (needed > buffer_.size()) {
    const int keep_from = finished() ? base_row_ + row_count_ : down.first[static_cast<size_t>(next_output_)];
    const int drop = std::clamp(keep_from - base_row_, 0, row_count_);
    if (drop > 0)
      std::memmove(buffer_.data(), buffer_.data() + drop * stride_, static_cast<size_t>((row_count_ - drop) * stride_));
    base_row_ += drop;
    row_count_ -= drop;
    const auto least = static_cast<size_t>((row_count_ + count + down.taps) * stride_);
    if (least > buffer_.size()) buffer_.resize(least + static_cast<size_t>(4 * count * stride_));
  }
  return buffer_.data() + row_count_ * stride_;
}

void Resizer::commit(int count) {
  row_count_ += count;
  while (!finished() && down.needed_end(next_output_) <= base_row_ + row_count_) mix(next_output_++);
}

void Resizer::mix(int output) {
  const auto row = static_cast<size_t>(output);
  const uint8_t* top = buffer_.data() + (down.first[row] - base_row_) * stride_;
  const int16_t* weights = down.weights.data() + row * static_cast<size_t>(down.taps);
  const int taps = down.needed_end(output) - down.first[row];
  const int width = across.inputs * channels_;
  int16_t* mixed = mixed_.data() + mixed_count_ * mixed_stride_;
  if (down.is_long()) {
    mix_rows_long(top, stride_, weights, taps, down.weight_bits, width, mixed);
  } else {
    mix_rows(top, stride_, weights, taps, width, mixed);
  }
  if (++mixed_count_ == kBlockRows || finished_after(output)) emit();
}

void Resizer::emit() {
  const int first_output = next_emitted_;
  for (int channel = 0; channel < channels_; ++channel) {
    const int16_t* rows = mixed_.data();
    if (channels_ > 1) {
      for (int y = 0; y < mixed_count_; ++y) {
        const int16_t* from = mixed_.data() + y * mixed_stride_ + channel;
        int16_t* to = channel_.data() + y * channel_stride_;
        for (int x = 0; x < across.inputs; ++x) to[x] = from[x * channels_];
      }
      rows = channel_.data();
    }
    uint8_t* out = planes_[channel] + first_output * out_stride_;
    mix_columns(rows, channels_ > 1 ? channel_stride_ : mixed_stride_, out);
  }
  next_emitted_ += mixed_count_;
  mixed_count_ = 0;
}

void Resizer::mix_columns(const int16_t* rows, ptrdiff_t stride, uint8_t* out) {
  if (across.is_long()) return mix_columns_long(rows, stride, across, mixed_count_, out, out_stride_);
#if defined(__x86_64__)
  if (kHasAvx2 && mixed_count_ == kBlockRows) {
    mix_columns_avx2(rows, stride, across, turned_.data(), out, out_stride_);
    return;
  }
#endif
  mix_columns_plain(rows, stride, across, mixed_count_, out, out_stride_);
}

}  // namespace penstock
