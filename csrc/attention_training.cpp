#include "attention_training.hpp"

#include <algorithm>
#include <cmath>

#include "lanes.hpp"
#include "numbers.hpp"
#include "pool.hpp"
#include "scratch.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kRows = 8;    // Queries whose scores are computed together.
constexpr std::size_t kBlock = 32;  // Queries of which the backward pass holds the scores.

std::size_t down(std::size_t count) { return count / kLanes * kLanes; }
std::size_t up(std::size_t count) { return down(count + kLanes - 1); }

// acc[r][v] += sum over i of a[r * row + i * step] * b[i * b_row + 16 v ...], in the order of i.
template <std::size_t Rows, std::size_t Vectors>
OSSIA_INLINE void multiply(const float* a, std::size_t row, std::size_t step, const float* b, std::size_t b_row,
                           std::size_t count, F32 (&acc)[Rows][Vectors]) {
  for (std::size_t i = 0; i < count; ++i) {
    F32 b_[Vectors];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < Vectors; ++v) b_[v] = load(b + i * b_row + v * kLanes);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      const F32 a_ = splat(a[r * row + i * step]);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < Vectors; ++v) acc[r][v] = fma(a_, b_[v], acc[r][v]);
    }
  }
}

// c [kRows, Vectors * 16] (+)= a [kRows, count] * b [count, Vectors * 16].
template <std::size_t Vectors, bool Add>
void product(const float* a, std::size_t row, std::size_t step, const float* b, std::size_t b_row, std::size_t count, float* c,
             std::size_t c_row) {
  constexpr std::size_t kTogether = Vectors <= 2 ? kRows : Vectors <= 4 ? kRows / 2 : kRows / 4;
  for (std::size_t first = 0; first < kRows; first += kTogether) {
    F32 acc[kTogether][Vectors];
    float* c_ = c + first * c_row;
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kTogether; ++r)
#pragma GCC unroll 8
      for (std::size_t v = 0; v < Vectors; ++v) acc[r][v] = Add ? load(c_ + r * c_row + v * kLanes) : splat(0.0f);
    multiply(a + first * row, row, step, b, b_row, count, acc);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kTogether; ++r)
#pragma GCC unroll 8
      for (std::size_t v = 0; v < Vectors; ++v) store(c_ + r * c_row + v * kLanes, acc[r][v]);
  }
}

// Scores of kRows queries a [kRows, size] against the keys first .. last of bt [size, stride], both multiples of 16.
void scores(const float* a, std::size_t size, const float* bt, std::size_t stride, std::size_t first, std::size_t last, float* c,
            std::size_t c_row) {
  std::size_t key = first;
  for (; key + 2 * kLanes <= last; key += 2 * kLanes)
    product<2, false>(a, size, 1, bt + key, stride, size, c + (key - first), c_row);
  if (key < last) product<1, false>(a, size, 1, bt + key, stride, size, c + (key - first), c_row);
}

// Rows `stride` numbers apart, as floats: out [count, size], rows up to `filled` zero.
template <typename T>
void unpack(const T* from, std::size_t stride, std::size_t count, std::size_t filled, std::size_t size, float* out) {
  for (std::size_t t = 0; t < count; ++t)
    for (std::size_t h = 0; h < size; h += kLanes) store(out + t * size + h, load_number(from + t * stride + h));
  std::fill(out + count * size, out + filled * size, 0.0f);
}

template <typename T>
void repack(const float* from, std::size_t count, std::size_t size, T* out, std::size_t stride) {
  for (std::size_t t = 0; t < count; ++t)
    for (std::size_t h = 0; h < size; h += kLanes) store_number(out + t * stride + h, load(from + t * size + h));
}

void transpose(const float* from, std::size_t rows, std::size_t size, float* out) {
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t h = 0; h < size; ++h) out[h * rows + t] = from[t * size + h];
}

const float* lane_numbers() {
  static constexpr float numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return numbers;
}

struct Range {
  std::size_t first, end;
};

// Keys that the queries begin .. end - 1 see between them, widened to whole vectors.
Range seen(std::size_t begin, std::size_t end, std::size_t window, std::size_t length) {
  const std::size_t first = window == 0 || begin + 1 <= window ? 0 : begin + 1 - window;
  return {down(first), up(std::min(end, length))};
}

// One document and one group of heads.
template <typename T>
struct Place {
  const T *q, *k, *v;  // Of the first token, and of the group's first head.
  std::size_t length, padded, q_stride, k_stride, head, heads;
};

template <typename T>
Place<T> place(const TrainingAttention& call, std::size_t task) {
  const std::size_t document = task / call.groups, group = task % call.groups;
  const auto start = static_cast<std::size_t>(call.starts[document]);
  const std::size_t length = static_cast<std::size_t>(call.starts[document + 1]) - start;
  const std::size_t per_group = call.heads / call.groups;
  const std::size_t q_stride = call.heads * call.size, k_stride = call.groups * call.size;
  const std::size_t q_offset = start * q_stride + group * per_group * call.size;
  const std::size_t k_offset = start * k_stride + group * call.size;
  return {static_cast<const T*>(call.q) + q_offset, static_cast<const T*>(call.k) + k_offset,
          static_cast<const T*>(call.v) + k_offset, length, up(length), q_stride, k_stride, group * per_group, per_group};
}

