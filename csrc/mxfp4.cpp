#include "mxfp4.hpp"

#include <cstring>

namespace ossia {
namespace {

constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                               -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// 2^(byte - 127). A scale byte is the exponent field of a float, but for its two ends.
float scale_value(std::uint8_t byte) {
  std::uint32_t bits = static_cast<std::uint32_t>(byte) << 23;
  if (byte == 0) bits = 0x00400000u;    // 2^-127 is subnormal.
  if (byte == 255) bits = 0x7fc00000u;  // Not a number, as the format says; the exponent alone would be infinity.
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

void mxfp4_dequantize(const std::uint8_t* blocks, const std::uint8_t* scales, float* out, std::size_t num_blocks) {
  for (std::size_t block = 0; block < num_blocks; ++block) {
    const float scale = scale_value(scales[block]);
    for (std::size_t i = 0; i < kMxfp4Bytes; ++i) {
      const std::uint8_t byte = blocks[block * kMxfp4Bytes + i];
      out[block * kMxfp4Block + 2 * i] = kValues[byte & 0x0f] * scale;  // The low nibble is the even index.
      out[block * kMxfp4Block + 2 * i + 1] = kValues[byte >> 4] * scale;
    }
  }
}

}  // namespace ossia
