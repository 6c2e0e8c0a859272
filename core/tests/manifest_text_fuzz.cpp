// Feeds anything to the manifest parser. It may refuse, never crash, and what it calls canonical must be so.
//
// With libFuzzer: clang++ -std=c++20 -fsanitize=fuzzer,address,undefined -DPENSTOCK_LIBFUZZER -Icore
//                 core/tests/manifest_text_fuzz.cpp core/manifest_text.cpp
// Without it, the main below mutates seeds: manifest_text_fuzz [rounds] [seed].
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "error.h"
#include "manifest_text.h"

namespace {

// The canonical text of columns whose decode hints were empty, or nothing but a label.
std::string write(const penstock::ManifestColumns& columns, int version) {
  std::string text = "schema_version=" + std::to_string(version) + "\n";
  size_t next_location = 0;
  size_t location_start = 0;
  std::string location;
  for (size_t i = 0; i < columns.offset.size(); ++i) {
    if (columns.location_index[i] == next_location) {
      const auto size = static_cast<size_t>(columns.location_lengths[next_location++]);
      location = columns.location_text.substr(location_start, size);
      location_start += size;
    }
    const auto number = [](int64_t value) { return value < 0 ? std::string() : std::to_string(value); };
    text += std::to_string(i) + "\t" + location + "\t" + number(columns.offset[i]) + "\t" + number(columns.length[i]) +
            "\t";
    if (columns.label_id[i] >= 0) text += "mx8:vision:imagefolder;label_id=" + std::to_string(columns.label_id[i]);
    if (version == 1) {
      char digits[10];
      std::snprintf(digits, sizeof digits, "\t%08x", static_cast<unsigned>(columns.crc32c[i]));
      text += columns.crc32c[i] < 0 ? "\t" : digits;
    }
    text += "\n";
  }
  return text;
}

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "manifest_text_fuzz: %s\n", what);
  std::abort();
}

// Parses in pieces; returns whether the text was accepted.
bool parse(std::string_view text, size_t piece, penstock::ManifestColumns& columns, penstock::ManifestParser& parser) {
  try {
    for (size_t start = 0; start < text.size(); start += piece) parser.feed(text.substr(start, piece));
    parser.finish();
  } catch (const penstock::Error&) {
    return false;
  }
  columns = parser.take();
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  penstock::ManifestParser whole_parser;
  penstock::ManifestColumns whole;
  const bool accepted = parse(text, size + 1, whole, whole_parser);
  penstock::ManifestParser parser;
  penstock::ManifestColumns pieces;
  if (parse(text, 1 + size % 7, pieces, parser) != accepted) broken("the cut decides what is accepted");
  if (!accepted) return 0;
  const size_t rows = whole.offset.size();
  if (pieces.location_text != whole.location_text || pieces.offset != whole.offset) broken("the cut changes rows");
  if (whole.location_index.size() != rows || whole.crc32c.size() != rows || whole.label_id.size() != rows ||
      static_cast<size_t>(whole_parser.row_count()) != rows) {
    broken("columns differ in length");
  }
  penstock::ManifestParser again;
  penstock::ManifestColumns read_back;
  const std::string written = write(whole, whole_parser.version());
  if (!parse(written, written.size(), read_back, again) || !again.canonical()) broken("what was read can't be written");
  if (read_back.location_text != whole.location_text || read_back.length != whole.length ||
      read_back.label_id != whole.label_id || read_back.crc32c != whole.crc32c) {
    broken("what was written reads differently");
  }
  return 0;
}

#ifndef PENSTOCK_LIBFUZZER
namespace {

const char* const kSeeds[] = {
    "schema_version=0\n0\ta\t512\t3\tmx8:vision:imagefolder;label_id=7\n1\ta\t\t\t\n",
    "schema_version=1\n0\tshards/shard-00000.tar\t512\t9\t\t0123abcd\n1\ts3://b/k\t\t\t\t\n",
    "schema_version=1\r\n0\ta\n\n1\tb/\xc3\xa4\t0\t1\n",
};
const char* const kPieces[] = {"\t", "\n", "\r\n", "0", "..", "/", "mx8:vision:imagefolder", ";label_id=", "\xff", " "};

uint64_t state = 1;
size_t draw(size_t below) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<size_t>(state % below);
}

void mutate(std::string& text) {
  const size_t at = draw(text.size() + 1);
  switch (draw(4)) {
    case 0: text.insert(at, kPieces[draw(sizeof kPieces / sizeof *kPieces)]); break;
    case 1: text.insert(at, 1, static_cast<char>(draw(256))); break;
    case 2: text.erase(at, 1 + draw(4)); break;
    default: text.insert(at, text.substr(draw(text.size() + 1), draw(24))); break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 20000;
  state = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (long round = 0; round < rounds; ++round) {
    std::string text = kSeeds[draw(sizeof kSeeds / sizeof *kSeeds)];
    for (size_t i = draw(6); i > 0; --i) mutate(text);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  }
  std::printf("manifest_text_fuzz: %ld rounds, ok\n", rounds);
}
#endif
