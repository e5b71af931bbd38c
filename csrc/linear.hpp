// Dense layers: rows of packed weights times activations. Layouts: src/ossia/kernels/packed.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

// out [tokens, rows] = x [tokens, columns] times weights [rows, columns], plus bias [rows] where it is not null. The packed
// weights hold whole tiles and blocks. Nothing may overlap.
OSSIA_DECLARE(void linear_q8(const float* x, std::size_t tokens, std::size_t columns, const std::uint8_t* codes,
                             const std::uint8_t* multipliers, const float* row_scales, const float* bias,
                             std::size_t rows, float* out))
// weight: bfloat16 [tiles, columns, 16].
OSSIA_DECLARE(void linear_bf16(const float* x, std::size_t tokens, std::size_t columns, const std::uint16_t* weight,
                               const float* bias, std::size_t rows, float* out))

}  // namespace ossia
