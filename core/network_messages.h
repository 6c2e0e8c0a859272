// What agents say to each other over a network: how each message is written, and how it is read.
//
// A message is a header of fixed size and a payload. Everything here is pure and trusts nothing: what parses has
// lengths and counts that agree, within bounds; whether sessions, transfers and memory exist is for others to say.
// Integers are little-endian, without padding.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace penstock {

static_assert(std::endian::native == std::endian::little, "messages are written as they lie in memory");

inline constexpr uint8_t kNetworkVersion = 2;    // since 2, TCP segments are of kTcpSegment
inline constexpr size_t kMaxName = 256;          // bytes of a name, an instance or a secret
inline constexpr size_t kMaxAddress = 16 << 10;  // of a worker's address
inline constexpr size_t kMaxSockets = 64 * 20;   // of packed names of sockets
inline constexpr size_t kMaxText = 512;          // of a reason
inline constexpr size_t kMaxNotification = 1 << 20;
inline constexpr uint32_t kMaxRows = 4096;  // of descriptors in one message

enum class MessageType : uint8_t {
  hello = 1,
  welcome,
  refused,
  write,
  write_packed,
  read,
  data,
  data_packed,
  end,
  abandon,
  notify,
  credit,
  ping,
  pong,
  bye,
};

// A range of the owner's memory, and the registration that it lies in.
struct Row {
  uint32_t slot;
  uint32_t zero;
  uint64_t generation;
  uint64_t address;
  uint64_t length;
};
static_assert(sizeof(Row) == 32);

// Rows as they stand in a message, at any alignment.
class Rows {
 public:
  Rows() = default;
  Rows(const std::byte* data, size_t count) : data_(data), count_(count) {}
  size_t size() const { return count_; }
  Row operator[](size_t i) const {
    Row row;
    std::memcpy(&row, data_ + i * sizeof(Row), sizeof(Row));
    return row;
  }

 private:
  const std::byte* data_ = nullptr;
  size_t count_ = 0;
};

// `to` is what the receiver called the connection: the owner's session, or the initiator's link.
struct Hello {  // to the owner
  uint64_t link;
  std::string_view secret, instance, name, address;
  std::string_view sockets;  // where the connection comes from: packed names, may be empty
};
struct Welcome {  // to the initiator
  uint64_t to, session;
  std::string_view name;  // the owner's
};
struct Refused {  // to the initiator
  uint64_t to;
  uint32_t code;
  std::string_view text;
};
struct Write {  // to the owner: the payload goes straight into the row
  uint64_t to, transfer;
  uint32_t messages;  // that the whole transfer has
  Row row;
};
struct WritePacked {  // to the owner: rows, then their bytes
  uint64_t to, transfer;
  uint32_t messages;
  Rows rows;
  const std::byte* bytes;
};
struct Read {  // to the owner, who answers with data
  uint64_t to, transfer;
  uint32_t messages;
  uint32_t first_piece;  // what the initiator calls the first row; the others follow
  bool only_direct;      // the pieces are no host memory: nothing may be packed
  Rows rows;
};
struct Data {  // to the initiator: goes straight into a piece
  uint64_t to, transfer;
  uint32_t piece;
  uint64_t offset, length;
};
struct DataPacked {  // to the initiator: the bytes of whole pieces
  uint64_t to, transfer;
  uint32_t first_piece, pieces;
  const std::byte* bytes;
  size_t size;
};
struct End {  // to the initiator: 0 = everything is in place
  uint64_t to, transfer;
  uint32_t status;  // 1 + ErrorCode
  std::string_view text;
};
struct Abandon {  // to the owner: no more than `sent` messages of this transfer come, and nobody wants its end
  uint64_t to, transfer;
  uint32_t sent;
};
struct Notify {  // to the owner
  uint64_t to, sequence;
  std::string_view message;
};
struct Credit {  // to the initiator: as many notifications have been taken
  uint64_t to, taken;
};
struct Ping {
  uint64_t to;
};
struct Pong {
  uint64_t to;
};
struct Bye {
  uint64_t to;
};
using Message = std::variant<Hello, Welcome, Refused, Write, WritePacked, Read, Data, DataPacked, End, Abandon, Notify,
                             Credit, Ping, Pong, Bye>;

inline uint64_t recipient(const Hello&) { return 0; }
template <typename Fields>
uint64_t recipient(const Fields& message) {
  return message.to;
}

// A payload; `bytes` is null while it has not been fetched (rendezvous), which only Write and Data may be.
struct Payload {
  const std::byte* bytes;
  size_t size;
};
// Nothing = it can't be meant. The result points into header and payload.
std::optional<Message> parse_message(const std::byte* header, size_t header_size, Payload payload);

// A header to be sent. The payload that belongs to it is the caller's.
class Header {
 public:
  template <typename Fields>
  explicit Header(const Fields& fields) : size_(sizeof(Fields)) {
    static_assert(sizeof(Fields) <= sizeof(bytes_));
    std::memcpy(bytes_.data(), &fields, sizeof(Fields));
  }
  const std::byte* data() const { return bytes_.data(); }
  size_t size() const { return size_; }

 private:
  std::array<std::byte, 64> bytes_;
  size_t size_;
};

struct Outgoing {
  Header header;
  std::string payload;
};
Outgoing write_message(const Hello& message);
Outgoing write_message(const Welcome& message);
Outgoing write_message(const Refused& message);
Outgoing write_message(const End& message);
Outgoing write_message(const Abandon& message);
Outgoing write_message(const Notify& message);
Outgoing write_message(const Credit& message);
Outgoing write_message(const Ping& message);
Outgoing write_message(const Pong& message);
Outgoing write_message(const Bye& message);
// The headers of messages whose payload is memory: `rows` of the packed ones are counted, and written by the caller.
Header write_header(const Write& message);
Header write_header(const Data& message);
Header packed_header(uint64_t to, uint64_t transfer, uint32_t messages, uint32_t rows);
Header read_header(uint64_t to, uint64_t transfer, uint32_t messages, uint32_t first_piece, bool only_direct,
                   uint32_t rows);
Header data_packed_header(uint64_t to, uint64_t transfer, uint32_t first_piece, uint32_t pieces);

}  // namespace penstock
