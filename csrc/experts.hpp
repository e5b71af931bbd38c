// Mixture of experts from MXFP4 tiles: both products, biases, clamped SwiGLU and the weighted sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

struct ExpertsMatrix {
  const std::uint8_t* codes;   // [experts, rows / 16, columns / 32, 256]
  const std::uint8_t* scales;  // [experts, rows / 16, columns / 32, 16]
  const float* bias;           // [experts, rows]
};

struct Experts {
  std::size_t experts, hidden, intermediate;  // The latter two are multiples of 32.
  ExpertsMatrix gate_up;                      // rows 2 * intermediate: sixteen gate rows, their sixteen linear rows, and so on
  ExpertsMatrix down;                         // rows hidden
  float limit;
};

// out [tokens, hidden] from x [tokens, hidden]; ids [tokens, active] below `experts`, weights [tokens, active].
// The first rounds activations to 8 bits; the second does not, and adds up in float32.
OSSIA_DECLARE(void experts_packed(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids,
                                  const float* weights, std::size_t active, float* out))
OSSIA_DECLARE(void experts_exact(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids,
                                 const float* weights, std::size_t active, float* out))

}  // namespace ossia
