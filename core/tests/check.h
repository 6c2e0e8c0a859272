// What the core's tests share: a check that names its place, and tests that register themselves by name.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                               \
    }                                                                             \
  } while (false)

#define CHECK_THROWS(expression, error_code)                  \
  do {                                                        \
    bool thrown = false;                                      \
    try {                                                     \
      (void)(expression);                                     \
    } catch (const penstock::Error& error) {                  \
      thrown = error.code == penstock::ErrorCode::error_code; \
    }                                                         \
    CHECK(thrown);                                            \
  } while (false)

namespace penstock::testing {

using NamedTest = std::pair<const char*, std::function<void()>>;

inline int run(const std::vector<NamedTest>& tests) {
  for (const auto& [name, test] : tests) {
    std::printf("%s\n", name);
    std::fflush(stdout);
    test();
  }
  std::printf("%zu passed\n", tests.size());
  return 0;
}

}  // namespace penstock::testing
