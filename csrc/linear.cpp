#include "linear.hpp"

#include "pool.hpp"
#include "scratch.hpp"
#include "tiles.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kMostAtOnce = 480;    // Tokens in 8 bits at a time, which bounds the memory; five chunks.
constexpr std::size_t kFewTiles = 4;        // Tiles that stay in the second-level cache while the chunks pass by.
constexpr std::size_t kWorthWaking = 1u << 18;  // Multiply-adds below which one thread is as quick as two.

// Tiles a thread takes at a time: with few tokens reading is all, so the longer the better.
std::size_t grain(std::size_t tiles, std::size_t columns, std::size_t tokens) {
  if (tiles * kLanes * columns * tokens <= kWorthWaking) return std::max<std::size_t>(tiles, 1);
  const std::size_t share = std::max<std::size_t>(tiles / (8 * static_cast<std::size_t>(num_threads())), 1);
  return std::min(share, tokens <= kMostTokens ? 2 * kFewTiles : kFewTiles);
}

F32 load_part(const float* p, std::size_t count) {
  if (count >= kLanes) return load(p);
  float filled[kLanes] = {};
  std::memcpy(filled, p, count * sizeof(float));
  return load(filled);
}

void store_part(float* p, F32 a, std::size_t count) {
  if (count >= kLanes) return store(p, a);
  float lanes[kLanes];
  store(lanes, a);
  std::memcpy(p, lanes, count * sizeof(float));
}

// Columns 0 .. columns - 1 of one tile times G tokens; four sums a token, for columns 0, 1, 2, 3 modulo 4.
template <std::size_t G>
void multiply_bf16(const std::uint16_t* tile, const float* x, std::size_t columns, F32* out) {
  F32 acc[G][4];
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t)
    for (F32& a : acc[t]) a = splat(0.0f);
  std::size_t c = 0;
  for (; c + 4 <= columns; c += 4) {
    prefetch(tile + c * kLanes + 2048), prefetch(tile + c * kLanes + 2048 + 32);
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) {
      const F32 w = load_bf16(tile + (c + j) * kLanes);
#pragma GCC unroll 16
      for (std::size_t t = 0; t < G; ++t) acc[t][j] = fma(w, splat(x[t * columns + c + j]), acc[t][j]);
    }
  }
#pragma GCC unroll 4
  for (std::size_t j = 0; j < 3; ++j) {
    if (c + j >= columns) break;
    const F32 w = load_bf16(tile + (c + j) * kLanes);
#pragma GCC unroll 16
    for (std::size_t t = 0; t < G; ++t) acc[t][j] = fma(w, splat(x[t * columns + c + j]), acc[t][j]);
  }
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) out[t] = (acc[t][0] + acc[t][1]) + (acc[t][2] + acc[t][3]);
}

}  // namespace

void linear_q8(const float* x, std::size_t tokens, std::size_t columns, const std::uint8_t* codes,
               const std::uint8_t* multipliers, const float* row_scales, const float* bias, std::size_t rows, float* out) {
  static thread_local Scratch quantized;
  const std::size_t blocks = num_blocks(columns), tiles = (rows + kLanes - 1) / kLanes;
  std::uint8_t* memory = quantized.take<std::uint8_t>(std::min(tokens, kMostAtOnce) * blocks * kBlockBytes);
  for (std::size_t first = 0; first < tokens; first += kMostAtOnce) {
    const std::size_t count = std::min(kMostAtOnce, tokens - first);
    const std::size_t chunks = (count + kChunk - 1) / kChunk;
    const auto chunk = [&](std::size_t c) {
      return Batch{memory + c * kChunk * blocks * kBlockBytes, std::min(kChunk, count - c * kChunk), blocks};
    };
    parallel_for(chunks, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t c = begin; c < end; ++c)
        chunk(c).for_each([&](std::size_t t, Place place) {
          put_row(place, blocks, x + (first + c * kChunk + t) * columns, columns, kByteOffset);
        });
    });
    parallel_for(tiles, grain(tiles, columns, count), [&](std::size_t begin, std::size_t end) {
      Sums sums[kChunk];
      for (std::size_t c = 0; c < chunks; ++c) {
        const Batch batch = chunk(c);
        for (std::size_t tile = begin; tile < end; ++tile) {
          multiply_tile(Bytes{codes + tile * blocks * kByteBytes, multipliers + tile * blocks * kLanes}, batch, sums);
          const std::size_t row = tile * kLanes, width = rows - row;
          const F32 scale = load(row_scales + row), added = bias ? load_part(bias + row, width) : splat(0.0f);
          for (std::size_t t = 0; t < batch.tokens; ++t)
            store_part(out + (first + c * kChunk + t) * rows + row, fma(scale, load(sums[t]), added), width);
        }
      }
    });
  }
}

void linear_bf16(const float* x, std::size_t tokens, std::size_t columns, const std::uint16_t* weight, const float* bias,
                 std::size_t rows, float* out) {
  constexpr std::size_t kTogether = 4;
  const std::size_t tiles = (rows + kLanes - 1) / kLanes;
  parallel_for(tiles, grain(tiles, columns, tokens), [&](std::size_t begin, std::size_t end) {
    // Few tokens at a time, so that they stay in the second-level cache beside the tiles.
    constexpr std::size_t kNear = 32;
    for (std::size_t near = 0; near < tokens; near += kNear) {
      const std::size_t stop = std::min(near + kNear, tokens);
      for (std::size_t tile = begin; tile < end; ++tile) {
        const std::uint16_t* from = weight + tile * columns * kLanes;
        const std::size_t row = tile * kLanes, width = rows - row;
        const F32 added = bias ? load_part(bias + row, width) : splat(0.0f);
        for (std::size_t t = near; t < stop; t += kTogether) {
          F32 sums[kTogether];
          const float* x_t = x + t * columns;
          const std::size_t count = std::min(kTogether, stop - t);
          switch (count) {
            case 1: multiply_bf16<1>(from, x_t, columns, sums); break;
            case 2: multiply_bf16<2>(from, x_t, columns, sums); break;
            case 3: multiply_bf16<3>(from, x_t, columns, sums); break;
            default: multiply_bf16<4>(from, x_t, columns, sums);
          }
          for (std::size_t i = 0; i < count; ++i) store_part(out + (t + i) * rows + row, sums[i] + added, width);
        }
      }
    }
  });
}

}  // namespace ossia::OSSIA_ISA
