// Threads that decode batches of JPEG files into one block of pixels.
//
// Threads: decode() may be called from any thread and blocks until its batch is done; several batches may be under way
// at once, their pictures are taken in the order of the batches' turns, and of two with the same in that they came. The
// pool owns its threads; its destructor waits for the picture that each has in hand, and no decode() may be running
// then.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "jpeg.h"
#include "pixels.h"

namespace penstock {

enum class DecodeStatus : int32_t {
  ok = 0,
  not_jpeg = 1,   // nothing was written; another decoder may know these bytes
  damaged = 2,    // `messages` says why
  too_large = 3,  // more pixels than the limit; nothing was decoded
  no_memory = 4,  // this machine's fault, not the file's
};

// n pictures in, n blocks of format.sample_bytes() * 3 * width * height bytes out.
struct DecodeBatch {
  size_t count;
  const uint8_t* data;
  const int64_t* offsets;  // of each file in `data`
  const int64_t* lengths;
  const Window* windows;  // of the upright picture
  const uint8_t* flips;   // mirror it, after orientation
  int width;
  int height;
  PixelFormat format;
  int64_t most_pixels;
  int64_t turn;  // a batch with a lower one goes first, also when it comes later
  std::byte* out;
  int32_t* statuses;  // DecodeStatus
  std::vector<std::string>* messages;
};

class DecodePool {
 public:
  explicit DecodePool(int thread_count);
  ~DecodePool();
  DecodePool(const DecodePool&) = delete;
  DecodePool& operator=(const DecodePool&) = delete;

  void decode(const DecodeBatch& batch);

  // From the next picture on; at least 1. Threads that aren't wanted wait, with their scratch, until they are again.
  void resize(int thread_count);
  int thread_count() const;

 private:
  struct Job {
    const DecodeBatch* batch;
    size_t next = 0;
    size_t done = 0;
    std::condition_variable finished{};
  };

  void work(int number);

  mutable std::mutex mutex_;
  std::condition_variable available_;
  std::deque<Job*> jobs_;  // those with pictures that nobody took yet
  bool stopping_ = false;
  int wanted_ = 0;  // threads with a number below it take pictures
  std::vector<std::thread> threads_;
};

}  // namespace penstock
