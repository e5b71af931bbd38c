// Products of packed weights with rows of their own: each expert with those sorted to it, or one matrix with all. In
// float32, in both directions. Layouts: src/ossia/kernels/packed.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

struct GroupedMatrix {
  const std::uint8_t* codes;   // [experts, rows / 16, columns / 32, 256]
  const std::uint8_t* scales;  // [experts, rows / 16, columns / 32, 16]
  std::size_t experts, rows, columns;
  const std::int64_t* offsets;  // [experts + 1], never falling: what lies in offsets[e] .. offsets[e + 1] belongs to e.
};

// out [slots, rows] = each expert's matrix times its x [slots, columns], plus bias [experts, rows] where it is not null.
// A sum is that of exact.hpp.
OSSIA_DECLARE(void grouped_mxfp4(const GroupedMatrix& weight, const float* x, const float* bias, float* out))

// out [slots, columns] = each expert's transposed matrix times its grad [slots, rows].
OSSIA_DECLARE(void grouped_mxfp4_transposed(const GroupedMatrix& weight, const float* grad, float* out))

// out [tokens, columns] = the transposed matrix times grad [tokens, rows]; weight: bfloat16 [tiles, columns, 16].
OSSIA_DECLARE(void linear_bf16_transposed(const float* grad, std::size_t tokens, std::size_t rows,
                                          const std::uint16_t* weight, std::size_t columns, float* out))

}  // namespace ossia
