// Reads a manifest's text as a stream, into columns.
//
// Versions 0 and 1, as docs/file_formats.md has them. Reading is more lenient than writing: rows may have 2, 4 or 5
// fields (6 as well in version 1), blank lines are skipped, and a carriage return at a line's end is dropped.
// `canonical` says whether none of that was needed, so that the text equals what a writer would make of its rows.
//
// Threads: one at a time. Memory: what one `feed` adds, plus one unfinished line.
// Errors: Error{bad_manifest} that begins with the line's number; the parser is of no use afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace penstock {

// Rows in columns; -1 stands for an absent value. A row's location is an index into all locations so far, and a new
// one is added only where it differs from the row before: packed data has few.
struct ManifestColumns {
  std::vector<uint32_t> location_index;
  std::vector<int64_t> offset;
  std::vector<int64_t> length;
  std::vector<int64_t> label_id;
  std::vector<int64_t> crc32c;
  std::string location_text;              // the new locations, end to end
  std::vector<int64_t> location_lengths;  // their sizes in bytes
};

class ManifestParser {
 public:
  // A line longer than this is refused, so that text without line ends can't fill the memory.
  static constexpr size_t kMaxLineBytes = size_t{1} << 20;

  void feed(std::string_view chunk);
  // Takes the last line when no newline ends it, and demands that a header was there.
  void finish();
  // The rows since the last call.
  ManifestColumns take();

  int version() const { return version_; }  // -1 before the header
  int64_t row_count() const { return row_count_; }
  int64_t location_count() const { return location_count_; }
  bool canonical() const { return canonical_; }

 private:
  void line(std::string_view text, bool ended);
  void header(std::string_view text);
  void row(std::string_view text);
  void check_id(std::string_view field);
  void add_location(std::string_view field);
  void add_range(std::string_view offset, std::string_view length);
  void add_label(std::string_view hint);
  void add_crc(std::string_view field);
  int64_t number(std::string_view field, const char* name);
  [[noreturn]] void fail(const std::string& message) const;

  std::string pending_;  // an unfinished line
  int64_t line_number_ = 0;
  int version_ = -1;
  int64_t row_count_ = 0;
  int64_t location_count_ = 0;
  bool canonical_ = true;
  bool finished_ = false;
  std::string last_location_;
  std::string last_hint_;
  int64_t last_label_ = -1;
  ManifestColumns columns_;
};

}  // namespace penstock
