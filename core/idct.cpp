#include "idct.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

constexpr int kConstantBits = 13;
constexpr int kFirstPassBits = 2;  // the first pass keeps this much more precision
constexpr int kFirstShift = kConstantBits - kFirstPassBits;
constexpr int kSecondShift = kConstantBits + kFirstPassBits + 3;

constexpr int fixed(double value) { return static_cast<int>(value * (1 << kConstantBits) + (value < 0 ? -0.5 : 0.5)); }

// The rotations of the transform, each as the two factors of its two inputs.
struct Rotation {
  int16_t a, b;
};
constexpr int k0_298 = fixed(0.298631336), k0_390 = fixed(0.390180644), k0_541 = fixed(0.541196100),
              k0_765 = fixed(0.765366865), k0_899 = fixed(0.899976223), k1_175 = fixed(1.175875602),
              k1_501 = fixed(1.501321110), k1_847 = fixed(1.847759065), k1_961 = fixed(1.961570560),
              k2_053 = fixed(2.053119869), k2_562 = fixed(2.562915447), k3_072 = fixed(3.072711026);
constexpr Rotation kEven2{k0_541, k0_541 - k1_847};      // of inputs 2 and 6
constexpr Rotation kEven3{k0_541 + k0_765, k0_541};      // of inputs 2 and 6
constexpr Rotation kOdd3{k1_175 - k1_961, k1_175};       // of 7 + 3 and 5 + 1
constexpr Rotation kOdd4{k1_175, k1_175 - k0_390};       // of 7 + 3 and 5 + 1
constexpr Rotation kOdd7{k0_298 - k0_899, -k0_899};      // of 7 and 1
constexpr Rotation kOdd1{-k0_899, k1_501 - k0_899};      // of 7 and 1
constexpr Rotation kOdd5{k2_053 - k2_562, -k2_562};      // of 5 and 3
constexpr Rotation kOddThird{-k2_562, k3_072 - k2_562};  // of 5 and 3

int16_t wrapped(int value) { return static_cast<int16_t>(value); }

int32_t rotate(int16_t x, int16_t y, Rotation by) {
  return static_cast<int32_t>(static_cast<uint32_t>(x * by.a) + static_cast<uint32_t>(y * by.b));
}

// One column. Sums may wrap, as they do in SIMD lanes: only what no encoder writes is that large.
template <int kShift>
void transform_plain(const int16_t (&in)[8], int16_t (&out)[8]) {
  const auto sum = [](int32_t a, int32_t b) { return static_cast<uint32_t>(a) + static_cast<uint32_t>(b); };
  const uint32_t even0 = static_cast<uint32_t>(wrapped(in[0] + in[4])) << kConstantBits;
  const uint32_t even1 = static_cast<uint32_t>(wrapped(in[0] - in[4])) << kConstantBits;
  const auto even2 = static_cast<uint32_t>(rotate(in[2], in[6], kEven2));
  const auto even3 = static_cast<uint32_t>(rotate(in[2], in[6], kEven3));
  const uint32_t even[4] = {even0 + even3, even1 + even2, even1 - even2, even0 - even3};
  const int16_t z3 = wrapped(in[7] + in[3]);
  const int16_t z4 = wrapped(in[5] + in[1]);
  const int32_t odd3 = rotate(z3, z4, kOdd3);
  const int32_t odd4 = rotate(z3, z4, kOdd4);
  const uint32_t odd[4] = {sum(rotate(in[7], in[1], kOdd1), odd4), sum(rotate(in[5], in[3], kOddThird), odd3),
                           sum(rotate(in[5], in[3], kOdd5), odd4), sum(rotate(in[7], in[1], kOdd7), odd3)};
  const auto descale = [](uint32_t value) {
    const int32_t rounded = static_cast<int32_t>(value + (1U << (kShift - 1))) >> kShift;
    return static_cast<int16_t>(std::clamp<int32_t>(rounded, INT16_MIN, INT16_MAX));
  };
  for (int i = 0; i < 4; ++i) {
    out[i] = descale(even[i] + odd[i]);
    out[7 - i] = descale(even[i] - odd[i]);
  }
}

uint8_t sample(int16_t value) { return static_cast<uint8_t>(std::clamp<int>(value, -128, 127) + 128); }

#if defined(__x86_64__)
#define PENSTOCK_AVX2 __attribute__((target("avx2"), always_inline)) inline

PENSTOCK_AVX2 __m256i factors(Rotation by) {
  return _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(by.a)) |
                                                static_cast<uint32_t>(static_cast<uint16_t>(by.b)) << 16));
}

struct Wide {  // sixteen sums: the first and the second four of each block
  __m256i low, high;
};