template <typename T, std::size_t Vectors>
void forward(const TrainingAttention& call, std::size_t task) {
  constexpr std::size_t size = Vectors * kLanes;
  const Place<T> at = place<T>(call, task);
  const auto start = static_cast<std::size_t>(call.starts[task / call.groups]);
  static thread_local Scratch scratch;
  float* v = scratch.take<float>(at.padded * (3 * size + kRows) + 2 * kRows * size);
  float *k = v + at.padded * size, *kt = k + at.padded * size, *p = kt + at.padded * size;
  float *q = p + kRows * at.padded, *out = q + kRows * size;
  unpack(at.v, at.k_stride, at.length, at.padded, size, v);
  unpack(at.k, at.k_stride, at.length, at.padded, size, k);
  transpose(k, at.padded, size, kt);
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (std::size_t head = 0; head < at.heads; ++head) {
    const float sink = call.sinks[at.head + head];
    for (std::size_t begin = 0; begin < at.length; begin += kRows) {
      const std::size_t rows = std::min(kRows, at.length - begin);
      const Range keys = seen(begin, begin + kRows, call.window, at.length);
      const std::size_t width = keys.end - keys.first;
      unpack(at.q + begin * at.q_stride + head * size, at.q_stride, rows, kRows, size, q);
      for (std::size_t i = 0; i < rows * size; i += kLanes) store(q + i, load(q + i) * splat(scale));
      scores(q, size, kt, at.padded, keys.first, keys.end, p, width);
      float inverse[kRows];
      for (std::size_t r = 0; r < rows; ++r) {
        float* p_ = p + r * width;
        const std::size_t position = begin + r;
        const std::size_t first = call.window == 0 || position + 1 <= call.window ? 0 : position + 1 - call.window;
        std::fill(p_, p_ + (first - keys.first), -INFINITY);
        std::fill(p_ + (position + 1 - keys.first), p_ + width, -INFINITY);
        F32 most = splat(sink);
        for (std::size_t i = 0; i < width; i += kLanes) most = max(most, load(p_ + i));
        const float highest = largest(most);
        F32 total = splat(0.0f);
        for (std::size_t i = 0; i < width; i += kLanes) {
          const F32 e = exp(load(p_ + i) - splat(highest));
          total = total + e;
          store(p_ + i, e);
        }
        const float denominator = sum(total) + std::exp(sink - highest);
        inverse[r] = 1.0f / denominator;
        call.log_sums[(start + position) * call.heads + at.head + head] = highest + std::log(denominator);
      }
      product<Vectors, false>(p, width, 1, v + keys.first * size, size, width, out, size);
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t h = 0; h < size; h += kLanes)
          store(out + r * size + h, load(out + r * size + h) * splat(inverse[r]));
      repack(out, rows, size, static_cast<T*>(call.out) + (start + begin) * at.q_stride + (at.head + head) * size, at.q_stride);
    }
  }
}

