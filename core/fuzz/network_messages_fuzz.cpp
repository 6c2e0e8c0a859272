// Feeds anything to the parser of network messages. It may refuse, never crash, and what it accepts lies in the input.
//
// With libFuzzer: scripts/fuzz network_messages. Without it, the core's tests mutate messages of every kind.
#include <cstddef>
#include <cstdint>

#include "network_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace penstock;
  if (size == 0) return 0;
  // The first byte: how long the header is.
  const auto* bytes = reinterpret_cast<const std::byte*>(data + 1);
  const size_t header = data[0] < size - 1 ? data[0] : size - 1;
  (void)parse_message(bytes, header, {bytes + header, size - 1 - header});
  (void)parse_message(bytes, header, {nullptr, size * 1000});
  return 0;
}
