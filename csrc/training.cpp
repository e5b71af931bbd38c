#include "training.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.hpp"
#include "numbers.hpp"
#include "pool.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kBlock = 32;  // Values under one scale of MXFP4.

std::size_t left(std::size_t width, std::size_t c) { return std::min(kLanes, width - c); }

// Calls op(T{}) with the type that numbers have.
template <typename Op>
void with_type(bool narrow, Op op) {
  narrow ? op(std::uint16_t{}) : op(0.0f);
}

template <typename Body>
void over_rows(std::size_t rows, Body body) {
  parallel_for(rows, kPiece, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) body(t);
  });
}

F32 sigmoid(F32 a) { return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - a)); }

// Sixteen pairs of neighbours, the even ones and the odd ones.
struct Pairs {
  F32 even, odd;
};

Pairs load_pairs(const float* p, std::size_t count) {
  float even[kLanes] = {}, odd[kLanes] = {};
  for (std::size_t i = 0; i < count; ++i) even[i] = p[2 * i], odd[i] = p[2 * i + 1];
  return {load(even), load(odd)};
}
Pairs load_pairs(const std::uint16_t* p, std::size_t count) {
  std::int32_t words[kLanes] = {};
  if (count == kLanes)
    std::memcpy(words, p, sizeof words);
  else
    std::memcpy(words, p, count * sizeof(std::int32_t));
  const I32 both = load(words);
  return {from_bits(shift_left<16>(both)), from_bits(both & splat(static_cast<std::int32_t>(0xffff0000u)))};
}
void store_pairs(float* p, Pairs a, std::size_t count) {
  float even[kLanes], odd[kLanes];
  store(even, a.even);
  store(odd, a.odd);
  for (std::size_t i = 0; i < count; ++i) p[2 * i] = even[i], p[2 * i + 1] = odd[i];
}
void store_pairs(std::uint16_t* p, Pairs a, std::size_t count) {
  std::uint16_t even[kLanes], odd[kLanes];
  store_bf16(even, a.even);
  store_bf16(odd, a.odd);
  std::int32_t words[kLanes];
  store(words, widen(even) | shift_left<16>(widen(odd)));
  if (count == kLanes)
    std::memcpy(p, words, sizeof words);
  else
    std::memcpy(p, words, count * sizeof(std::int32_t));
}

}  // namespace

void rms_norm_training(bool narrow, const void* x, std::size_t rows, std::size_t width, const void* scale, float eps, void* out,
                       float* inverse) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(rows, [&](std::size_t t) {
      const T* x_ = static_cast<const T*>(x) + t * width;
      F32 squares = splat(0.0f);
      for (std::size_t c = 0; c < width; c += kLanes) {
        const F32 x_C = load_some(x_ + c, left(width, c));
        squares = fma(x_C, x_C, squares);
      }
      inverse[t] = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
      for (std::size_t c = 0; c < width; c += kLanes) {
        const std::size_t n = left(width, c);
        store_some(static_cast<T*>(out) + t * width + c,
                   load_some(x_ + c, n) * splat(inverse[t]) * load_some(static_cast<const T*>(scale) + c, n), n);
      }
    });
  });
}

void rms_norm_backward(bool narrow, const void* x, std::size_t rows, std::size_t width, const void* scale, const float* inverse,
                       const void* grad, void* x_grad, void* scale_grad) {
  const std::size_t pieces = (rows + kPiece - 1) / kPiece, filled = (width + kLanes - 1) / kLanes * kLanes;
  std::vector<float> parts(pieces * filled, 0.0f);
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    const T* scale_ = static_cast<const T*>(scale);
    parallel_for(pieces, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t piece = begin; piece < end; ++piece)
        for (std::size_t t = piece * kPiece; t < std::min(rows, (piece + 1) * kPiece); ++t) {
          const T *x_ = static_cast<const T*>(x) + t * width, *grad_ = static_cast<const T*>(grad) + t * width;
          F32 along = splat(0.0f);
          for (std::size_t c = 0; c < width; c += kLanes) {
            const std::size_t n = left(width, c);
            along = fma(load_some(x_ + c, n) * load_some(scale_ + c, n), load_some(grad_ + c, n), along);
          }
          const float once = inverse[t];
          const F32 back = splat(once * once * once * sum(along) / static_cast<float>(width));
          float* part = parts.data() + piece * filled;
          for (std::size_t c = 0; c < width; c += kLanes) {
            const std::size_t n = left(width, c);
            const F32 x_C = load_some(x_ + c, n), grad_C = load_some(grad_ + c, n);
            store_some(static_cast<T*>(x_grad) + t * width + c,
                       grad_C * load_some(scale_ + c, n) * splat(once) - x_C * back, n);
            store(part + c, fma(grad_C, x_C * splat(once), load(part + c)));
          }
        }
    });
    for (std::size_t c = 0; c < width; c += kLanes) {
      F32 total = splat(0.0f);
      for (std::size_t piece = 0; piece < pieces; ++piece) total = total + load(parts.data() + piece * filled + c);
      store_some(static_cast<T*>(scale_grad) + c, total, left(width, c));
    }
  });
}

