// Activations in 8 bits, in blocks of 32 columns: x ~ scale * code. A block's scale is its largest magnitude / 127.
//
// Products read tokens in groups. A group of G tokens lies in memory block by block, and in a block in the order in which the
// register blocks of tiles.hpp use it (struct Activations). A batch of n tokens is cut into groups of equal size, as far as
// that goes, of at most kMostTokens.
#pragma once

#include "lanes.hpp"

namespace ossia::OSSIA_ISA {

constexpr std::size_t kBlock = 32;

// Tokens whose sums fit into the registers together.
#if OSSIA_LANES_AVX512
constexpr std::size_t kMostTokens = 12;
#else
constexpr std::size_t kMostTokens = 4;
#endif

template <std::size_t G>
struct Activations {
  std::int32_t correction[G];  // Minus what unsigned codes of weights add to the exact sum: -offset * (sum of the codes).
  float scale[G];
  std::int8_t codes[kBlock / 4][G][4];
};

// Of one token in one block.
constexpr std::size_t kBlockBytes = sizeof(Activations<1>);
static_assert(sizeof(Activations<kMostTokens>) == kMostTokens * kBlockBytes);

inline std::size_t num_blocks(std::size_t columns) { return (columns + kBlock - 1) / kBlock; }

// Where a token of a batch lies: in a group of `size`, whose blocks follow one another from `data` on.
struct Place {
  std::uint8_t* data;
  std::size_t size;
  std::size_t within;
};

// n tokens in groups, of which one block of one token takes kBytes.
template <std::size_t kBytes>
struct BatchOf {
  std::uint8_t* data;  // n * blocks * kBytes
  std::size_t tokens;
  std::size_t blocks;
  bool moderate = false;  // All scales are.

  std::size_t num_groups() const { return (tokens + kMostTokens - 1) / kMostTokens; }
  std::size_t group_begin(std::size_t group) const { return group * tokens / num_groups(); }

  // Calls visit(token, place) on every token in order.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (std::size_t group = 0; group < num_groups(); ++group) {
      const std::size_t begin = group_begin(group), size = group_begin(group + 1) - begin;
      for (std::size_t i = 0; i < size; ++i) visit(begin + i, Place{data + begin * blocks * kBytes, size, i});
    }
  }
};

using Batch = BatchOf<kBlockBytes>;

// A scale is moderate within 2^-60 .. 2^60: the product of two such is a normal number.
constexpr int kModerate = 60;
inline bool is_moderate(float scale) { return scale >= 0x1p-60f && scale <= 0x1p60f; }

struct QuantizedBlock {
  std::int8_t codes[kBlock];
  float scale;
  std::int32_t sum;  // Of the codes.
};

// 32 columns. Where one is NaN or infinite, the scale is, and with it whatever is made of the block.
inline QuantizedBlock quantize(const float* x) {
  QuantizedBlock out;
  const F32 first = load(x), second = load(x + kLanes);
  const std::int32_t most = largest(max(magnitude(first), magnitude(second)));
  float absolute;
  std::memcpy(&absolute, &most, sizeof absolute);
  const float inverse = absolute > 0 ? 127.0f / absolute : 0.0f;
  const auto codes = [&](F32 part, std::int8_t* to) {
    const F32 scaled = part * splat(inverse);
    // What is not a number has code 0.
    const I32 code = round_to_int(where_less(from_bits(magnitude(scaled)), splat(128.0f), scaled, splat(0.0f)));
    narrow(to, code);
    return code;
  };
  const I32 first_codes = codes(first, out.codes), second_codes = codes(second, out.codes + kLanes);
  out.sum = sum(first_codes + second_codes);
  // With codes of 0 any scale serves; 1 is moderate.
  out.scale = most == 0 ? 1.0f : absolute * (1.0f / 127.0f);
  return out;
}

// Puts a block of a token in its place, for weights whose codes are `offset` too large.
inline void put(Place place, std::size_t block, const QuantizedBlock& q, std::int32_t offset) {
  std::uint8_t* to = place.data + place.size * block * kBlockBytes + 4 * place.within;
  const std::int32_t correction = -offset * q.sum;
  std::memcpy(to, &correction, 4);
  std::memcpy(to + 4 * place.size, &q.scale, 4);
  for (std::size_t p = 0; p < kBlock / 4; ++p) std::memcpy(to + 4 * place.size * (2 + p), q.codes + 4 * p, 4);
}

// The same for a row x of `columns`, filled up with zeros to `blocks`. Returns whether all scales are moderate.
inline bool put_row(Place place, std::size_t blocks, const float* x, std::size_t columns, std::int32_t offset) {
  bool moderate = true;
  for (std::size_t block = 0; block < blocks; ++block) {
    const float* from = x + block * kBlock;
    float filled[kBlock] = {};
    if (columns < (block + 1) * kBlock) {
      std::memcpy(filled, from, (columns - block * kBlock) * sizeof(float));
      from = filled;
    }
    const QuantizedBlock q = quantize(from);
    put(place, block, q, offset);
    moderate &= is_moderate(q.scale);
  }
  return moderate;
}

}  // namespace ossia::OSSIA_ISA