template <typename T, std::size_t Vectors>
void backward(const TrainingAttention& call, const TrainingAttentionGradients& gradients, std::size_t task) {
  constexpr std::size_t size = Vectors * kLanes;
  const Place<T> at = place<T>(call, task);
  const std::size_t document = task / call.groups;
  const auto start = static_cast<std::size_t>(call.starts[document]);
  static thread_local Scratch scratch;
  const std::size_t keys_size = at.padded * size, block_size = kBlock * size;
  float* k = scratch.take<float>(6 * keys_size + 2 * kBlock * at.padded + 3 * block_size);
  float *v = k + keys_size, *kt = v + keys_size, *vt = kt + keys_size, *k_grad = vt + keys_size, *v_grad = k_grad + keys_size;
  float *p = v_grad + keys_size, *s_grad = p + kBlock * at.padded, *q = s_grad + kBlock * at.padded;
  float *out_grad = q + block_size, *q_grad = out_grad + block_size;
  unpack(at.k, at.k_stride, at.length, at.padded, size, k);
  unpack(at.v, at.k_stride, at.length, at.padded, size, v);
  transpose(k, at.padded, size, kt);
  transpose(v, at.padded, size, vt);
  std::fill(k_grad, k_grad + 2 * keys_size, 0.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  const F32 lanes = load(lane_numbers());
  for (std::size_t head = 0; head < at.heads; ++head) {
    float sink_grad = 0.0f;
    for (std::size_t begin = 0; begin < at.length; begin += kBlock) {
      const std::size_t rows = std::min(kBlock, at.length - begin);
      const Range keys = seen(begin, begin + kBlock, call.window, at.length);
      const std::size_t width = keys.end - keys.first;
      const std::size_t offset = (start + begin) * at.q_stride + (at.head + head) * size;
      unpack(static_cast<const T*>(call.q) + offset, at.q_stride, rows, kBlock, size, q);
      unpack(static_cast<const T*>(gradients.out_grad) + offset, at.q_stride, rows, kBlock, size, out_grad);
      float log_sums[kBlock] = {}, shares[kBlock] = {};  // shares: what the softmax takes back from each score's gradient.
      for (std::size_t r = 0; r < rows; ++r) {
        const T* out = static_cast<const T*>(call.out) + offset + r * at.q_stride;
        F32 share = splat(0.0f);
        for (std::size_t h = 0; h < size; h += kLanes) share = fma(load(out_grad + r * size + h), load_number(out + h), share);
        shares[r] = sum(share);
        log_sums[r] = call.log_sums[(start + begin + r) * call.heads + at.head + head];
        sink_grad -= std::exp(call.sinks[at.head + head] - log_sums[r]) * shares[r];
      }
      std::fill(p, p + kBlock * width, 0.0f);
      std::fill(s_grad, s_grad + kBlock * width, 0.0f);
      for (std::size_t first = 0; first < rows; first += kRows) {
        const Range mine = seen(begin + first, begin + first + kRows, call.window, at.length);
        float *p_ = p + first * width + (mine.first - keys.first), *s_grad_ = s_grad + first * width + (mine.first - keys.first);
        scores(q + first * size, size, kt, at.padded, mine.first, mine.end, p_, width);
        scores(out_grad + first * size, size, vt, at.padded, mine.first, mine.end, s_grad_, width);
        for (std::size_t r = 0; r < kRows; ++r) {
          const std::size_t position = begin + first + r;
          const float until = first + r < rows ? static_cast<float>(position) : -1.0f;
          const float from = call.window == 0 || position + 1 <= call.window ? 0.0f : static_cast<float>(position + 1 - call.window);
          const F32 log_sum = splat(log_sums[first + r]), share = splat(shares[first + r]);
          for (std::size_t i = 0; i < mine.end - mine.first; i += kLanes) {
            const F32 key = lanes + splat(static_cast<float>(mine.first + i)), none = splat(0.0f);
            F32 p_I = exp(fma(load(p_ + r * width + i), splat(scale), none - log_sum));
            p_I = where_less(key, splat(from), none, where_less(splat(until), key, none, p_I));
            store(p_ + r * width + i, p_I);
            store(s_grad_ + r * width + i, p_I * (load(s_grad_ + r * width + i) - share) * splat(scale));
          }
        }
        product<Vectors, false>(s_grad_, width, 1, k + mine.first * size, size, mine.end - mine.first, q_grad + first * size, size);
      }
      repack(q_grad, rows, size, static_cast<T*>(gradients.q_grad) + offset, at.q_stride);
      for (std::size_t key = keys.first; key < keys.end; key += kRows) {
        const std::size_t row = key > begin ? key - begin : 0;  // The first that sees any of these keys, and the last.
        const std::size_t after = call.window == 0 ? begin + rows : std::min(begin + rows, key + kRows - 1 + call.window);
        if (begin + row >= after) continue;
        const std::size_t from = row * width + (key - keys.first);
        product<Vectors, true>(p + from, 1, width, out_grad + row * size, size, after - begin - row, v_grad + key * size, size);
        product<Vectors, true>(s_grad + from, 1, width, q + row * size, size, after - begin - row, k_grad + key * size, size);
      }
    }
    gradients.sink_grads[document * call.heads + at.head + head] = sink_grad;
  }
  const std::size_t offset = start * at.k_stride + task % call.groups * size;
  repack(k_grad, at.length, size, static_cast<T*>(gradients.k_grad) + offset, at.k_stride);
  repack(v_grad, at.length, size, static_cast<T*>(gradients.v_grad) + offset, at.k_stride);
}

// Calls Run<type of number, vectors a head>::run(call, args...).
template <template <typename, std::size_t> class Run, typename... Args>
void dispatch(const TrainingAttention& call, Args... args) {
  const auto of_type = [&](auto number) {
    using T = decltype(number);
    switch (call.size) {
      case 16: return Run<T, 1>::run(call, args...);
      case 32: return Run<T, 2>::run(call, args...);
      case 64: return Run<T, 4>::run(call, args...);
      default: return Run<T, 8>::run(call, args...);
    }
  };
  call.narrow ? of_type(std::uint16_t{}) : of_type(0.0f);
}

template <typename T, std::size_t Vectors>
struct Forward {
  static void run(const TrainingAttention& call) {
    parallel_for(call.documents * call.groups, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t task = begin; task < end; ++task) forward<T, Vectors>(call, task);
    });
  }
};

template <typename T, std::size_t Vectors>
struct Backward {
  static void run(const TrainingAttention& call, const TrainingAttentionGradients* gradients) {
    parallel_for(call.documents * call.groups, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t task = begin; task < end; ++task) backward<T, Vectors>(call, *gradients, task);
    });
  }
};

}  // namespace

void attention_training(const TrainingAttention& call) { dispatch<Forward>(call); }

void attention_training_backward(const TrainingAttention& call, const TrainingAttentionGradients& gradients) {
  dispatch<Backward>(call, &gradients);
}

}  // namespace ossia::OSSIA_ISA
