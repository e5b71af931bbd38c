#include "grouped.hpp"

#include "exact.hpp"
#include "parts.hpp"
#include "pool.hpp"
#include "scratch.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kMostAtOnce = 1024;       // Slots at a time, which bounds the memory.
constexpr std::size_t kTilesTogether = 4;       // Tiles a thread takes at a time.
constexpr std::size_t kWorthWaking = 1u << 18;  // Multiply-adds below which one thread is as quick as two.

}  // namespace

void grouped_mxfp4(const GroupedMatrix& weight, const float* x, const float* bias, float* out) {
  static thread_local Scratch scratch;
  const std::size_t blocks = weight.columns / kBlock, tiles = weight.rows / kLanes;
  in_rounds(weight.offsets, weight.experts, kChunk, kMostAtOnce,
            [&](const RowPart* parts, std::size_t num_parts, std::size_t first, std::size_t slots) {
    std::uint8_t* memory = scratch.take<std::uint8_t>(slots * blocks * kExactBytes);
    const bool alone = slots * weight.rows * weight.columns <= kWorthWaking;
    const auto batch = [&](const RowPart& part) {
      return ExactBatch{memory + (part.first - first) * blocks * kExactBytes, part.count, blocks};
    };
    parallel_for(num_parts, alone ? num_parts : 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        batch(parts[i]).for_each([&](std::size_t j, Place place) {
          const float* row = x + (parts[i].first + j) * weight.columns;
          for (std::size_t block = 0; block < blocks; ++block) put_exact(place, block, row + block * kBlock);
        });
    });
    const std::size_t items = num_parts * tiles;
    parallel_for(items, alone ? std::max<std::size_t>(items, 1) : kTilesTogether, [&](std::size_t begin, std::size_t end) {
      Sums sums[kChunk];
      for (std::size_t i = begin; i < end; ++i) {
        const RowPart& part = parts[i / tiles];
        const std::size_t number = i % tiles, tile = part.expert * tiles + number;
        multiply_tile(Nibbles{weight.codes + tile * blocks * kNibbleBytes, weight.scales + tile * blocks * kLanes},
                      batch(part), sums);
        const F32 added = bias ? load(bias + tile * kLanes) : splat(0.0f);
        for (std::size_t j = 0; j < part.count; ++j)
          store(out + (part.first + j) * weight.rows + number * kLanes, load(sums[j]) + added);
      }
    });
  });
}

}  // namespace ossia::OSSIA_ISA
