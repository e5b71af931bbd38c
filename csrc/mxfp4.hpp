// MXFP4: blocks of 32 four-bit values under one power-of-two scale. The format is described in src/ossia/kernels/mxfp4.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ossia {

constexpr std::size_t kMxfp4Block = 32;
constexpr std::size_t kMxfp4Bytes = kMxfp4Block / 2;

// Unpacks num_blocks blocks of 16 bytes into 32 floats each. The caller answers for the sizes; nothing may overlap.
void mxfp4_dequantize(const std::uint8_t* blocks, const std::uint8_t* scales, float* out, std::size_t num_blocks);

}  // namespace ossia
