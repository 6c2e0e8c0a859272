// Files with given bytes, gone when the test is over.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "check.h"

namespace penstock::testing {

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::vector<unsigned char>& content) {
    fd_ = mkstemp(path_.data());
    CHECK(fd_ >= 0);
    CHECK(write(fd_, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  }
  ~TemporaryFile() {
    close(fd_);
    unlink(path_.c_str());
  }
  int fd() const { return fd_; }
  const char* path() const { return path_.c_str(); }

 private:
  std::string path_ = "/tmp/penstock-gather-XXXXXX";
  int fd_ = -1;
};

inline std::vector<unsigned char> random_bytes(size_t size) {
  std::mt19937 random(7);
  std::vector<unsigned char> bytes(size);
  for (auto& byte : bytes) byte = static_cast<unsigned char>(random());
  return bytes;
}

}  // namespace penstock::testing
