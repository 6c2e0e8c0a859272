// Every message comes back as it was written; and nothing that a peer may send instead does any harm.
#include "network_messages.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "check.h"

using namespace penstock;

namespace {

struct Bytes {
  std::string header, payload;
};

Bytes bytes_of(const Header& header, std::string payload) {
  return {std::string(reinterpret_cast<const char*>(header.data()), header.size()), std::move(payload)};
}

template <typename Fields>
Bytes written(const Fields& message) {
  Outgoing outgoing = write_message(message);
  return bytes_of(outgoing.header, std::move(outgoing.payload));
}

const std::byte* pointer(const std::string& text) { return reinterpret_cast<const std::byte*>(text.data()); }

std::optional<Message> parse(const Bytes& bytes) {
  return parse_message(pointer(bytes.header), bytes.header.size(), {pointer(bytes.payload), bytes.payload.size()});
}

template <typename Fields>
Fields parsed(const Bytes& bytes) {
  const auto message = parse(bytes);
  CHECK(message.has_value());
  CHECK(std::holds_alternative<Fields>(*message));
  return std::get<Fields>(*message);
}

std::string rows_of(const std::vector<Row>& rows) {
  return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(Row)};
}

const std::vector<Row> kRows{{1, 0, 11, 4096, 3}, {2, 0, 12, 8192, 5}};

std::vector<Bytes> one_of_each() {
  return {
      written(Hello{7, "secret", "instance", "name", "address", "sockets"}),
      written(Welcome{7, 8, "owner"}),
      written(Refused{7, 10, "no"}),
      bytes_of(write_header(Write{8, 1, 3, kRows[0]}), "abc"),
      bytes_of(packed_header(8, 1, 3, 2), rows_of(kRows) + "abcdefgh"),
      bytes_of(read_header(8, 1, 3, 5, true, 2), rows_of(kRows)),
      bytes_of(write_header(Data{7, 1, 4, 100, 3}), "abc"),
      bytes_of(data_packed_header(7, 1, 4, 2), "abcdefgh"),
      written(End{7, 1, 9, "stale"}),
      written(Abandon{8, 1, 2}),
      written(Notify{8, 5, std::string_view("a\0b", 3)}),
      written(Credit{7, 99}),
      written(Ping{7}),
      written(Pong{8}),
      written(Bye{7}),
  };
}

void they_come_back_as_they_were_written() {
  const auto all = one_of_each();
  for (const Bytes& bytes : all) CHECK(parse(bytes).has_value());
  const auto hello = parsed<Hello>(all[0]);
  CHECK(hello.link == 7 && hello.secret == "secret" && hello.instance == "instance" && hello.name == "name" &&
        hello.address == "address" && hello.sockets == "sockets");
  const auto welcome = parsed<Welcome>(all[1]);
  CHECK(welcome.to == 7 && welcome.session == 8 && welcome.name == "owner");
  const auto refused = parsed<Refused>(all[2]);
  CHECK(refused.code == 10 && refused.text == "no");
  const auto write = parsed<Write>(all[3]);
  CHECK(write.to == 8 && write.transfer == 1 && write.messages == 3 && write.row.generation == 11);
  const auto packed = parsed<WritePacked>(all[4]);
  CHECK(packed.rows.size() == 2 && packed.rows[1].address == 8192 && packed.bytes[7] == std::byte{'h'});
  const auto read = parsed<Read>(all[5]);
  CHECK(read.first_piece == 5 && read.only_direct && read.rows.size() == 2 && read.rows[0].slot == 1);
  const auto data = parsed<Data>(all[6]);
  CHECK(data.piece == 4 && data.offset == 100 && data.length == 3);
  const auto data_packed = parsed<DataPacked>(all[7]);
  CHECK(data_packed.first_piece == 4 && data_packed.pieces == 2 && data_packed.size == 8);
  const auto end = parsed<End>(all[8]);
  CHECK(end.transfer == 1 && end.status == 9 && end.text == "stale");
  CHECK(parsed<Abandon>(all[9]).sent == 2);
  const auto notify = parsed<Notify>(all[10]);
  CHECK(notify.sequence == 5 && notify.message.size() == 3);
  CHECK(parsed<Credit>(all[11]).taken == 99);
}

void headers_of_another_length_or_version_are_refused() {
  for (const Bytes& good : one_of_each()) {
    for (size_t size = 0; size < good.header.size(); ++size) {
      CHECK(!parse({good.header.substr(0, size), good.payload}));
    }
    CHECK(!parse({good.header + '\0', good.payload}));
    Bytes bad = good;
    bad.header[1] = kNetworkVersion + 1;
    CHECK(!parse(bad));
    bad = good;
    bad.header[3] = 1;
    CHECK(!parse(bad));
    for (const char type : {0, 16, 77, -1}) {
      bad = good;
      bad.header[0] = type;
      CHECK(!parse(bad));
    }
  }
}

