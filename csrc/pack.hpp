// Weights into the packed forms, byte for byte as src/ossia/kernels/packed.py defines them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

// Published blocks [rows, blocks, 16] and scales [rows, blocks] into tiles; rows is a multiple of 16. Where `order` is not
// null, row r is published row order[r].
OSSIA_DECLARE(void pack_mxfp4(const std::uint8_t* blocks, const std::uint8_t* scales, const std::int64_t* order,
                              std::size_t rows, std::size_t num_blocks, std::uint8_t* codes, std::uint8_t* tile_scales))
// weight [rows, columns] into Q8 with codes within `most`, filled up to whole tiles and blocks. False where a weight is NaN
// or infinite.
OSSIA_DECLARE(void pack_q8(const float* weight, std::size_t rows, std::size_t columns, std::uint8_t* codes,
                           std::uint8_t* multipliers, float* row_scales, bool& finite))
OSSIA_DECLARE(void pack_q8(const std::uint16_t* weight, std::size_t rows, std::size_t columns, std::uint8_t* codes,
                           std::uint8_t* multipliers, float* row_scales, bool& finite))
// bfloat16 weight [rows, columns] into [tiles, columns, 16].
OSSIA_DECLARE(void pack_bf16(const std::uint16_t* weight, std::size_t rows, std::size_t columns, std::uint16_t* packed))

}  // namespace ossia
