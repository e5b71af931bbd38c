#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define OSSIA_FORKS 1
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ossia {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  ~Pool() { stop(); }

  int size() const { return wanted_; }

  void resize(int count) {
    std::lock_guard<std::mutex> alone(caller_);
    stop();
    wanted_ = count;
  }

  void run(std::size_t count, std::size_t grain, detail::Piece piece, void* context) {
    grain = std::max<std::size_t>(grain, 1);
    if (wanted_ == 1 || count <= grain) {
      if (count > 0) piece(context, 0, count);
      return;
    }
    std::lock_guard<std::mutex> alone(caller_);
    if (workers_.empty()) start();
    count_ = count;
    grain_ = grain;
    piece_ = piece;
    context_ = context;
    next_.store(0);
    open_.store(true);
    generation_.fetch_add(1);
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    work();
    // A worker enters before it looks whether the job is open, and the caller closes the job before it counts who is in:
    // whoever comes late goes away again, so nobody waits for a thread that has not woken yet.
    open_.store(false);
    while (inside_.load() > 0) relax();
  }

  // The child of a fork has none of the threads; it forgets them and starts its own.
  void forget() {
    new (&workers_) std::vector<std::thread>();
    new (&caller_) std::mutex();
    new (&sleep_) std::mutex();
    new (&wake_) std::condition_variable();
    inside_.store(0);
    sleepers_.store(0);
    open_.store(false);
  }

 private:
  void start() {
    stopping_.store(false);
    for (int i = 1; i < wanted_; ++i) workers_.emplace_back([this, seen = generation_.load()] { loop(seen); });
  }

  void stop() {
    stopping_.store(true);
    generation_.fetch_add(1);
    { std::lock_guard<std::mutex> lock(sleep_); }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  void loop(std::uint64_t seen) {
    while (true) {
      wait(seen);
      seen = generation_.load();
      if (stopping_.load()) return;
      inside_.fetch_add(1);
      if (open_.load()) work();
      inside_.fetch_sub(1);
    }
  }

  void wait(std::uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int i = 1; generation_.load() == seen; ++i) {
      relax();
      if (i % 64 != 0 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(sleep_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      sleepers_.fetch_sub(1);
    }
  }

  void work() {
    while (true) {
      const std::size_t begin = next_.fetch_add(grain_);
      if (begin >= count_) return;
      piece_(context_, begin, std::min(begin + grain_, count_));
    }
  }

  std::mutex caller_;
  std::vector<std::thread> workers_;
  std::atomic<int> wanted_{static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  // The job.
  std::size_t count_ = 0;
  std::size_t grain_ = 1;
  detail::Piece piece_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> open_{false};
  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};
};

Pool& pool() {
  static Pool instance;
  static const bool forks = [] {
#if OSSIA_FORKS
    pthread_atfork(nullptr, nullptr, [] { pool().forget(); });
#endif
    return true;
  }();
  (void)forks;
  return instance;
}

}  // namespace

int num_threads() { return pool().size(); }
void set_num_threads(int count) { pool().resize(std::max(1, count)); }

namespace detail {
void run(std::size_t count, std::size_t grain, Piece piece, void* context) { pool().run(count, grain, piece, context); }
}  // namespace detail

}  // namespace ossia
