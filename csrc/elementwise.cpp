#include "elementwise.hpp"

#include <algorithm>

#include "lanes.hpp"
#include "pool.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kWorthWaking = 1u << 16;  // Numbers below which one thread is as quick as two.

std::size_t grain(std::size_t tokens, std::size_t width) {
  return tokens * width <= kWorthWaking ? std::max<std::size_t>(tokens, 1) : std::max<std::size_t>(kWorthWaking / 8 / width, 1);
}

}  // namespace

void rms_norm(const float* x, std::size_t tokens, std::size_t hidden, const float* scale, float eps, float* out) {
  parallel_for(tokens, grain(tokens, hidden), [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      const float* row = x + t * hidden;
      F32 squares[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
      std::size_t c = 0;
      for (std::size_t j = 0; c + kLanes <= hidden; c += kLanes, j = (j + 1) % 4)
        squares[j] = fma(load(row + c), load(row + c), squares[j]);
      float rest[kLanes] = {};
      for (std::size_t i = c; i < hidden; ++i) rest[i - c] = row[i];
      squares[3] = fma(load(rest), load(rest), squares[3]);
      const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(hidden);
      const float inverse = 1.0f / std::sqrt(mean + eps);
      for (std::size_t i = 0; i < hidden; ++i) out[t * hidden + i] = row[i] * inverse * scale[i];
    }
  });
}

void rope(const float* x, std::size_t tokens, std::size_t stride, std::size_t heads, std::size_t size, const float* cos,
          const float* sin, float* out) {
  const std::size_t half = size / 2;
  parallel_for(tokens, grain(tokens, heads * size), [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t n = 0; n < heads; ++n) {
        const float* from = x + t * stride + n * size;
        float* to = out + (t * heads + n) * size;
        for (std::size_t i = 0; i < half; ++i) {
          const float c = cos[t * half + i], s = sin[t * half + i];
          to[i] = from[i] * c - from[half + i] * s;
          to[half + i] = from[half + i] * c + from[i] * s;
        }
      }
  });
}

}  // namespace ossia::OSSIA_ISA
