#include "limits.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "isa.hpp"

#if OSSIA_X86
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ossia {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPasses = 40;
constexpr std::size_t kSlices = 8;  // A pass reads one: passes are short, so that some meet no other work, and the next
                                    // seven slices drive this one out of the caches.
constexpr auto kDotTime = std::chrono::milliseconds(8);
constexpr std::size_t kDotSteps = 1 << 12;  // Between two looks at the clock.
constexpr int kChains = 12;                 // Sums that do not wait for one another: latency times throughput, or more.
constexpr std::size_t kPage = 2 << 20;      // Of the large kind: with small ones their lookup would be measured too.

struct Release {
  void operator()(std::uint8_t* data) const { operator delete[](data, std::align_val_t{kPage}); }
};

// Runs body(0) .. body(threads - 1), each on a thread of its own; returns the seconds until the last one ended.
template <typename Body>
double seconds_on(int threads, Body body) {
  struct Joined : std::vector<std::thread> {
    ~Joined() { join(); }
    void join() {
      for (std::thread& each : *this) each.join();
      clear();
    }
  } running;
  const auto start = Clock::now();
  for (int i = 0; i < threads; ++i) running.emplace_back(body, i);
  running.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// ---------------------------------------------------------------- reading

// As wide as the widest register; narrower ISAs make several of it.
typedef std::uint64_t Words __attribute__((vector_size(64)));
constexpr std::size_t kStride = 4 * sizeof(Words);

inline __attribute__((always_inline)) std::uint64_t sum_words(const std::uint8_t* data, std::size_t count) {
  Words sum[4] = {};
  for (std::size_t i = 0; i < count; i += kStride)
    for (std::size_t k = 0; k < 4; ++k) sum[k] += *reinterpret_cast<const Words*>(data + i + k * sizeof(Words));
  std::uint64_t out = 0;
  for (const Words& words : sum)
    for (int lane = 0; lane < 8; ++lane) out += words[lane];
  return out;
}

std::uint64_t read_plain(const std::uint8_t* data, std::size_t count) { return sum_words(data, count); }

#if OSSIA_X86
__attribute__((target("avx512f"))) std::uint64_t read_avx512(const std::uint8_t* data, std::size_t count) {
  return sum_words(data, count);
}
__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::uint8_t* data, std::size_t count) {
  return sum_words(data, count);
}
#endif

// ---------------------------------------------------------------- multiplying

// The plain dot product is what the compiler makes of it on the instructions that every processor has.
std::uint64_t dot_plain(std::size_t steps) {
  std::int8_t x[64 * kChains], y[64 * kChains];
  std::memset(x, 3, sizeof x);
  std::memset(y, 5, sizeof y);
  std::int32_t sum = 0;
  for (std::size_t step = 0; step < steps; ++step) {
    __asm__ volatile("" ::"r"(x), "r"(y) : "memory");  // They may have changed: nothing is known in advance.
    for (int i = 0; i < 64 * kChains; ++i) sum += x[i] * y[i];
  }
  return static_cast<std::uint64_t>(sum);
}

#if OSSIA_X86
__attribute__((target("avx512f,avx512bw,avx512vnni"))) std::uint64_t dot_avx512(std::size_t steps) {
  const __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  __m512i sum[kChains];
#pragma GCC unroll 12
  for (int k = 0; k < kChains; ++k) sum[k] = _mm512_set1_epi32(k);
  for (std::size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) sum[k] = _mm512_dpbusd_epi32(sum[k], x, y);
    __asm__ volatile("" : "+v"(sum[0]));
  }
#pragma GCC unroll 12
  for (int k = 1; k < kChains; ++k) sum[0] = _mm512_add_epi32(sum[0], sum[k]);
  std::uint64_t out[8];
  _mm512_storeu_si512(out, sum[0]);
  return out[0];
}

__attribute__((target("avx2"))) std::uint64_t dot_avx2(std::size_t steps) {
  const __m256i x = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  __m256i sum[kChains];
#pragma GCC unroll 12
  for (int k = 0; k < kChains; ++k) sum[k] = _mm256_set1_epi32(k);
  for (std::size_t step = 0; step < steps; ++step)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      __m256i y = _mm256_set1_epi8(5);
      __asm__ volatile("" : "+x"(y));  // Else the products, always the same, are made once before the loop.
      sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
    }
#pragma GCC unroll 12
  for (int k = 1; k < kChains; ++k) sum[0] = _mm256_add_epi32(sum[0], sum[k]);
  std::uint64_t out[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), sum[0]);
  return out[0];
}
#endif

struct Probe {
  std::uint64_t (*read)(const std::uint8_t* data, std::size_t count);
  std::uint64_t (*dot)(std::size_t steps);
  double macs_per_step;
};

Probe probe() {
#if OSSIA_X86
  switch (best_isa()) {
    case Isa::avx512: return {read_avx512, dot_avx512, 64.0 * kChains};
    case Isa::avx2: return {read_avx2, dot_avx2, 32.0 * kChains};
    case Isa::plain: break;
  }
#endif
  return {read_plain, dot_plain, 64.0 * kChains};
}

double read_speed(const Probe& probe, int threads, std::size_t num_bytes, volatile std::uint64_t* sink) {
  const std::size_t share = std::max(num_bytes / kSlices / threads / kStride, std::size_t{1}) * kStride;
  const std::size_t slice = share * threads, size = slice * kSlices;
  std::unique_ptr<std::uint8_t[], Release> data(
      static_cast<std::uint8_t*>(operator new[](size, std::align_val_t{kPage})));
#if defined(__linux__)
  (void)madvise(data.get(), size, MADV_HUGEPAGE);  // A wish: where it is not granted the figure is a little lower.
#endif
  std::memset(data.get(), 1, size);
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::uint8_t* first = data.get() + pass % kSlices * slice;
    const double seconds = seconds_on(threads, [&](int i) { sink[i] = probe.read(first + i * share, share); });
    best = std::max(best, static_cast<double>(slice) / seconds);
  }
  return best;
}

double dot_speed(const Probe& probe, int threads, volatile std::uint64_t* sink) {
  double best = 0;
  std::vector<double> steps(threads);
  for (int pass = 0; pass < kPasses; ++pass) {
    const double seconds = seconds_on(threads, [&](int i) {
      const auto end = Clock::now() + kDotTime;
      double done = 0;
      for (; Clock::now() < end; done += kDotSteps) sink[i] = probe.dot(kDotSteps);
      steps[i] = done;
    });
    double all = 0;
    for (double each : steps) all += each;
    best = std::max(best, all * probe.macs_per_step / seconds);
  }
  return best;
}

}  // namespace

Limits measure_limits(int threads, std::size_t num_bytes) {
  threads = std::clamp(threads, 1, static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const Probe chosen = probe();
  const std::unique_ptr<std::uint64_t[]> sink(new std::uint64_t[threads]());  // Written, so that work is not left out.
  return {read_speed(chosen, threads, num_bytes, sink.get()), dot_speed(chosen, threads, sink.get())};
}

}  // namespace ossia