void lengths_that_do_not_agree_are_refused() {
  const Header write = write_header(Write{8, 1, 3, kRows[0]});
  CHECK(!parse(bytes_of(write, "ab")));
  CHECK(!parse(bytes_of(write, "abcd")));
  CHECK(!parse(bytes_of(write_header(Write{8, 1, 0, kRows[0]}), "abc")));  // of no messages
  const Header packed = packed_header(8, 1, 3, 2);
  CHECK(!parse(bytes_of(packed, rows_of(kRows) + "abcdefg")));
  CHECK(!parse(bytes_of(packed, rows_of(kRows) + "abcdefghi")));
  CHECK(!parse(bytes_of(packed, rows_of(kRows).substr(0, 63))));
  CHECK(!parse(bytes_of(packed, "")));
  CHECK(!parse(bytes_of(packed_header(8, 1, 3, 0), "")));
  CHECK(!parse(bytes_of(packed_header(8, 1, 0, 2), rows_of(kRows) + "abcdefgh")));
  std::vector<Row> huge = kRows;
  huge[0].length = UINT64_MAX;
  huge[1].length = 9;  // together 8
  CHECK(!parse(bytes_of(packed, rows_of(huge) + "abcdefgh")));
  CHECK(!parse(bytes_of(read_header(8, 1, 3, 0, false, 2), rows_of(huge))));
  CHECK(!parse(bytes_of(read_header(8, 1, 3, UINT32_MAX, false, 2), rows_of(kRows))));
  CHECK(!parse(bytes_of(read_header(8, 1, 3, 0, false, 2), rows_of(kRows) + "a")));
  const std::string many(static_cast<size_t>(kMaxRows + 1) * sizeof(Row), '\0');
  CHECK(!parse(bytes_of(read_header(8, 1, 3, 0, false, kMaxRows + 1), many)));
  CHECK(!parse(bytes_of(write_header(Data{7, 1, 4, UINT64_MAX - 1, 3}), "abc")));
  CHECK(!parse(bytes_of(data_packed_header(7, 1, UINT32_MAX, 2), "ab")));
}

void bounds_are_kept() {
  CHECK(parse(written(Notify{8, 0, std::string(kMaxNotification, 'x')})));
  CHECK(!parse(written(Notify{8, 0, std::string(kMaxNotification + 1, 'x')})));
  CHECK(!parse(written(Hello{7, std::string(kMaxName + 1, 's'), "", "", "", ""})));
  CHECK(!parse(written(Hello{7, "", "", "", std::string(kMaxAddress + 1, 'a'), ""})));
  CHECK(parsed<End>(written(End{7, 1, 1, std::string(10000, 't')})).text.size() == kMaxText);
  const Bytes ping = written(Ping{7});
  CHECK(!parse({ping.header, "x"}));
}

void only_what_goes_straight_into_memory_may_be_fetched_later() {
  for (const Bytes& bytes : one_of_each()) {
    const Payload later{nullptr, bytes.payload.size()};
    const auto message = parse_message(pointer(bytes.header), bytes.header.size(), later);
    const bool direct = message && (std::holds_alternative<Write>(*message) || std::holds_alternative<Data>(*message));
    CHECK(direct || bytes.payload.empty() || !message);
  }
}

// Reads all that a message points at, so that a sanitizer sees what lies outside.
uint64_t touch(const Message& message) {
  uint64_t sum = recipient(std::get_if<Ping>(&message) ? *std::get_if<Ping>(&message) : Ping{0});
  const auto text = [&](std::string_view view) {
    for (const char c : view) sum += static_cast<unsigned char>(c);
  };
  if (const auto* hello = std::get_if<Hello>(&message)) text(hello->address), text(hello->name), text(hello->secret);
  if (const auto* notify = std::get_if<Notify>(&message)) text(notify->message);
  if (const auto* packed = std::get_if<WritePacked>(&message)) {
    size_t at = 0;
    for (size_t i = 0; i < packed->rows.size(); ++i) {
      for (uint64_t k = packed->rows[i].length; k > 0; --k) sum += static_cast<uint64_t>(packed->bytes[at++]);
    }
  }
  if (const auto* read = std::get_if<Read>(&message)) {
    for (size_t i = 0; i < read->rows.size(); ++i) sum += read->rows[i].address;
  }
  return sum;
}

void damage_is_refused_or_harmless() {
  std::mt19937 random(1);
  const auto all = one_of_each();
  uint64_t sum = 0;
  size_t accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    Bytes bytes = all[random() % all.size()];
    for (unsigned i = random() % 4; i-- > 0;) {
      std::string& into = !bytes.payload.empty() && random() % 2 == 0 ? bytes.payload : bytes.header;
      into[random() % into.size()] = static_cast<char>(random());
    }
    if (random() % 8 == 0) bytes.payload.resize(random() % 100);
    if (const auto message = parse(bytes)) {
      ++accepted;
      sum += touch(*message);
    }
  }
  CHECK(accepted > 1000 && accepted < 190000);
  CHECK(sum != 1);
}

}  // namespace

int main() {
  return testing::run({
      {"they come back as they were written", they_come_back_as_they_were_written},
      {"headers of another length or version are refused", headers_of_another_length_or_version_are_refused},
      {"lengths that don't agree are refused", lengths_that_do_not_agree_are_refused},
      {"bounds are kept", bounds_are_kept},
      {"only what goes straight into memory may be fetched later",
       only_what_goes_straight_into_memory_may_be_fetched_later},
      {"damage is refused or harmless", damage_is_refused_or_harmless},
  });
}
