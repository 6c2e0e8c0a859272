// What a manifest's text may and may not be. Plain asserts: see tests/property for the comparison with a reference.
#undef NDEBUG
#include "manifest_text.h"

#include <cassert>
#include <cstdio>
#include <string>
#include <vector>

#include "error.h"

using penstock::ManifestColumns;
using penstock::ManifestParser;

namespace {

struct Parsed {
  ManifestColumns columns;
  int version;
  bool canonical;
};

Parsed parse(const std::string& text) {
  ManifestParser parser;
  parser.feed(text);
  parser.finish();
  return {parser.take(), parser.version(), parser.canonical()};
}

void refuses(const std::string& text, const std::string& part) {
  try {
    parse(text);
  } catch (const penstock::Error& error) {
    assert(error.code == penstock::ErrorCode::bad_manifest);
    const std::string message = error.what();
    if (message.find(part) == std::string::npos) {
      std::fprintf(stderr, "message is '%s', expected '%s'\n", message.c_str(), part.c_str());
      assert(false);
    }
    return;
  }
  std::fprintf(stderr, "accepted: %s\n", text.c_str());
  assert(false);
}

void reads_both_versions() {
  const Parsed v0 = parse("schema_version=0\n0\ta\t512\t3\tmx8:vision:imagefolder;label_id=7\n1\ta\t\t\t\n");
  assert(v0.version == 0 && v0.canonical);
  assert((v0.columns.location_index == std::vector<uint32_t>{0, 0}));
  assert((v0.columns.offset == std::vector<int64_t>{512, -1}));
  assert((v0.columns.length == std::vector<int64_t>{3, -1}));
  assert((v0.columns.label_id == std::vector<int64_t>{7, -1}));
  assert(v0.columns.location_text == "a");

  const Parsed v1 = parse("schema_version=1\n0\ta\t0\t1\t\t00000000\n1\tb\t0\t1\t\tffffffff\n2\ta\t\t\t\t\n");
  assert(v1.version == 1 && v1.canonical);
  assert((v1.columns.crc32c == std::vector<int64_t>{0, 0xffffffff, -1}));
  assert((v1.columns.location_index == std::vector<uint32_t>{0, 1, 2}));
  assert(v1.columns.location_text == "aba");
  assert((v1.columns.location_lengths == std::vector<int64_t>{1, 1, 1}));
  assert(parse("schema_version=1\n").canonical);
}

void is_lenient_and_says_so() {
  for (const char* text : {
           "schema_version=0\r\n0\ta\t\t\t\r\n",   // carriage returns
           "\nschema_version=0\n0\ta\t\t\t\n",     // a blank line
           "schema_version=0\n0\ta\t\t\t\n \t\n",  // a line of blanks
           "schema_version=0\n0\ta\n",             // 2 fields
           "schema_version=0\n0\ta\t\t\n",         // 4 fields
           "schema_version=1\n0\ta\t\t\t\n",       // 5 fields in version 1
           "schema_version=0\n0\ta\t\t\t",         // no last newline
           "schema_version=0\n00\ta\t\t\t\n",      // leading zeros
           "schema_version=1\n0\ta\t\t\t\tABCDEF01\n",
       }) {
    const Parsed parsed = parse(text);
    assert(!parsed.canonical);
    assert(parsed.columns.offset.size() == 1);
  }
}

void refuses_what_lies() {
  refuses("", "line 1: the text is empty");
  refuses("0\ta\n", "line 1: found '0\\x09a'");
  refuses("schema_version=2\n", "line 1: unsupported schema_version '2'");
  refuses("schema_version=0\n0\ta\t1\n", "line 2: 3 fields");
  refuses("schema_version=0\n0\n", "line 2: only a sample_id");
  refuses("schema_version=0\n0\ta\t\t\t\t\n", "line 2: more than 5 fields");
  refuses("schema_version=1\n0\ta\t\t\t\t\t\n", "line 2: more than 6 fields");
  refuses("schema_version=0\n0\ta\n0\ta\n", "line 3: expected sample_id 1 but found 0");
  refuses("schema_version=0\n1\ta\n", "line 2: expected sample_id 0 but found 1");
  refuses("schema_version=0\nx\ta\n", "line 2: sample_id 'x'");
  refuses("schema_version=0\n0\t \n", "line 2: location is blank");
  refuses("schema_version=0\n0\ta\t1\t\t\n", "together");
  refuses("schema_version=0\n0\ta\t\t1\t\n", "together");
  refuses("schema_version=0\n0\ta\t1\t0\t\n", "byte_length is 0");
  refuses("schema_version=0\n0\ta\t-1\t1\t\n", "byte_offset '-1'");
  refuses("schema_version=0\n0\ta\t1\t9999999999999999999\t\n", "at most 18 digits");
  refuses("schema_version=0\n0\ta\t\t\tmx8:vision:imagefolder\n", "label_id");
  refuses("schema_version=0\n0\ta\t\t\tmx8:vision:imagefolder;label_id=x\n", "label_id");
  refuses("schema_version=1\n0\ta\t\t\t\tabc\n", "8 hex digits");
  refuses("schema_version=1\n0\ta\t\t\t\tabcdefgh\n", "8 hex digits");
  refuses("schema_version=1\n0\ta/../../b\t\t\t\t\n", "climbs out");
  refuses("schema_version=0\n0\t\xff\n", "not valid UTF-8");
  refuses("schema_version=0\n0\ta\t\t\t\xed\xa0\x80\n", "not valid UTF-8");
  refuses("schema_version=0\n0\t" + std::string(ManifestParser::kMaxLineBytes, 'a'), "longer than");
}

void reads_hints() {
  const auto label = [](const std::string& hint) {
    return parse("schema_version=0\n0\ta\t\t\t" + hint + "\n").columns.label_id[0];
  };
  assert(label("mx8:vision:imagefolder;label_id=12") == 12);
  assert(label("mx8:vision:imagefolder;k=v;label_id=3;x") == 3);
  assert(label("mx8:vision:imagefolderish;label_id=x") == -1);
  assert(label("jpeg") == -1);
}

void any_cut_gives_the_same() {
  const std::string text =
      "schema_version=1\r\n0\tä/b\t1\t2\tmx8:vision:imagefolder;label_id=1\t0000000f\n\n1\tc\n2\tc";
  const Parsed whole = parse(text);
  for (size_t piece = 1; piece < text.size(); ++piece) {
    ManifestParser parser;
    std::string locations;
    std::vector<int64_t> labels;
    const auto take = [&] {
      const ManifestColumns columns = parser.take();
      locations += columns.location_text;
      labels.insert(labels.end(), columns.label_id.begin(), columns.label_id.end());
    };
    for (size_t start = 0; start < text.size(); start += piece) {
      parser.feed(text.substr(start, piece));
      take();
    }
    parser.finish();
    take();
    assert(locations == whole.columns.location_text && labels == whole.columns.label_id);
    assert(parser.canonical() == whole.canonical && parser.row_count() == 3);
  }
}

}  // namespace

int main() {
  reads_both_versions();
  is_lenient_and_says_so();
  refuses_what_lies();
  reads_hints();
  any_cut_gives_the_same();
  std::puts("manifest_text: ok");
}