void rope_training(bool narrow, const void* x, std::size_t tokens, std::size_t heads, std::size_t size, const float* cos,
                   const float* sin, bool back, void* out) {
  const std::size_t half = size / 2;
  const F32 sign = splat(back ? -1.0f : 1.0f);
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(tokens, [&](std::size_t t) {
      for (std::size_t head = 0; head < heads; ++head)
        for (std::size_t i = 0; i < half; i += kLanes) {
          const std::size_t n = left(half, i), at = (t * heads + head) * size + i;
          const F32 c = load_some(cos + t * half + i, n), s = load_some(sin + t * half + i, n) * sign;
          const F32 first = load_some(static_cast<const T*>(x) + at, n), second = load_some(static_cast<const T*>(x) + at + half, n);
          store_some(static_cast<T*>(out) + at, first * c - second * s, n);
          store_some(static_cast<T*>(out) + at + half, second * c + first * s, n);
        }
    });
  });
}

void swiglu(bool narrow, const void* gate_up, std::size_t rows, std::size_t width, float limit, void* hidden) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(rows, [&](std::size_t t) {
      for (std::size_t c = 0; c < width; c += kLanes) {
        const std::size_t n = left(width, c);
        const Pairs pairs = load_pairs(static_cast<const T*>(gate_up) + 2 * (t * width + c), n);
        const F32 gate = min(splat(limit), pairs.even), linear = max(splat(-limit), min(splat(limit), pairs.odd));
        store_some(static_cast<T*>(hidden) + t * width + c, gate * sigmoid(splat(1.702f) * gate) * (linear + splat(1.0f)), n);
      }
    });
  });
}

void swiglu_backward(bool narrow, const void* gate_up, const void* grad, std::size_t rows, std::size_t width, float limit,
                     void* gate_up_grad, void* hidden) {
  const F32 one = splat(1.0f), zero = splat(0.0f), most = splat(limit), least = splat(-limit), steep = splat(1.702f);
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(rows, [&](std::size_t t) {
      for (std::size_t c = 0; c < width; c += kLanes) {
        const std::size_t n = left(width, c), at = t * width + c;
        const Pairs pairs = load_pairs(static_cast<const T*>(gate_up) + 2 * at, n);
        const F32 grad_C = load_some(static_cast<const T*>(grad) + at, n);
        const F32 gate = min(most, pairs.even), linear = max(least, min(most, pairs.odd));
        const F32 s = sigmoid(steep * gate), swish = gate * s;
        store_some(static_cast<T*>(hidden) + at, swish * (linear + one), n);
        // Beyond the clamps nothing passes.
        const F32 gate_grad = grad_C * (linear + one) * s * fma(steep * gate, one - s, one);
        const F32 linear_grad = where_less(pairs.odd, least, zero, where_less(most, pairs.odd, zero, grad_C * swish));
        store_pairs(static_cast<T*>(gate_up_grad) + 2 * at, {where_less(most, pairs.even, zero, gate_grad), linear_grad}, n);
      }
    });
  });
}

void combine_rows(bool narrow, const void* x, std::size_t width, const std::int64_t* places, const void* weights,
                  std::size_t tokens, std::size_t active, void* out) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(tokens, [&](std::size_t t) {
      for (std::size_t c = 0; c < width; c += kLanes) {
        const std::size_t n = left(width, c);
        F32 total = splat(0.0f);
        for (std::size_t k = t * active; k < (t + 1) * active; ++k)
          total = fma(splat(weights ? number(static_cast<const T*>(weights)[k]) : 1.0f),
                      load_some(static_cast<const T*>(x) + static_cast<std::size_t>(places[k]) * width + c, n), total);
        store_some(static_cast<T*>(out) + t * width + c, total, n);
      }
    });
  });
}

void combine_rows_backward(bool narrow, const void* x, std::size_t width, const std::int64_t* places, const void* weights,
                           std::size_t tokens, std::size_t active, const void* grad, void* x_grad, void* weights_grad) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(tokens, [&](std::size_t t) {
      for (std::size_t k = t * active; k < (t + 1) * active; ++k) {
        const std::size_t row = static_cast<std::size_t>(places[k]) * width;
        const F32 weight = splat(number(static_cast<const T*>(weights)[k]));
        F32 along = splat(0.0f);
        for (std::size_t c = 0; c < width; c += kLanes) {
          const std::size_t n = left(width, c);
          const F32 grad_C = load_some(static_cast<const T*>(grad) + t * width + c, n);
          along = fma(grad_C, load_some(static_cast<const T*>(x) + row + c, n), along);
          store_some(static_cast<T*>(x_grad) + row + c, grad_C * weight, n);
        }
        store_some(static_cast<T*>(weights_grad) + k, splat(sum(along)), 1);
      }
    });
  });
}

