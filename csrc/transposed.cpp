// What reaches the input of a product: rows of weights times numbers, added up. A panel of rows is unpacked into floats in
// the first-level cache, 32 columns wide, and all tokens pass it by; lanes are columns.
//
// A sum over rows is made panel by panel of 128 rows: fma(weight, grad, sum) in order from 0, then added to those before.
// Panels of bfloat16 matrices are grouped in slabs of 8192 rows, whose sums are added to the result in order.
#include "exact.hpp"
#include "grouped.hpp"
#include "parts.hpp"
#include "pool.hpp"
#include "scratch.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kPanelTiles = 8;
constexpr std::size_t kPanelRows = kPanelTiles * kLanes;
constexpr std::size_t kSlab = 8192;             // Rows at a time, which bounds the memory.
constexpr std::size_t kMostAtOnce = 1024;       // Slots at a time, likewise.
constexpr std::size_t kMostRows = 384;          // Slots that pass one panel by.
constexpr std::size_t kWorthWaking = 1u << 18;  // Multiply-adds below which one thread is as quick as two.

using ColumnSums = float[kBlock];  // One number a column.
// A group of G tokens lies in memory row by row: float [rows][G].
using GradBatch = BatchOf<sizeof(float)>;

// What is needed of a matrix: `unpack` makes floats [16][32] of one block of a tile, `ahead` fetches it, and `put` writes
// sums in the order of columns.

struct Mxfp4Columns {
  const std::uint8_t* codes;
  const std::uint8_t* scales;
  std::size_t blocks;

  void ahead(std::size_t tile, std::size_t block) const {
    const std::size_t at = tile * blocks + block;
    for (std::size_t i = 0; i < kNibbleBytes; i += 64) prefetch(codes + at * kNibbleBytes + i);
    prefetch(scales + at * kLanes);
  }

  // Lane 4 p + c of the first sixteen is column 8 p + c, of the others column 8 p + 4 + c.
  void unpack(std::size_t tile, std::size_t block, float* to) const {
    const std::size_t at = tile * blocks + block;
    const FloatTable values = table(kE2m1Floats);
    const std::uint8_t* from = codes + at * kNibbleBytes;
    std::uint8_t rows[kLanes][kLanes];
    for (std::size_t p = 0; p < 4; ++p)
      for (std::size_t r = 0; r < kLanes; ++r) std::memcpy(rows[r] + 4 * p, from + 64 * p + 4 * r, 4);
    float factors[kLanes];
    store(factors, Nibbles{from, scales + at * kLanes}.factor(0));
    for (std::size_t r = 0; r < kLanes; ++r, to += kBlock) {
      const I32 both = widen(rows[r]);
      const F32 factor = splat(factors[r]);
      store(to, look_up(values, both) * factor);
      store(to + kLanes, look_up(values, shift_right<4>(both)) * factor);
    }
  }

  void put(const float* sums, std::size_t block, float* out) const {
    for (std::size_t half = 0; half < 2; ++half)
      for (std::size_t p = 0; p < 4; ++p)
        std::memcpy(out + block * kBlock + 8 * p + 4 * half, sums + kLanes * half + 4 * p, 4 * sizeof(float));
  }
};

struct Bf16Columns {
  const std::uint16_t* weight;
  std::size_t columns;
  bool first;  // Sums begin, or are added to what is there.

  void ahead(std::size_t tile, std::size_t block) const {
    const std::uint16_t* from = weight + (tile * columns + block * kBlock) * kLanes;
    for (std::size_t i = 0; i < kBlock * kLanes; i += 32) prefetch(from + i);
  }

  void unpack(std::size_t tile, std::size_t block, float* to) const {
    const std::uint16_t* from = weight + (tile * columns + block * kBlock) * kLanes;
    const std::size_t width = std::min(kBlock, columns - block * kBlock);
    float lanes[kBlock][kLanes];
    for (std::size_t c = 0; c < kBlock; ++c) store(lanes[c], c < width ? load_bf16(from + c * kLanes) : splat(0.0f));
    for (std::size_t r = 0; r < kLanes; ++r)
      for (std::size_t c = 0; c < kBlock; ++c) to[r * kBlock + c] = lanes[c][r];
  }

  void put(const float* sums, std::size_t block, float* out) const {
    const std::size_t width = std::min(kBlock, columns - block * kBlock);
    float* to = out + block * kBlock;
    for (std::size_t c = 0; c < width; ++c) to[c] = first ? sums[c] : to[c] + sums[c];
  }
};

template <std::size_t G>
void multiply_panel(const float* panel, std::size_t rows, const float* grad, ColumnSums* sums) {
  F32 left[G], right[G];
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) left[t] = right[t] = splat(0.0f);
  for (std::size_t r = 0; r < rows; ++r, panel += kBlock, grad += G) {
    const F32 first = load(panel), second = load(panel + kLanes);
#pragma GCC unroll 16
    for (std::size_t t = 0; t < G; ++t) {
      const F32 g = splat(grad[t]);
      left[t] = fma(first, g, left[t]), right[t] = fma(second, g, right[t]);
    }
  }
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) {
    store(sums[t], load(sums[t]) + left[t]);
    store(sums[t] + kLanes, load(sums[t] + kLanes) + right[t]);
  }
}

