#include "network_messages.h"

namespace penstock {
namespace {

// What stands at the beginning of every header; `count` means something else in each.
struct Head {
  uint8_t type;
  uint8_t version;
  uint16_t flag;  // read: only_direct; else 0
  uint32_t count;
  uint64_t to;
};
struct SessionFields {  // welcome: the session; notify: the sequence; credit: what was taken
  Head head;
  uint64_t value;
};
struct TransferFields {  // write_packed, read, data_packed, end, abandon
  Head head;
  uint64_t transfer;
  uint32_t messages;
  uint32_t first;
};
struct WriteFields {
  Head head;
  uint64_t transfer;
  Row row;
};
struct DataFields {
  Head head;
  uint64_t transfer;
  uint64_t offset;
};
static_assert(sizeof(Head) == 16 && sizeof(SessionFields) == 24 && sizeof(TransferFields) == 32);
static_assert(sizeof(WriteFields) == 56 && sizeof(DataFields) == 32);

Head head_of(MessageType type, uint64_t to, uint64_t count = 0) {
  return {static_cast<uint8_t>(type), kNetworkVersion, 0, static_cast<uint32_t>(count), to};
}

template <typename Fields>
bool take(const std::byte* header, size_t size, Fields& fields) {
  if (size != sizeof(Fields)) return false;
  std::memcpy(&fields, header, sizeof(Fields));
  return true;
}

std::string_view text_of(Payload payload) { return {reinterpret_cast<const char*>(payload.bytes), payload.size}; }

// Takes a text of at most `most` bytes, with its length before it, off the front of `rest`.
bool take_text(std::string_view& rest, size_t most, std::string_view& text) {
  uint32_t length = 0;
  if (rest.size() < sizeof(length)) return false;
  std::memcpy(&length, rest.data(), sizeof(length));
  rest.remove_prefix(sizeof(length));
  if (length > most || length > rest.size()) return false;
  text = rest.substr(0, length);
  rest.remove_prefix(length);
  return true;
}

void put_text(std::string& into, std::string_view text) {
  const auto length = static_cast<uint32_t>(text.size());
  into.append(reinterpret_cast<const char*>(&length), sizeof(length));
  into.append(text);
}

// The sum of the rows' lengths; nothing = it isn't `most` bytes or fewer.
std::optional<size_t> sum_lengths(const Rows& rows, size_t most) {
  size_t sum = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint64_t length = rows[i].length;
    if (length > most - sum) return std::nullopt;
    sum += length;
  }
  return sum;
}

std::optional<Message> parse_hello(const Head& head, Payload payload) {
  Hello hello{head.to, {}, {}, {}, {}, {}};
  std::string_view rest = text_of(payload);
  if (!take_text(rest, kMaxName, hello.secret) || !take_text(rest, kMaxName, hello.instance) ||
      !take_text(rest, kMaxName, hello.name) || !take_text(rest, kMaxAddress, hello.address) ||
      !take_text(rest, kMaxSockets, hello.sockets) || !rest.empty()) {
    return std::nullopt;
  }
  return hello;
}

std::optional<Message> parse_write(const std::byte* header, size_t size, Payload payload) {
  WriteFields fields;
  if (!take(header, size, fields) || fields.head.count == 0 || fields.row.length != payload.size) return std::nullopt;
  return Write{fields.head.to, fields.transfer, fields.head.count, fields.row};
}

std::optional<Message> parse_data(const std::byte* header, size_t size, Payload payload) {
  DataFields fields;
  if (!take(header, size, fields) || fields.offset > UINT64_MAX - payload.size) return std::nullopt;
  return Data{fields.head.to, fields.transfer, fields.head.count, fields.offset, payload.size};
}

std::optional<Message> parse_rows(const TransferFields& fields, Payload payload) {
  const uint32_t count = fields.head.count;
  if (count == 0 || count > kMaxRows || fields.messages == 0 || payload.size < count * sizeof(Row)) return std::nullopt;
  const Rows rows(payload.bytes, count);
  const size_t left = payload.size - count * sizeof(Row);
  if (fields.head.type == static_cast<uint8_t>(MessageType::read)) {
    if (left != 0 || fields.first > UINT32_MAX - count || !sum_lengths(rows, SIZE_MAX)) return std::nullopt;
    return Read{fields.head.to, fields.transfer, fields.messages, fields.first, fields.head.flag == 1, rows};
  }
  if (sum_lengths(rows, left) != left) return std::nullopt;
  return WritePacked{fields.head.to, fields.transfer, fields.messages, rows, payload.bytes + count * sizeof(Row)};
}

std::optional<Message> parse_of_transfer(const std::byte* header, size_t size, Payload payload) {
  TransferFields fields;
  if (!take(header, size, fields)) return std::nullopt;
  const Head& head = fields.head;
  switch (static_cast<MessageType>(head.type)) {
    case MessageType::write_packed:
    case MessageType::read: return parse_rows(fields, payload);
    case MessageType::data_packed:
      if (head.count == 0 || fields.first > UINT32_MAX - head.count) return std::nullopt;
      return DataPacked{head.to, fields.transfer, fields.first, head.count, payload.bytes, payload.size};
    case MessageType::end:
      if (payload.size > kMaxText) return std::nullopt;
      return End{head.to, fields.transfer, head.count, text_of(payload)};
    case MessageType::abandon:
      if (payload.size != 0) return std::nullopt;
      return Abandon{head.to, fields.transfer, head.count};
    default: return std::nullopt;
  }
}

std::optional<Message> parse_of_session(const std::byte* header, size_t size, Payload payload) {
  SessionFields fields;
  if (!take(header, size, fields)) return std::nullopt;
  switch (static_cast<MessageType>(fields.head.type)) {
    case MessageType::welcome:
      if (payload.size > kMaxName) return std::nullopt;
      return Welcome{fields.head.to, fields.value, text_of(payload)};
    case MessageType::credit:
      if (payload.size != 0) return std::nullopt;
      return Credit{fields.head.to, fields.value};
    case MessageType::notify:
      if (payload.size > kMaxNotification) return std::nullopt;
      return Notify{fields.head.to, fields.value, text_of(payload)};
    default: return std::nullopt;
  }
}

std::optional<Message> parse_plain(const Head& head, size_t size, Payload payload) {
  if (size != sizeof(Head)) return std::nullopt;
  const auto type = static_cast<MessageType>(head.type);
  if (type == MessageType::hello) return parse_hello(head, payload);
  if (type == MessageType::refused) {
    if (payload.size > kMaxText) return std::nullopt;
    return Refused{head.to, head.count, text_of(payload)};
  }
  if (payload.size != 0) return std::nullopt;
  if (type == MessageType::ping) return Ping{head.to};
  if (type == MessageType::pong) return Pong{head.to};
  return Bye{head.to};
}

}  // namespace

