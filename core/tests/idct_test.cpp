// The fast inverse transform against the plain one, and the plain one against the definition.
#include "idct.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <vector>

#include "check.h"

using namespace penstock;

namespace {

struct Pair {
  alignas(64) int16_t coefficients[2 * kBlockSize] = {};
  int16_t quantization[2][kBlockSize];
  uint8_t samples[2][kBlockSize] = {};

  BlockTarget target(int i) { return {samples[i], kBlockSide, quantization[i]}; }
};

void fill(Pair& pair, std::mt19937& random, int largest, int most_quantization, bool flat) {
  std::uniform_int_distribution<int> coefficient(-largest, largest), step(1, most_quantization);
  for (int i = 0; i < 2 * kBlockSize; ++i) {
    const bool present = i % kBlockSize == 0 || (!flat && random() % 3 != 0);
    pair.coefficients[i] = static_cast<int16_t>(present ? coefficient(random) : 0);
    pair.quantization[i / kBlockSize][i % kBlockSize] = static_cast<int16_t>(step(random));
  }
}

void pairs_agree_with_the_plain_transform() {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    const bool flat = round % 5 == 0;
    Pair pair;
    // From what encoders write to what only damage makes.
    fill(pair, random, std::vector{3, 60, 1024, 32767}[static_cast<size_t>(round % 4)], round % 3 == 0 ? 255 : 8, flat);
    Pair expected = pair;
    for (int i = 0; i < 2; ++i) inverse_dct_plain(pair.coefficients + i * kBlockSize, expected.target(i));
    const BlockTarget targets[2] = {pair.target(0), pair.target(1)};
    flat ? inverse_dct_flat(pair.coefficients, targets) : inverse_dct(pair.coefficients, targets);
    CHECK(std::memcmp(pair.samples, expected.samples, sizeof pair.samples) == 0);
    CHECK(std::all_of(pair.coefficients, pair.coefficients + 2 * kBlockSize, [](int16_t value) { return value == 0; }));
  }
}

// T.81, section A.3.3.
double defined(const Pair& pair, int x, int y) {
  double sum = 0;
  for (int v = 0; v < 8; ++v) {
    for (int u = 0; u < 8; ++u) {
      const double scale = (u == 0 ? std::numbers::sqrt2 / 2 : 1) * (v == 0 ? std::numbers::sqrt2 / 2 : 1);
      sum += scale * pair.coefficients[v * 8 + u] * pair.quantization[0][v * 8 + u] *
             std::cos((2 * x + 1) * u * std::numbers::pi / 16) * std::cos((2 * y + 1) * v * std::numbers::pi / 16);
    }
  }
  return std::clamp(sum / 4 + 128, 0.0, 255.0);
}

void the_plain_transform_agrees_with_the_definition() {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    Pair pair;
    fill(pair, random, 30, 8, false);
    inverse_dct_plain(pair.coefficients, pair.target(0));
    for (int y = 0; y < 8; ++y) {
      for (int x = 0; x < 8; ++x) CHECK(std::abs(pair.samples[0][y * 8 + x] - defined(pair, x, y)) < 1.0);
    }
  }
}

}  // namespace

int main() {
  return testing::run({
      {"pairs agree with the plain transform", pairs_agree_with_the_plain_transform},
      {"the plain transform agrees with the definition", the_plain_transform_agrees_with_the_definition},
  });
}
