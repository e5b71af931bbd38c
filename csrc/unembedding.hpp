// The unembedding in two planes of 4 bits (packed.Split): all logits, or the largest ones from little more than one plane.
// docs/numerics.md says why the largest are the largest.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

// packed.Split, as it lies in memory.
struct Split {
  const std::uint8_t* high;         // [tiles, blocks, 256]
  const std::uint8_t* low;          // [tiles, blocks, 256]
  const std::uint8_t* multipliers;  // [tiles, blocks, 16]
  const float* row_scales;          // [16 tiles]
  const std::int8_t* dither;        // [32 blocks]
  std::size_t tiles, blocks;
};

// The same, to be written.
struct SplitOut {
  std::uint8_t* high;
  std::uint8_t* low;
  std::uint8_t* multipliers;
  float* row_scales;
  const std::int8_t* dither;
  std::size_t tiles, blocks;
};

// x [tokens, columns] with columns in the last of the blocks; y [tokens, rows] with rows at most 16 tiles.
OSSIA_DECLARE(void logits_split(const Split& w, const float* x, float* y, std::size_t tokens, std::size_t columns,
                                std::size_t rows))

// ids and values [tokens, count], 1 <= count <= rows: the largest of logits_split, lower rows first among equals, NaN before
// all numbers. A row is left out where its estimate lies `deviations` standard errors below. completed [tokens]: how many
// rows were read in full.
OSSIA_DECLARE(void best_split(const Split& w, const float* x, std::int64_t* ids, float* values, std::int64_t* completed,
                              std::size_t tokens, std::size_t columns, std::size_t rows, std::size_t count,
                              double deviations))

// upper [tokens, 16 tiles]: what best_split takes for the most that each logit can be.
OSSIA_DECLARE(void bounds_split(const Split& w, const float* x, float* upper, std::size_t tokens, std::size_t columns,
                                double deviations))

// weight: bfloat16 [rows, columns], finite. As packed.pack_split.
OSSIA_DECLARE(void pack_split(const SplitOut& out, const std::uint16_t* weight, std::size_t rows, std::size_t columns))

}  // namespace ossia