std::optional<Message> parse_message(const std::byte* header, size_t header_size, Payload payload) {
  Head head;
  if (header_size < sizeof(Head)) return std::nullopt;
  std::memcpy(&head, header, sizeof(Head));
  const auto type = static_cast<MessageType>(head.type);
  if (head.version != kNetworkVersion || head.flag > (type == MessageType::read ? 1 : 0)) return std::nullopt;
  if (type == MessageType::write) return parse_write(header, header_size, payload);
  if (type == MessageType::data) return parse_data(header, header_size, payload);
  if (payload.bytes == nullptr && payload.size != 0) return std::nullopt;
  switch (type) {
    case MessageType::hello:
    case MessageType::refused:
    case MessageType::ping:
    case MessageType::pong:
    case MessageType::bye: return parse_plain(head, header_size, payload);
    case MessageType::welcome:
    case MessageType::notify:
    case MessageType::credit: return parse_of_session(header, header_size, payload);
    default: return parse_of_transfer(header, header_size, payload);
  }
}

Outgoing write_message(const Hello& message) {
  std::string payload;
  for (const std::string_view text :
       {message.secret, message.instance, message.name, message.address, message.sockets}) {
    put_text(payload, text);
  }
  return {Header(head_of(MessageType::hello, message.link)), std::move(payload)};
}

Outgoing write_message(const Welcome& message) {
  return {Header(SessionFields{head_of(MessageType::welcome, message.to), message.session}), std::string(message.name)};
}

Outgoing write_message(const Refused& message) {
  return {Header(head_of(MessageType::refused, message.to, message.code)),
          std::string(message.text.substr(0, kMaxText))};
}

Outgoing write_message(const End& message) {
  return {Header(TransferFields{head_of(MessageType::end, message.to, message.status), message.transfer, 0, 0}),
          std::string(message.text.substr(0, kMaxText))};
}

Outgoing write_message(const Abandon& message) {
  return {Header(TransferFields{head_of(MessageType::abandon, message.to, message.sent), message.transfer, 0, 0}), {}};
}

Outgoing write_message(const Notify& message) {
  return {Header(SessionFields{head_of(MessageType::notify, message.to), message.sequence}),
          std::string(message.message)};
}

Outgoing write_message(const Credit& message) {
  return {Header(SessionFields{head_of(MessageType::credit, message.to), message.taken}), {}};
}

Outgoing write_message(const Ping& message) { return {Header(head_of(MessageType::ping, message.to)), {}}; }
Outgoing write_message(const Pong& message) { return {Header(head_of(MessageType::pong, message.to)), {}}; }
Outgoing write_message(const Bye& message) { return {Header(head_of(MessageType::bye, message.to)), {}}; }

Header write_header(const Write& message) {
  return Header(WriteFields{head_of(MessageType::write, message.to, message.messages), message.transfer, message.row});
}

Header write_header(const Data& message) {
  return Header(DataFields{head_of(MessageType::data, message.to, message.piece), message.transfer, message.offset});
}

Header packed_header(uint64_t to, uint64_t transfer, uint32_t messages, uint32_t rows) {
  return Header(TransferFields{head_of(MessageType::write_packed, to, rows), transfer, messages, 0});
}

Header read_header(uint64_t to, uint64_t transfer, uint32_t messages, uint32_t first_piece, bool only_direct,
                   uint32_t rows) {
  TransferFields fields{head_of(MessageType::read, to, rows), transfer, messages, first_piece};
  fields.head.flag = only_direct ? 1 : 0;
  return Header(fields);
}

Header data_packed_header(uint64_t to, uint64_t transfer, uint32_t first_piece, uint32_t pieces) {
  return Header(TransferFields{head_of(MessageType::data_packed, to, pieces), transfer, 0, first_piece});
}

}  // namespace penstock