PENSTOCK_AVX2 Wide rotate(Wide pairs, Rotation by) {
  const __m256i both = factors(by);
  return {_mm256_madd_epi16(pairs.low, both), _mm256_madd_epi16(pairs.high, both)};
}
PENSTOCK_AVX2 Wide pair(__m256i x, __m256i y) { return {_mm256_unpacklo_epi16(x, y), _mm256_unpackhi_epi16(x, y)}; }
PENSTOCK_AVX2 Wide scaled(__m256i x) {  // x << kConstantBits
  const Wide raised = pair(_mm256_setzero_si256(), x);
  return {_mm256_srai_epi32(raised.low, 16 - kConstantBits), _mm256_srai_epi32(raised.high, 16 - kConstantBits)};
}
PENSTOCK_AVX2 Wide add(Wide a, Wide b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
PENSTOCK_AVX2 Wide subtract(Wide a, Wide b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
template <int kShift>
PENSTOCK_AVX2 __m256i descale(Wide a) {
  return _mm256_packs_epi32(_mm256_srai_epi32(a.low, kShift), _mm256_srai_epi32(a.high, kShift));
}

// All columns of both blocks.
template <int kShift>
PENSTOCK_AVX2 void transform(__m256i (&v)[8]) {
  const Wide even26 = pair(v[2], v[6]);
  const __m256i half = _mm256_set1_epi32(1 << (kShift - 1));
  const Wide rounding{half, half};
  const Wide even0 = add(scaled(_mm256_add_epi16(v[0], v[4])), rounding);
  const Wide even1 = add(scaled(_mm256_sub_epi16(v[0], v[4])), rounding);
  const Wide even2 = rotate(even26, kEven2);
  const Wide even3 = rotate(even26, kEven3);
  const Wide odd34 = pair(_mm256_add_epi16(v[7], v[3]), _mm256_add_epi16(v[5], v[1]));
  const Wide odd3 = rotate(odd34, kOdd3);
  const Wide odd4 = rotate(odd34, kOdd4);
  const Wide odd71 = pair(v[7], v[1]);
  const Wide odd53 = pair(v[5], v[3]);
  const Wide even[4] = {add(even0, even3), add(even1, even2), subtract(even1, even2), subtract(even0, even3)};
  const Wide odd[4] = {add(rotate(odd71, kOdd1), odd4), add(rotate(odd53, kOddThird), odd3),
                       add(rotate(odd53, kOdd5), odd4), add(rotate(odd71, kOdd7), odd3)};
  for (int i = 0; i < 4; ++i) {
    v[i] = descale<kShift>(add(even[i], odd[i]));
    v[7 - i] = descale<kShift>(subtract(even[i], odd[i]));
  }
}

PENSTOCK_AVX2 void transpose(__m256i (&v)[8]) {  // each block by itself
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi16(v[i], v[i + 4]);
    a[2 * i + 1] = _mm256_unpackhi_epi16(v[i], v[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
    b[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = _mm256_unpacklo_epi16(b[i], b[i + 4]);
    v[2 * i + 1] = _mm256_unpackhi_epi16(b[i], b[i + 4]);
  }
}

PENSTOCK_AVX2 __m256i both(const int16_t* first, const int16_t* second) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
}

__attribute__((target("avx2"))) void inverse_dct_avx2(int16_t* coefficients, const BlockTarget* targets) {
  __m256i v[8];
  for (int i = 0; i < 8; ++i) {
    v[i] = _mm256_mullo_epi16(both(coefficients + i * 8, coefficients + kBlockSize + i * 8),
                              both(targets[0].quantization + i * 8, targets[1].quantization + i * 8));
  }
  for (int i = 0; i < 8; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(coefficients) + i, _mm256_setzero_si256());
  transform<kFirstShift>(v);
  transpose(v);
  transform<kSecondShift>(v);
  transpose(v);
  const __m256i centre = _mm256_set1_epi8(static_cast<char>(0x80));
  for (int i = 0; i < 8; i += 2) {
    const __m256i rows = _mm256_xor_si256(_mm256_packs_epi16(v[i], v[i + 1]), centre);
    const __m128i first = _mm256_castsi256_si128(rows);
    const __m128i second = _mm256_extracti128_si256(rows, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(targets[0].at + i * targets[0].stride), first);
    _mm_storeh_pd(reinterpret_cast<double*>(targets[0].at + (i + 1) * targets[0].stride), _mm_castsi128_pd(first));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(targets[1].at + i * targets[1].stride), second);
    _mm_storeh_pd(reinterpret_cast<double*>(targets[1].at + (i + 1) * targets[1].stride), _mm_castsi128_pd(second));
  }
}
#undef PENSTOCK_AVX2
const bool kHasAvx2 = __builtin_cpu_supports("avx2");
#endif

}  // namespace

void inverse_dct_plain(const int16_t* coefficients, const BlockTarget& target) {
  int16_t work[kBlockSize];
  int16_t in[8], out[8];
  for (int x = 0; x < 8; ++x) {
    for (int y = 0; y < 8; ++y) in[y] = wrapped(coefficients[y * 8 + x] * target.quantization[y * 8 + x]);
    transform_plain<kFirstShift>(in, out);
    for (int y = 0; y < 8; ++y) work[y * 8 + x] = out[y];
  }
  for (int y = 0; y < 8; ++y) {
    std::memcpy(in, work + y * 8, sizeof in);
    transform_plain<kSecondShift>(in, out);
    for (int x = 0; x < 8; ++x) target.at[y * target.stride + x] = sample(out[x]);
  }
}

void inverse_dct(int16_t* coefficients, const BlockTarget* targets) {
#if defined(__x86_64__)
  if (kHasAvx2) return inverse_dct_avx2(coefficients, targets);
#endif
  for (int i = 0; i < 2; ++i) inverse_dct_plain(coefficients + i * kBlockSize, targets[i]);
  std::fill_n(coefficients, 2 * kBlockSize, int16_t{0});
}

void inverse_dct_flat(int16_t* coefficients, const BlockTarget* targets) {
  for (int i = 0; i < 2; ++i) {
    const BlockTarget& target = targets[i];
    // What both passes make of a single coefficient.
    const int level = wrapped(coefficients[i * kBlockSize] * target.quantization[0]) * (1 << kFirstPassBits);
    const int kept = std::clamp<int>(level, INT16_MIN, INT16_MAX);
    const auto value = static_cast<int16_t>((kept + (1 << (kFirstPassBits + 2))) >> (kFirstPassBits + 3));
    for (int y = 0; y < 8; ++y) std::memset(target.at + y * target.stride, sample(value), 8);
    coefficients[i * kBlockSize] = 0;
  }
}

}  // namespace penstock
