#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "error.h"
#include "pixels.h"

using namespace penstock;

namespace {

// The filter as it is defined, in double precision: all inputs, both axes at once.
double reference(const std::vector<uint8_t>& plane, int width, int height, double x0, double w, int out_w, int ox,
                 double y0, double h, int out_h, int oy) {
  const auto weights = [](double begin, double scale, int out, int inputs) {
    const double centre = begin + (out + 0.5) * scale;
    const double reach = std::max(scale, 1.0);
    std::vector<double> list(static_cast<size_t>(inputs));
    double total = 0;
    for (int i = 0; i < inputs; ++i) {
      list[static_cast<size_t>(i)] = std::max(0.0, 1 - std::abs(i + 0.5 - centre) / reach);
      total += list[static_cast<size_t>(i)];
    }
    for (double& weight : list) weight /= total;
    return list;
  };
  const auto across = weights(x0, w / out_w, ox, width);
  const auto down = weights(y0, h / out_h, oy, height);
  double sum = 0;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      sum += down[static_cast<size_t>(y)] * across[static_cast<size_t>(x)] * plane[static_cast<size_t>(y * width + x)];
    }
  }
  return sum;
}

struct Picture {
  int width, height, channels;
  std::vector<uint8_t> samples;
};

// Feeds a picture to a resizer a few rows at a time and returns the planes.
std::vector<uint8_t> resize(Resizer& resizer, const Picture& picture, double x, double y, double w, double h, int out_w,
                            int out_h, bool flip, int step) {
  resizer.across.assign(picture.width, x, w, out_w, flip);
  resizer.down.assign(picture.height, y, h, out_h, false);
  std::vector<uint8_t> out(static_cast<size_t>(out_w * out_h * picture.channels));
  uint8_t* planes[3];
  for (int c = 0; c < picture.channels; ++c) planes[c] = out.data() + c * out_w * out_h;
  const int skip = std::max(0, static_cast<int>(y - std::max(1.0, h / out_h)));
  const int row = picture.width * picture.channels;
  resizer.begin(picture.channels, skip, planes, out_w, row);
  for (int top = skip; top < picture.height && !resizer.finished(); top += step) {
    const int count = std::min(step, picture.height - top);
    uint8_t* to = resizer.rows(count);
    for (int i = 0; i < count; ++i) {
      std::copy_n(picture.samples.data() + (top + i) * row, row, to + i * resizer.stride());
    }
    resizer.commit(count);
  }
  CHECK(resizer.finished());
  return out;
}

void every_size_agrees_with_the_definition() {
  std::mt19937 random(5);
  Resizer resizer;  // one for all, as in a decoder
  for (int round = 0; round < 120; ++round) {
    Picture picture{
        static_cast<int>(random() % 90 + 1), static_cast<int>(random() % 90 + 1), round % 3 == 2 ? 3 : 1, {}};
    picture.samples.resize(static_cast<size_t>(picture.width * picture.height * picture.channels));
    for (auto& sample : picture.samples) sample = static_cast<uint8_t>(random() % 4 ? random() : random() % 2 * 255);
    const int out_w = static_cast<int>(random() % 70 + 1), out_h = static_cast<int>(random() % 70 + 1);
    double x = 0, y = 0, w = picture.width, h = picture.height;
    if (round % 2) {
      x = static_cast<double>(random() % 1000) / 1000 * (w - 1);
      y = static_cast<double>(random() % 1000) / 1000 * (h - 1);
      w = std::max(0.5, (w - x) * static_cast<double>(random() % 1000 + 1) / 1000);
      h = std::max(0.5, (h - y) * static_cast<double>(random() % 1000 + 1) / 1000);
    }
    const bool flip = random() % 2;
    const auto out = resize(resizer, picture, x, y, w, h, out_w, out_h, flip, static_cast<int>(random() % 20 + 1));
    for (int probe = 0; probe < 40; ++probe) {
      const int ox = static_cast<int>(random()) % out_w, oy = static_cast<int>(random()) % out_h;
      const int px = std::abs(ox), py = std::abs(oy);
      const int c = static_cast<int>(random() % static_cast<unsigned>(picture.channels));
      std::vector<uint8_t> plane;
      for (size_t i = static_cast<size_t>(c); i < picture.samples.size(); i += static_cast<size_t>(picture.channels)) {
        plane.push_back(picture.samples[i]);
      }
      const double exact =
          reference(plane, picture.width, picture.height, x, w, out_w, flip ? out_w - 1 - px : px, y, h, out_h, py);
      const int found = out[static_cast<size_t>(c * out_w * out_h + py * out_w + px)];
      CHECK(std::abs(found - exact) <= 1.0);
    }
  }
}

