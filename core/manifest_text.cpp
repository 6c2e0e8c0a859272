#include "manifest_text.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "error.h"

namespace penstock {
namespace {

constexpr std::string_view kHeader = "schema_version=";
constexpr std::string_view kHint = "mx8:vision:imagefolder";
constexpr std::string_view kBlanks = " \t\n\v\f\r";
constexpr size_t kMaxDigits = 18;  // any number of so many digits fits in 63 bits
constexpr size_t kMaxFields = 6;

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

// What a message may show of text that need not be text at all.
std::string shown(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string result = "'";
  for (const char c : text.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      result += c;
    } else {
      result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return result + (text.size() > kMaxShown ? "'..." : "'");
}

// The length of the UTF-8 sequence that `text` begins with, 0 if it begins with none (RFC 3629, section 4).
size_t utf8_sequence(std::string_view text) {
  const auto byte = [text](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80;   // no overlong forms
    const unsigned high = lead == 0xED ? 0x9F : 0xBF;  // no surrogates
    return follows(1, low, high) && follows(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xF4 ? 0x8F : 0xBF;
    return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_sequence(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

bool is_absolute(std::string_view location) {
  if (location.starts_with('/')) return true;
  const size_t colon = location.find("://");
  if (colon == std::string_view::npos || colon == 0) return false;
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto rest = [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '+' || c == '.' || c == '-'; };
  return letter(location[0]) && std::all_of(location.begin(), location.begin() + static_cast<ptrdiff_t>(colon), rest);
}

bool climbs(std::string_view location) {
  if (location.find("..") == std::string_view::npos || is_absolute(location)) return false;
  for (size_t start = 0; start <= location.size();) {
    const size_t end = std::min(location.find('/', start), location.size());
    if (location.substr(start, end - start) == "..") return true;
    start = end + 1;
  }
  return false;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.size() <= kMaxDigits &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

int64_t to_number(std::string_view digits) {
  int64_t value = 0;
  for (const char c : digits) value = value * 10 + (c - '0');
  return value;
}

// What a hint says as label_id: nothing when it speaks of something else than a label, an empty text when it should
// name one and doesn't.
std::optional<std::string_view> label_text(std::string_view hint) {
  size_t end = std::min(hint.find(';'), hint.size());
  if (trim(hint.substr(0, end)) != kHint) return std::nullopt;
  while (end < hint.size()) {
    const size_t start = end + 1;
    end = std::min(hint.find(';', start), hint.size());
    const std::string_view part = hint.substr(start, end - start);
    const size_t equals = std::min(part.find('='), part.size());
    if (trim(part.substr(0, equals)) == "label_id") return trim(part.substr(std::min(equals + 1, part.size())));
  }
  return std::string_view{};
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

void ManifestParser::fail(const std::string& message) const {
  throw Error(ErrorCode::bad_manifest, "line " + std::to_string(line_number_) + ": " + message);
}

void ManifestParser::feed(std::string_view chunk) {
  for (size_t end; (end = chunk.find('\n')) != std::string_view::npos; chunk.remove_prefix(end + 1)) {
    if (pending_.empty()) {
      line(chunk.substr(0, end), true);
    } else {
      pending_.append(chunk, 0, end);
      line(pending_, true);
      pending_.clear();
    }
  }
  pending_ += chunk;
  if (pending_.size() > kMaxLineBytes) line(pending_, false);  // refuses it
}

void ManifestParser::finish() {
  if (std::exchange(finished_, true)) return;
  if (!pending_.empty()) line(pending_, false);
  pending_.clear();
  if (version_ < 0) {
    line_number_ = std::max<int64_t>(line_number_, 1);
    fail("the text is empty; a manifest begins with schema_version=0 or schema_version=1");
  }
}

ManifestColumns ManifestParser::take() { return std::exchange(columns_, {}); }

void ManifestParser::line(std::string_view text, bool ended) {
  ++line_number_;
  if (text.size() > kMaxLineBytes) fail("longer than " + std::to_string(kMaxLineBytes) + " bytes");
  canonical_ = canonical_ && ended;
  if (text.ends_with('\r')) {
    text.remove_suffix(1);
    canonical_ = false;
  }
  if (text.find_first_not_of(kBlanks) == std::string_view::npos) {
    canonical_ = false;
  } else if (version_ < 0) {
    header(text);
  } else {
    row(text);
  }
}

void ManifestParser::header(std::string_view text) {
  const std::string_view value = trim(text);
  if (!value.starts_with(kHeader)) {
    fail("found " + shown(text) + " where a manifest begins with schema_version=0 or schema_version=1");
  }
  const std::string_view version = value.substr(kHeader.size());
  if (version != "0" && version != "1") {
    fail("unsupported schema_version " + shown(version) + "; versions 0 and 1 are understood");
  }
  version_ = version == "1" ? 1 : 0;
  canonical_ = canonical_ && value.size() == text.size();
}

void ManifestParser::row(std::string_view text) {
  std::array<std::string_view, kMaxFields> fields{};
  const size_t most = version_ == 1 ? 6 : 5;
  size_t count = 0;
  for (bool more = true; more; ++count) {
    const size_t tab = text.find('\t');
    more = tab != std::string_view::npos;
    if (count == most) fail("more than " + std::to_string(most) + " fields between tabs");
    fields[count] = text.substr(0, tab);
    if (more) text.remove_prefix(tab + 1);
  }
  if (count == 1) fail("only a sample_id; a location must follow after a tab");
  if (count == 3) fail("3 fields; byte_offset and byte_length must be given together");
  canonical_ = canonical_ && count == most;

  check_id(fields[0]);
  add_location(fields[1]);
  add_range(fields[2], fields[3]);
  add_label(fields[4]);
  add_crc(fields[5]);
  ++row_count_;
}

void ManifestParser::check_id(std::string_view field) {
  const int64_t id = number(field, "sample_id");
  if (id != row_count_) {
    fail("expected sample_id " + std::to_string(row_count_) + " but found " + std::to_string(id));
  }
}

void ManifestParser::add_location(std::string_view field) {
  if (location_count_ == 0 || field != last_location_) {
    if (field.find_first_not_of(kBlanks) == std::string_view::npos) fail("location is blank");
    if (!is_utf8(field)) fail("location " + shown(field) + " is not valid UTF-8");
    if (version_ == 1 && climbs(field)) {
      fail("location " + shown(field) + " climbs out of the dataset with '..'");
    }
    if (location_count_ == std::numeric_limits<uint32_t>::max()) fail("more than 4294967295 locations");
    last_location_ = field;
    columns_.location_text += field;
    columns_.location_lengths.push_back(static_cast<int64_t>(field.size()));
    ++location_count_;
  }
  columns_.location_index.push_back(static_cast<uint32_t>(location_count_ - 1));
}

void ManifestParser::add_range(std::string_view offset_field, std::string_view length_field) {
  if (offset_field.empty() != length_field.empty()) fail("byte_offset and byte_length must be given together");
  int64_t offset = -1;
  int64_t length = -1;
  if (!offset_field.empty()) {
    offset = number(offset_field, "byte_offset");
    length = number(length_field, "byte_length");
    if (length == 0) fail("byte_length is 0; a range has at least one byte");
  }
  columns_.offset.push_back(offset);
  columns_.length.push_back(length);
}

void ManifestParser::add_label(std::string_view hint) {
  if (hint != last_hint_) {
    if (!is_utf8(hint)) fail("decode_hint " + shown(hint) + " is not valid UTF-8");
    const std::optional<std::string_view> label = label_text(hint);
    if (label && !is_number(*label)) {
      fail("decode_hint " + shown(hint) + " needs a numeric label_id, as in mx8:vision:imagefolder;label_id=0");
    }
    last_label_ = label ? to_number(*label) : -1;
    last_hint_ = hint;
  }
  columns_.label_id.push_back(last_label_);
}

void ManifestParser::add_crc(std::string_view field) {
  int64_t value = field.empty() ? -1 : 0;
  if (!field.empty() && field.size() != 8) fail("crc32c " + shown(field) + " is not 8 hex digits");
  for (const char c : field) {
    const int digit = hex_digit(c);
    if (digit < 0) fail("crc32c " + shown(field) + " is not 8 hex digits");
    canonical_ = canonical_ && !(c >= 'A' && c <= 'F');
    value = value * 16 + digit;
  }
  columns_.crc32c.push_back(value);
}

int64_t ManifestParser::number(std::string_view field, const char* name) {
  if (!is_number(field)) fail(std::string(name) + " " + shown(field) + " is not a whole number of at most 18 digits");
  canonical_ = canonical_ && (field.size() == 1 || field[0] != '0');
  return to_number(field);
}

}  // namespace penstock
