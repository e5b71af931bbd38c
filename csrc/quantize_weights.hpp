// Rows of weights in 8-bit codes, as packed._quantize in src/ossia/kernels/packed.py has them: shared by the packers.
#pragma once

#include <limits>

#include "quantize.hpp"

namespace ossia::OSSIA_ISA {

constexpr float kMostMultiplier = 255.0f;
// How far a block's multiplier may be from the least that clips nothing, best guess first.
constexpr float kTries[] = {0.0f, -1.0f, 1.0f, 2.0f};

inline F32 load_row(const float* p) { return load(p); }
inline F32 load_row(const std::uint16_t* p) { return load_bf16(p); }

// Block `block` of a row, filled up with zeros.
template <typename T>
void load_block(const T* row, std::size_t columns, std::size_t block, F32& first, F32& second) {
  const T* from = row + block * kBlock;
  T filled[kBlock] = {};
  if (columns < (block + 1) * kBlock) {
    for (std::size_t c = block * kBlock; c < columns; ++c) filled[c - block * kBlock] = row[c];
    from = filled;
  }
  first = load_row(from), second = load_row(from + kLanes);
}

inline float largest_magnitude(F32 first, F32 second) {
  const std::int32_t most = largest(max(magnitude(first), magnitude(second)));
  float out;
  std::memcpy(&out, &most, sizeof out);
  return out;
}

inline float at_least_normal(float x) {
  return x > std::numeric_limits<float>::min() ? x : std::numeric_limits<float>::min();
}

// Codes within `most` of 32 weights under the multiplier, of those tried, that leaves the smallest squared error.
inline std::uint8_t quantize_weights(F32 first, F32 second, float row_scale, float most, I32& first_codes,
                                     I32& second_codes) {
  const float wanted = (largest_magnitude(first, second) / most) / at_least_normal(row_scale);
  float least = std::ceil(wanted), best = 0.0f, best_error = 0.0f;
  least = least < kMostMultiplier ? least : kMostMultiplier;
  for (float more : kTries) {
    float multiplier = least + more;
    if (more != 0.0f && multiplier < 1.0f) multiplier = 1.0f;
    if (multiplier > kMostMultiplier) multiplier = kMostMultiplier;
    const F32 step = splat(multiplier * row_scale), divisor = splat(at_least_normal(multiplier * row_scale));
    const auto code = [&](F32 x) { return round_to_int(max(splat(-most), min(splat(most), x / divisor))); };
    const I32 a = code(first), b = code(second);
    const F32 off_a = to_float(a) * step - first, off_b = to_float(b) * step - second;
    const float error = sum(off_a * off_a + off_b * off_b);
    if (more != 0.0f && !(error < best_error)) continue;
    best = multiplier, best_error = error, first_codes = a, second_codes = b;
  }
  return static_cast<std::uint8_t>(best);
}

// A row's scale; calls emit(block, codes of 16 columns, codes of the next 16, multiplier) for each block of it, filled up
// with zeros to `blocks`. Where a weight is NaN or infinite, so is the scale.
template <typename T, typename Emit>
float quantize_row(const T* row, std::size_t columns, std::size_t blocks, float most, Emit emit) {
  F32 first, second;
  I32 widest_bits = splat(0);
  for (std::size_t block = 0; block < blocks; ++block) {
    load_block(row, columns, block, first, second);
    widest_bits = max(widest_bits, max(magnitude(first), magnitude(second)));
  }
  const std::int32_t bits = largest(widest_bits);
  float widest;
  std::memcpy(&widest, &bits, sizeof widest);
  const float row_scale = widest / (kMostMultiplier * most);
  for (std::size_t block = 0; block < blocks; ++block) {
    I32 first_codes = splat(0), second_codes = splat(0);
    load_block(row, columns, block, first, second);
    const std::uint8_t multiplier = quantize_weights(first, second, row_scale, most, first_codes, second_codes);
    emit(block, first_codes, second_codes, multiplier);
  }
  return row_scale;
}

}  // namespace ossia::OSSIA_ISA