void a_flat_picture_stays_flat() {
  Resizer resizer;
  for (int value = 0; value < 256; ++value) {
    Picture picture{37, 53, 1, std::vector<uint8_t>(37 * 53, static_cast<uint8_t>(value))};
    for (const auto& [w, h] : {std::pair{37, 53}, {20, 20}, {224, 7}, {1, 1}}) {
      for (uint8_t sample : resize(resizer, picture, 0, 0, 37, 53, w, h, false, 16)) CHECK(sample == value);
    }
  }
}

// Each of a long filter's weights is next to nothing: what they are rounded by must not add up.
void the_longest_reductions_agree_with_the_definition() {
  Resizer resizer;
  std::mt19937 random(3);
  for (const int length : {1000, 8000, 65500}) {
    for (const bool tall : {false, true}) {
      for (const int most : {1, 128, 256}) {  // white, its brighter half, and noise
        const int width = tall ? 3 : length, height = tall ? length : 3;
        Picture picture{width, height, 1, std::vector<uint8_t>(static_cast<size_t>(length) * 3)};
        for (auto& sample : picture.samples) {
          sample = static_cast<uint8_t>(255 - random() % static_cast<unsigned>(most));
        }
        for (const int out : {1, 3, 13}) {
          const int out_w = tall ? 2 : out, out_h = tall ? out : 2;
          const auto planes = resize(resizer, picture, 0, 0, width, height, out_w, out_h, false, 16);
          for (const int end : {0, out_w * out_h - 1}) {
            const double exact =
                reference(picture.samples, width, height, 0, width, out_w, end % out_w, 0, height, out_h, end / out_w);
            CHECK(std::abs(planes[static_cast<size_t>(end)] - exact) <= 1.0);
          }
        }
      }
    }
  }
}

void orientations_agree_with_their_definition() {
  // A 2 x 3 picture, stored as rows ab cd ef, stands upright as written here (Exif 2.32, tag 0x0112).
  const std::vector<uint8_t> stored = {'a', 'b', 'c', 'd', 'e', 'f'};
  const char* upright[] = {"abcdef", "badcfe", "fedcba", "efcdab", "acebdf", "ecafdb", "fdbeca", "bdface"};
  std::vector<uint8_t> planes;
  for (int c = 0; c < 3; ++c) planes.insert(planes.end(), stored.begin(), stored.end());
  for (int orientation = 1; orientation <= 8; ++orientation) {
    std::vector<uint8_t> out(18);
    orient(planes.data(), 2, 3, orientation, out.data());
    for (size_t i = 0; i < 18; ++i) CHECK(out[i] == static_cast<uint8_t>(upright[orientation - 1][i % 6]));
  }
}

void colours_agree_with_bt601() {
  std::vector<uint8_t> ycc, rgb(3 * 4096);
  std::mt19937 random(1);
  for (int i = 0; i < 3 * 4096; ++i) ycc.push_back(static_cast<uint8_t>(random()));
  ycc_to_rgb(ycc.data(), 4096, rgb.data());
  for (size_t i = 0; i < 4096; ++i) {
    const double y = ycc[i], cb = ycc[4096 + i] - 128.0, cr = ycc[8192 + i] - 128.0;
    const double exact[] = {y + 1.402 * cr, y - 0.344136286 * cb - 0.714136286 * cr, y + 1.772 * cb};
    for (size_t c = 0; c < 3; ++c) CHECK(std::abs(rgb[c * 4096 + i] - std::clamp(exact[c], 0.0, 255.0)) <= 0.51);
  }
}

}  // namespace

int main() {
  return testing::run({
      {"every size agrees with the definition", every_size_agrees_with_the_definition},
      {"a flat picture stays flat", a_flat_picture_stays_flat},
      {"the longest reductions agree with the definition", the_longest_reductions_agree_with_the_definition},
      {"orientations agree with their definition", orientations_agree_with_their_definition},
      {"colours agree with BT.601", colours_agree_with_bt601},
  });
}
