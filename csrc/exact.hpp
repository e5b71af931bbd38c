// Products of a tile of sixteen rows in 4-bit codes with a batch of tokens in float32: nothing is rounded but the sums.
//
// One block of 32 columns has four sums, for columns 0, 1, 2, 3 modulo 4: each is fma(value, x, sum) in order, from 0, where
// the values are doubled. Between blocks, in order, acc = fma((sum 0 + sum 1) + (sum 2 + sum 3), weight scale / 2, acc).
// No block overflows where |x| <= 2^119.
#pragma once

#include <utility>

#include "tiles.hpp"

namespace ossia::OSSIA_ISA {

// Twice the value of each E2M1 code.
alignas(64) inline constexpr float kE2m1Floats[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};

// A group of G tokens lies in memory block by block, and in a block column by column: float [32][G].
constexpr std::size_t kExactBytes = kBlock * sizeof(float);
using ExactBatch = BatchOf<kExactBytes>;

// Puts 32 columns of a token in its place.
inline void put_exact(Place place, std::size_t block, const float* x) {
  float* to = reinterpret_cast<float*>(place.data) + place.size * block * kBlock + place.within;
  for (std::size_t column = 0; column < kBlock; ++column) to[column * place.size] = x[column];
}

template <std::size_t G>
void multiply_exact(const Nibbles& tile, std::size_t blocks, const float* x, Sums* sums) {
  const FloatTable values = table(kE2m1Floats);
  F32 acc[G];
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) acc[t] = splat(0.0f);
  for (std::size_t b = 0; b < blocks; ++b, x += kBlock * G) {
    tile.ahead<G>(b);
    // Nibble n of word p is column 8 p + n / 2, or four further where n is odd: what is needed next is always the lowest.
    I32 word[4];
#pragma GCC unroll 4
    for (std::size_t p = 0; p < 4; ++p) word[p] = words(load(tile.codes + b * kNibbleBytes + 64 * p));
    F32 sum[4][G];
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) {
#pragma GCC unroll 16
      for (std::size_t t = 0; t < G; ++t) sum[j][t] = splat(0.0f);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < 8; ++i) {
        const F32 value = look_up(values, word[i / 2]);
        word[i / 2] = shift_right<4>(word[i / 2]);
#pragma GCC unroll 16
        for (std::size_t t = 0; t < G; ++t) sum[j][t] = fma(value, splat(x[(4 * i + j) * G + t]), sum[j][t]);
      }
    }
    const F32 factor = tile.factor(b);
#pragma GCC unroll 16
    for (std::size_t t = 0; t < G; ++t)
      acc[t] = fma((sum[0][t] + sum[1][t]) + (sum[2][t] + sum[3][t]), factor, acc[t]);
  }
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) store(sums[t], acc[t]);
}

template <std::size_t... G>
void multiply_exact_any(std::size_t group_size, const Nibbles& tile, std::size_t blocks, const float* x, Sums* sums,
                        std::index_sequence<G...>) {
  using Function = void (*)(const Nibbles&, std::size_t, const float*, Sums*);
  static constexpr Function functions[] = {&multiply_exact<G + 1>...};
  functions[group_size - 1](tile, blocks, x, sums);
}

// sums[t][r]: row r of a tile times token t of the batch, all blocks.
inline void multiply_tile(const Nibbles& tile, const ExactBatch& x, Sums* sums) {
  for (std::size_t group = 0; group < x.num_groups(); ++group) {
    const std::size_t begin = x.group_begin(group), size = x.group_begin(group + 1) - begin;
    const auto* data = reinterpret_cast<const float*>(x.data + begin * x.blocks * kExactBytes);
    multiply_exact_any(size, tile, x.blocks, data, sums + begin, std::make_index_sequence<kMostTokens>());
  }
}

}  // namespace ossia::OSSIA_ISA