void sum_rows(bool narrow, const void* x, std::size_t width, const std::int64_t* offsets, std::size_t groups, void* out) {
  constexpr std::size_t kColumns = 4 * kLanes;
  const std::size_t strips = (width + kColumns - 1) / kColumns;
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    parallel_for(groups * strips, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t task = begin; task < end; ++task) {
        const std::size_t group = task / strips, first = task % strips * kColumns, stop = std::min(width, first + kColumns);
        const auto from = static_cast<std::size_t>(offsets[group]), until = static_cast<std::size_t>(offsets[group + 1]);
        F32 totals[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        for (std::size_t piece = from; piece < until; piece += kPiece) {
          F32 part[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
          for (std::size_t t = piece; t < std::min(until, piece + kPiece); ++t)
            for (std::size_t c = first, j = 0; c < stop; c += kLanes, ++j)
              part[j] = part[j] + load_some(static_cast<const T*>(x) + t * width + c, left(stop, c));
          for (std::size_t j = 0; j < 4; ++j) totals[j] = totals[j] + part[j];
        }
        for (std::size_t c = first, j = 0; c < stop; c += kLanes, ++j)
          store_some(static_cast<T*>(out) + group * width + c, totals[j], left(stop, c));
      }
    });
  });
}

void surprise(bool narrow, const void* logits, std::size_t rows, std::size_t width, const std::int64_t* targets, float* surprise,
              float* log_sums) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(rows, [&](std::size_t t) {
      const T* logits_ = static_cast<const T*>(logits) + t * width;
      const std::size_t whole = width / kLanes * kLanes;
      F32 most = splat(-INFINITY);
      for (std::size_t c = 0; c < whole; c += kLanes) most = max(load_number(logits_ + c), most);
      float highest = largest(most);
      for (std::size_t c = whole; c < width; ++c) highest = std::max(highest, number(logits_[c]));
      F32 totals = splat(0.0f);
      for (std::size_t c = 0; c < whole; c += kLanes) totals = totals + exp(load_number(logits_ + c) - splat(highest));
      float total = sum(totals);
      for (std::size_t c = whole; c < width; ++c) total += std::exp(number(logits_[c]) - highest);
      log_sums[t] = highest + std::log(total);
      surprise[t] = log_sums[t] - number(logits_[targets[t]]);
    });
  });
}

void surprise_backward(bool narrow, const void* logits, std::size_t rows, std::size_t width, const std::int64_t* targets,
                       const float* log_sums, const float* grad, void* logits_grad) {
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    over_rows(rows, [&](std::size_t t) {
      const T* logits_ = static_cast<const T*>(logits) + t * width;
      T* grad_ = static_cast<T*>(logits_grad) + t * width;
      const F32 log_sum = splat(log_sums[t]), weight = splat(grad[t]);
      for (std::size_t c = 0; c < width; c += kLanes) {
        const std::size_t n = left(width, c);
        store_some(grad_ + c, exp(load_some(logits_ + c, n) - log_sum) * weight, n);
      }
      const float target = number(logits_[targets[t]]);
      store_some(grad_ + targets[t], (exp(splat(target) - log_sum) - splat(1.0f)) * weight, 1);
    });
  });
}

void store_mxfp4(bool narrow, const float* weight, std::size_t blocks, std::int32_t doubled, void* stored,
                 std::int64_t* changed) {
  const F32 zero = splat(0.0f), half = splat(0.5f), one = splat(1.0f), two = splat(2.0f), four = splat(4.0f), six = splat(6.0f);
  const I32 magnitude_bits = splat(0x7fffffff), sign_bit = splat(static_cast<std::int32_t>(0x80000000u));
  with_type(narrow, [&](auto type) {
    using T = decltype(type);
    parallel_for((blocks + kPiece - 1) / kPiece, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t piece = begin; piece < end; ++piece) {
        F32 differ = zero;
        for (std::size_t block = piece * kPiece; block < std::min(blocks, (piece + 1) * kPiece); ++block) {
          const float* weight_ = weight + block * kBlock;
          T* stored_ = static_cast<T*>(stored) + block * kBlock;
          const I32 most = max(bits(load(weight_)) & magnitude_bits, bits(load(weight_ + kLanes)) & magnitude_bits);
          const std::int32_t top = largest(most), mantissa = top & 0x7fffff;
          const int exponent = std::clamp((top >> 23) - 129 + (mantissa >= doubled ? 1 : 0), -127, 127);  // Of a scale byte.
          const F32 down = splat(std::ldexp(1.0f, -exponent)), up = splat(std::ldexp(1.0f, exponent));
          for (std::size_t i = 0; i < kBlock; i += kLanes) {
            const I32 w = bits(load(weight_ + i));
            const F32 scaled = from_bits(w & magnitude_bits) * down;
            const F32 step = where_less(scaled, two, half, where_less(scaled, four, one, two));
            const F32 inverse = where_less(scaled, two, two, where_less(scaled, four, one, half));
            const F32 rounded = min(to_float(round_to_int(scaled * inverse)) * step, six);
            const F32 value = from_bits(bits(rounded) | (w & sign_bit)) * up, before = load_number(stored_ + i);
            differ = differ + where_less(value, before, one, where_less(before, value, one, zero));
            store_number(stored_ + i, value);
          }
        }
        changed[piece] = static_cast<std::int64_t>(sum(differ));
      }
    });
  });
}

}  // namespace ossia::OSSIA_ISA