template <std::size_t... G>
void multiply_panel_any(std::size_t group_size, const float* panel, std::size_t rows, const float* grad, ColumnSums* sums,
                        std::index_sequence<G...>) {
  using Function = void (*)(const float*, std::size_t, const float*, ColumnSums*);
  static constexpr Function functions[] = {&multiply_panel<G + 1>...};
  functions[group_size - 1](panel, rows, grad, sums);
}

// Columns of one block for a batch of at most kMostRows; `rows` of the matrix, of which the last tile may be part.
template <typename Weight>
void multiply_block(const Weight& weight, std::size_t block, std::size_t rows, const GradBatch& grad, ColumnSums* sums) {
  alignas(64) float panel[kPanelRows * kBlock];
  const std::size_t tiles = (rows + kLanes - 1) / kLanes;
  std::memset(sums, 0, grad.tokens * sizeof(ColumnSums));
  for (std::size_t begin = 0; begin < tiles; begin += kPanelTiles) {
    const std::size_t end = std::min(begin + kPanelTiles, tiles);
    for (std::size_t tile = begin; tile < end; ++tile) weight.unpack(tile, block, panel + (tile - begin) * kLanes * kBlock);
    for (std::size_t tile = end; tile < std::min(end + kPanelTiles, tiles); ++tile) weight.ahead(tile, block);
    const std::size_t first = begin * kLanes, count = std::min(end * kLanes, rows) - first;
    for (std::size_t group = 0; group < grad.num_groups(); ++group) {
      const std::size_t at = grad.group_begin(group), size = grad.group_begin(group + 1) - at;
      const float* data = reinterpret_cast<const float*>(grad.data) + at * grad.blocks + first * size;
      multiply_panel_any(size, panel, count, data, sums + at, std::make_index_sequence<kMostTokens>());
    }
  }
}

// Numbers `first` .. of each row of a batch, from memory in which rows are `stride` apart.
void put_grad(const GradBatch& batch, const float* grad, std::size_t stride) {
  batch.for_each([&](std::size_t j, Place place) {
    float* to = reinterpret_cast<float*>(place.data) + place.within;
    for (std::size_t row = 0; row < batch.blocks; ++row) to[row * place.size] = grad[j * stride + row];
  });
}

}  // namespace

void grouped_mxfp4_transposed(const GroupedMatrix& weight, const float* grad, float* out) {
  static thread_local Scratch scratch;
  const std::size_t blocks = weight.columns / kBlock, tiles = weight.rows / kLanes;
  in_rounds(weight.offsets, weight.experts, kMostRows, kMostAtOnce,
            [&](const RowPart* parts, std::size_t num_parts, std::size_t first, std::size_t slots) {
    std::uint8_t* memory = scratch.take<std::uint8_t>(slots * weight.rows * sizeof(float));
    const bool alone = slots * weight.rows * weight.columns <= kWorthWaking;
    const auto batch = [&](const RowPart& part) {
      return GradBatch{memory + (part.first - first) * weight.rows * sizeof(float), part.count, weight.rows};
    };
    parallel_for(num_parts, alone ? num_parts : 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        put_grad(batch(parts[i]), grad + parts[i].first * weight.rows, weight.rows);
    });
    const std::size_t items = num_parts * blocks;
    parallel_for(items, alone ? std::max<std::size_t>(items, 1) : 1, [&](std::size_t begin, std::size_t end) {
      ColumnSums sums[kMostRows];
      for (std::size_t i = begin; i < end; ++i) {
        const RowPart& part = parts[i / blocks];
        const std::size_t block = i % blocks, from = part.expert * tiles * blocks;
        const Mxfp4Columns matrix{weight.codes + from * kNibbleBytes, weight.scales + from * kLanes, blocks};
        multiply_block(matrix, block, weight.rows, batch(part), sums);
        for (std::size_t j = 0; j < part.count; ++j) matrix.put(sums[j], block, out + (part.first + j) * weight.columns);
      }
    });
  });
}

void linear_bf16_transposed(const float* grad, std::size_t tokens, std::size_t rows, const std::uint16_t* weight,
                            std::size_t columns, float* out) {
  static thread_local Scratch scratch;
  const std::size_t blocks = num_blocks(columns);
  if (rows == 0) std::memset(out, 0, tokens * columns * sizeof(float));
  for (std::size_t token = 0; token < tokens; token += kMostRows)
    for (std::size_t row = 0; row < rows; row += kSlab) {
      const std::size_t count = std::min(kMostRows, tokens - token), height = std::min(kSlab, rows - row);
      const GradBatch batch{scratch.take<std::uint8_t>(count * height * sizeof(float)), count, height};
      put_grad(batch, grad + token * rows + row, rows);
      const Bf16Columns matrix{weight + row * columns, columns, row == 0};
      const bool alone = count * height * columns <= kWorthWaking;
      parallel_for(blocks, alone ? std::max<std::size_t>(blocks, 1) : 1, [&](std::size_t begin, std::size_t end) {
        ColumnSums sums[kMostRows];
        for (std::size_t block = begin; block < end; ++block) {
          multiply_block(matrix, block, height, batch, sums);
          for (std::size_t j = 0; j < count; ++j) matrix.put(sums[j], block, out + (token + j) * columns);
        }
      });
    }
}

}  // namespace ossia::OSSIA_ISA
