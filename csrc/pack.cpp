#include "pack.hpp"

#include <atomic>
#include <limits>

#include "pool.hpp"
#include "quantize_weights.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kTile = kLanes;
constexpr std::size_t kGrain = 4;  // Tiles a thread takes at a time.
constexpr float kMost = 127.0f;

// Four published bytes, eight columns, into four bytes of a tile: low nibbles columns 0 .. 3, high nibbles columns 4 .. 7.
std::uint32_t nibbles(std::uint32_t published) {
  std::uint64_t x = (published & 0xffffu) | static_cast<std::uint64_t>(published >> 16) << 32;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<std::uint32_t>(x | x >> 28);
}

template <typename T>
void pack_q8_of(const T* weight, std::size_t rows, std::size_t columns, std::uint8_t* codes, std::uint8_t* multipliers,
                float* row_scales, bool& finite) {
  const std::size_t blocks = num_blocks(columns), tiles = (rows + kTile - 1) / kTile;
  std::atomic<bool> all_finite{true};
  parallel_for(tiles, kGrain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin * kTile; row < end * kTile; ++row) {
      const std::size_t lane = row % kTile;
      std::uint8_t* codes_row = codes + row / kTile * blocks * 512 + 4 * lane;
      std::uint8_t* multipliers_row = multipliers + row / kTile * blocks * kTile + lane;
      const T* from = row < rows ? weight + row * columns : nullptr;  // Rows that fill up the tile are zeros.
      const auto emit = [&](std::size_t block, I32 first, I32 second, std::uint8_t multiplier) {
        std::int8_t bytes[kBlock];
        narrow(bytes, first + splat(128)), narrow(bytes + kLanes, second + splat(128));
        for (std::size_t p = 0; p < 8; ++p) std::memcpy(codes_row + block * 512 + 64 * p, bytes + 4 * p, 4);
        multipliers_row[block * kTile] = multiplier;
      };
      row_scales[row] = quantize_row(from, from ? columns : 0, blocks, kMost, emit);
      if (!(row_scales[row] <= std::numeric_limits<float>::max())) all_finite.store(false, std::memory_order_relaxed);
    }
  });
  finite = all_finite.load();
}

}  // namespace

void pack_mxfp4(const std::uint8_t* blocks, const std::uint8_t* scales, const std::int64_t* order, std::size_t rows,
                std::size_t num_blocks, std::uint8_t* codes, std::uint8_t* tile_scales) {
  parallel_for(rows / kTile, kGrain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t tile = begin; tile < end; ++tile) {
      std::size_t from[kTile];
      for (std::size_t r = 0; r < kTile; ++r) {
        const std::size_t row = tile * kTile + r;
        from[r] = (order ? static_cast<std::size_t>(order[row]) : row) * num_blocks;
      }
      for (std::size_t block = 0; block < num_blocks; ++block) {
        std::uint8_t* to = codes + (tile * num_blocks + block) * 256;
        for (std::size_t r = 0; r < kTile; ++r) {
          for (std::size_t p = 0; p < 4; ++p) {
            std::uint32_t word;
            std::memcpy(&word, blocks + (from[r] + block) * 16 + 4 * p, 4);
            word = nibbles(word);
            std::memcpy(to + 64 * p + 4 * r, &word, 4);
          }
          tile_scales[(tile * num_blocks + block) * kTile + r] = scales[from[r] + block];
        }
      }
    }
  });
}

void pack_q8(const float* weight, std::size_t rows, std::size_t columns, std::uint8_t* codes, std::uint8_t* multipliers,
             float* row_scales, bool& finite) {
  pack_q8_of(weight, rows, columns, codes, multipliers, row_scales, finite);
}

void pack_q8(const std::uint16_t* weight, std::size_t rows, std::size_t columns, std::uint8_t* codes,
             std::uint8_t* multipliers, float* row_scales, bool& finite) {
  pack_q8_of(weight, rows, columns, codes, multipliers, row_scales, finite);
}

void pack_bf16(const std::uint16_t* weight, std::size_t rows, std::size_t columns, std::uint16_t* packed) {
  parallel_for((rows + kTile - 1) / kTile, kGrain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin * kTile; row < end * kTile; ++row) {
      std::uint16_t* to = packed + row / kTile * columns * kTile + row % kTile;
      for (std::size_t c = 0; c < columns; ++c) to[c * kTile] = row < rows ? weight[row * columns + c] : 0;
    }
  });
}

}  // namespace ossia::OSSIA_ISA
