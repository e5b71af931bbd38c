// Small ops on activations, in float32.
#pragma once

#include <cstddef>

#include "isa.hpp"

namespace ossia {

// out [tokens, hidden]: each row of x over its root mean square (eps added to the mean), times scale [hidden].
OSSIA_DECLARE(void rms_norm(const float* x, std::size_t tokens, std::size_t hidden, const float* scale, float eps, float* out))
// out [tokens, heads, size]: halves of x rotated by the angles of cos and sin [tokens, size / 2]. A token of x starts
// `stride` floats after the one before; out is contiguous.
OSSIA_DECLARE(void rope(const float* x, std::size_t tokens, std::size_t stride, std::size_t heads, std::size_t size,
                        const float* cos, const float* sin, float* out))

}  // namespace ossia
