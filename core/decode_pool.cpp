#include "decode_pool.h"

#include <algorithm>
#include <new>
#include <optional>
#include <system_error>
#include <utility>

namespace penstock {
namespace {

// One thread's decoder and its scratch planes.
class Worker {
 public:
  void decode(const DecodeBatch& batch, size_t index);

 private:
  DecodeStatus attempt(const DecodeBatch& batch, size_t index, std::string& message);

  std::optional<JpegDecoder> decoder_;  // made where a lack of memory for it can be told
  std::vector<uint8_t> planes_;
  std::vector<uint8_t> upright_;
};

// The part of the stored picture that a window of the upright one shows.
Window stored_window(const Window& upright, const JpegHeader& header) {
  const int o = header.orientation;
  Window stored = o >= 5 ? Window{upright.y, upright.x, upright.height, upright.width} : upright;
  if (o == 2 || o == 3 || o == 7 || o == 8) stored.x = header.width - stored.x - stored.width;
  if (o == 3 || o == 4 || o == 6 || o == 7) stored.y = header.height - stored.y - stored.height;
  return stored;
}

// What of a window lies inside of the picture, and at least a sliver of it: a caller's rounding is no reason to fail.
Window inside(Window window, const JpegHeader& header) {
  constexpr double kSliver = 1e-3;
  const auto clip = [&](double& begin, double& length, double limit) {
    const double end = std::clamp(begin + length, kSliver, limit);
    begin = std::clamp(begin, 0.0, end - kSliver);
    length = end - begin;
  };
  clip(window.x, window.width, header.width);
  clip(window.y, window.height, header.height);
  return window;
}

DecodeStatus Worker::attempt(const DecodeBatch& batch, size_t index, std::string& message) {
  const uint8_t* data = batch.data + batch.offsets[index];
  const auto size = static_cast<size_t>(batch.lengths[index]);
  JpegHeader header;
  if (!read_jpeg_header(data, size, header)) return DecodeStatus::not_jpeg;
  if (int64_t{header.width} * header.height > batch.most_pixels) return DecodeStatus::too_large;

  const auto area = static_cast<size_t>(batch.width) * static_cast<size_t>(batch.height);
  std::byte* out = batch.out + index * 3 * area * batch.format.sample_bytes();
  if (!decoder_) decoder_.emplace();
  const bool flip = batch.flips != nullptr && batch.flips[index] != 0;
  const Window window = inside(stored_window(batch.windows[index], header), header);
  if (planes_.size() < 3 * area) planes_.resize(3 * area);
  if (header.orientation == 1) {
    uint8_t* planes = batch.format.is_planes() ? reinterpret_cast<uint8_t*>(out) : planes_.data();
    message = decoder_->decode(data, size, window, batch.width, batch.height, flip, planes);
    if (!message.empty()) return DecodeStatus::damaged;
    store_pixels(planes, area, batch.format, out);
    return DecodeStatus::ok;
  }
  const bool turned = header.orientation >= 5;
  const int width = turned ? batch.height : batch.width;
  const int height = turned ? batch.width : batch.height;
  message = decoder_->decode(data, size, window, width, height, false, planes_.data());
  if (!message.empty()) return DecodeStatus::damaged;
  if (upright_.size() < 6 * area) upright_.resize(6 * area);
  orient(planes_.data(), width, height, header.orientation, upright_.data());
  const uint8_t* planes = upright_.data();
  if (flip) {
    orient(upright_.data(), batch.width, batch.height, 2, upright_.data() + 3 * area);
    planes = upright_.data() + 3 * area;
  }
  store_pixels(planes, area, batch.format, out);
  return DecodeStatus::ok;
}

void Worker::decode(const DecodeBatch& batch, size_t index) {
  std::string message;
  DecodeStatus status = DecodeStatus::damaged;
  try {
    status = attempt(batch, index, message);
  } catch (const std::bad_alloc&) {  // which would end the process: nobody is above us on this thread
    status = DecodeStatus::no_memory;
  }
  batch.statuses[index] = static_cast<int32_t>(status);
  if (!message.empty()) (*batch.messages)[index] = std::move(message);
}

}  // namespace

DecodePool::DecodePool(int thread_count) { resize(thread_count); }

DecodePool::~DecodePool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  available_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void DecodePool::decode(const DecodeBatch& batch) {
  batch.messages->assign(batch.count, {});
  if (batch.count == 0) return;
  Job job{&batch};
  std::unique_lock lock(mutex_);
  const auto later = [&](const Job* other) { return other->batch->turn > batch.turn; };
  jobs_.insert(std::find_if(jobs_.begin(), jobs_.end(), later), &job);
  available_.notify_all();
  job.finished.wait(lock, [&] { return job.done == batch.count; });
}

void DecodePool::resize(int thread_count) {
  {
    std::lock_guard lock(mutex_);
    wanted_ = thread_count;
    try {
      for (int i = static_cast<int>(threads_.size()); i < thread_count; ++i)
        threads_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {  // no more threads to be had: those that are there do it
      if (threads_.empty()) throw;
    }
  }
  available_.notify_all();
}

int DecodePool::thread_count() const {
  std::lock_guard lock(mutex_);
  return wanted_;
}

void DecodePool::work(int number) {
  Worker worker;
  std::unique_lock lock(mutex_);
  while (true) {
    available_.wait(lock, [&] { return stopping_ || (number < wanted_ && !jobs_.empty()); });
    if (stopping_) return;
    Job& job = *jobs_.front();
    const size_t index = job.next++;
    if (job.next == job.batch->count) jobs_.pop_front();
    lock.unlock();
    worker.decode(*job.batch, index);
    lock.lock();
    if (++job.done == job.batch->count) job.finished.notify_one();
  }
}

}  // namespace penstock
