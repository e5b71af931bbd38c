// Products of a tile of sixteen rows with a batch of tokens in 8 bits: the inner loops of all ops on packed weights.
// The layouts are those of src/ossia/kernels/packed.py; lane r of every vector is row r of the tile.
//
// One block of 32 columns gives an exact integer; between blocks, in order, acc = fma(integer, weight scale * x scale, acc).
// A sum is thus the same whatever is computed beside it. For many tokens the codes of a panel of blocks stay in the
// first-level cache (4-bit codes are expanded into it) while all groups of tokens pass by.
#pragma once

#include <algorithm>
#include <utility>

#include "quantize.hpp"

namespace ossia::OSSIA_ISA {

constexpr std::size_t kNibbleBytes = 256;  // Codes of a block, 4 bits each.
constexpr std::size_t kByteBytes = 512;    // Codes of a block, 8 bits each.
constexpr std::size_t kPanel = 16;         // Blocks that are multiplied before the next ones are looked at.
constexpr std::size_t kChunk = 96;         // Tokens multiplied with one expansion; callers give no more.

constexpr std::int32_t kNibbleOffset = 12;  // Unsigned codes stand for value + offset.
constexpr std::int32_t kByteOffset = 128;

using Sums = float[kLanes];  // One number a row of the tile.

// Twice the value of each E2M1 code, + 12.
alignas(16) inline constexpr std::uint8_t kE2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};


// In the middle of each page of 4 KiB, touches the next one: the processor's own prefetching ends with the page, and finding
// the next page's address takes about as long as reading a page. One line is enough; more of them are in its way.
OSSIA_INLINE void touch_next_page(const std::uint8_t* codes, std::size_t bytes) {
  constexpr std::uintptr_t kPage = 4096;
  const auto at = reinterpret_cast<std::uintptr_t>(codes);
  if ((at & (kPage - bytes)) == kPage / 2) prefetch(codes + (kPage - at % kPage));
}

// What a product needs of the weights. `ahead` fetches what will be needed later; `pair` gives columns 8 p .. 8 p + 3 and
// the next four of a block; `factor` is what the block's scale is made of; `times` the weight scale times the x scale.

// 4-bit codes in memory.
struct Nibbles {
  static constexpr bool kSmall = true;
  const std::uint8_t* codes;
  const std::uint8_t* scales;
  Table values = table(kE2m1);

  template <std::size_t G>
  OSSIA_INLINE void ahead(std::size_t block) const {
    touch_next_page(codes + block * kNibbleBytes, kNibbleBytes);
    if (G == 1) return;  // So quick that more would only be in the way.
    for (std::size_t i = 0; i < kNibbleBytes; i += 64) prefetch(codes + (block + 4) * kNibbleBytes + i);
  }
  void pair(std::size_t block, std::size_t p, U8& first, U8& second) const {
    const U8 both = load(codes + block * kNibbleBytes + 64 * p);
    first = look_up(values, low_nibbles(both));
    second = look_up(values, high_nibbles(both));
  }
  // 2^(byte - 128): half of what the byte stands for, as the values are doubled. Bytes 0 and 1 give subnormal numbers.
  F32 factor(std::size_t block) const {
    const I32 byte = widen(scales + block * kLanes);
    return from_bits(max(shift_left<23>(byte - splat(1)), shift_right(splat(0x00400000), splat(1) - byte)));
  }
  static F32 times(F32 factor, const float* scale) { return factor * splat(*scale); }
};

// 8-bit codes in memory.
struct Bytes {
  static constexpr bool kSmall = false;
  const std::uint8_t* codes;
  const std::uint8_t* multipliers;

  template <std::size_t G>
  OSSIA_INLINE void ahead(std::size_t block) const {
    touch_next_page(codes + block * kByteBytes, kByteBytes);
  }
  void pair(std::size_t block, std::size_t p, U8& first, U8& second) const {
    first = load(codes + block * kByteBytes + 128 * p);
    second = load(codes + block * kByteBytes + 128 * p + 64);
  }
  F32 factor(std::size_t block) const { return to_float(widen(multipliers + block * kLanes)); }
  static F32 times(F32 factor, const float* scale) { return factor * splat(*scale); }
};

// While a panel is in the cache, the first two groups of tokens fetch half of the next one each.
template <std::size_t kBytes>
struct Soon {
  const std::uint8_t* half;  // Null for other groups.

  Soon(const std::uint8_t* next, std::size_t group) : half(group < 2 ? next + group * kPanel * kBytes / 2 : nullptr) {}
  OSSIA_INLINE void fetch(std::size_t block) const {
    if (!half) return;
    for (std::size_t i = 0; i < kBytes / 2; i += 64) prefetch(half + block * kBytes / 2 + i);
  }
};

// A panel of 8-bit codes that many groups pass by.
struct BytesPanel : Bytes {
  Soon<kByteBytes> soon;

  template <std::size_t G>
  OSSIA_INLINE void ahead(std::size_t block) const {
    soon.fetch(block);
  }
};

// A panel of 4-bit codes as bytes.
struct Panel {
  alignas(64) std::uint8_t codes[kPanel * kByteBytes];
  alignas(64) std::int32_t factors[kPanel * kLanes];  // Bits of floats or, where all is moderate, what to add to exponents.
  bool moderate;

  void fill(const Nibbles& from, std::size_t begin, std::size_t end, bool x_moderate) {
    I32 least = splat(255), most = splat(0);
    for (std::size_t block = begin; block < end; ++block) {
      for (std::size_t p = 0; p < 4; ++p) {
        U8 first, second;
        from.pair(block, p, first, second);
        store(codes + (block - begin) * kByteBytes + 128 * p, first);
        store(codes + (block - begin) * kByteBytes + 128 * p + 64, second);
      }
      const I32 byte = widen(from.scales + block * kLanes);
      least = min(least, byte), most = max(most, byte);
    }
    moderate = x_moderate && -largest(splat(0) - least) >= 128 - kModerate && largest(most) <= 128 + kModerate;
    for (std::size_t block = begin; block < end; ++block) {
      const I32 exponent = shift_left<23>(widen(from.scales + block * kLanes) - splat(128));
      store(factors + (block - begin) * kLanes, moderate ? exponent : bits(from.factor(block)));
    }
  }
};

struct Expanded {
  static constexpr bool kSmall = true;
  const Panel& panel;
  Soon<kNibbleBytes> soon;

  template <std::size_t G>
  OSSIA_INLINE void ahead(std::size_t block) const {
    soon.fetch(block);
  }
  void pair(std::size_t block, std::size_t p, U8& first, U8& second) const {
    first = load(panel.codes + block * kByteBytes + 128 * p);
    second = load(panel.codes + block * kByteBytes + 128 * p + 64);
  }
  F32 factor(std::size_t block) const { return from_bits(load(panel.factors + block * kLanes)); }
  static F32 times(F32 factor, const float* scale) { return factor * splat(*scale); }
};

// The same where neither the weights' scales nor those of x are extreme: a power of two is multiplied by adding to the
// exponent, which is exact, and leaves the multiplier to the products.
struct Shifted : Expanded {
  I32 factor(std::size_t block) const { return load(panel.factors + block * kLanes); }
  static F32 times(I32 factor, const float* scale) {
    std::int32_t x;
    std::memcpy(&x, scale, sizeof x);
    return from_bits(factor + splat(x));
  }
};

// Adds the products of blocks 0 .. count - 1 to the sums of G tokens.
template <std::size_t G, typename Weights>
void multiply_group(const Weights& weights, std::size_t count, const std::uint8_t* x, Sums* sums) {
  F32 acc[G];
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) acc[t] = load(sums[t]);
  const auto* block = reinterpret_cast<const Activations<G>*>(x);
  for (std::size_t b = 0; b < count; ++b, ++block) {
    weights.template ahead<G>(b);
    I32 sum[G];
#pragma GCC unroll 16
    for (std::size_t t = 0; t < G; ++t) sum[t] = splat(block->correction[t]);
#pragma GCC unroll 4
    for (std::size_t p = 0; p < 4; ++p) {
      U8 first, second;
      weights.pair(b, p, first, second);
#pragma GCC unroll 16
      for (std::size_t t = 0; t < G; ++t) {
        const S8 x_first = splat4(block->codes[2 * p][t]);
        sum[t] = Weights::kSmall ? dot4_small(sum[t], first, x_first) : dot4(sum[t], first, x_first);
      }
#pragma GCC unroll 16
      for (std::size_t t = 0; t < G; ++t) {
        const S8 x_second = splat4(block->codes[2 * p + 1][t]);
        sum[t] = Weights::kSmall ? dot4_small(sum[t], second, x_second) : dot4(sum[t], second, x_second);
      }
    }
    const auto factor = weights.factor(b);
#pragma GCC unroll 16
    for (std::size_t t = 0; t < G; ++t) acc[t] = fma(to_float(sum[t]), Weights::times(factor, &block->scale[t]), acc[t]);
  }
#pragma GCC unroll 16
  for (std::size_t t = 0; t < G; ++t) store(sums[t], acc[t]);
}

template <typename Weights, std::size_t... G>
void multiply_any(std::size_t group_size, const Weights& weights, std::size_t count, const std::uint8_t* x, Sums* sums,
                  std::index_sequence<G...>) {
  using Function = void (*)(const Weights&, std::size_t, const std::uint8_t*, Sums*);
  static constexpr Function functions[] = {&multiply_group<G + 1, Weights>...};
  functions[group_size - 1](weights, count, x, sums);
}

// The same for one group of a batch, from the given block of x on.
template <typename Weights>
void multiply(const Weights& weights, std::size_t count, const Batch& x, std::size_t group, std::size_t block, Sums* sums) {
  const std::size_t begin = x.group_begin(group), size = x.group_begin(group + 1) - begin;
  multiply_any(size, weights, count, x.data + (begin * x.blocks + size * block) * kBlockBytes, sums + begin,
               std::make_index_sequence<kMostTokens>());
}

// sums[t][r]: row r of a tile times token t of the batch, all blocks.
inline void multiply_tile(const Nibbles& tile, const Batch& x, Sums* sums) {
  std::memset(sums, 0, x.tokens * sizeof(Sums));
  const std::size_t groups = x.num_groups();
  if (groups == 1) return multiply(tile, x.blocks, x, 0, 0, sums);
  Panel panel;
  for (std::size_t begin = 0; groups > 0 && begin < x.blocks; begin += kPanel) {
    const std::size_t end = std::min(begin + kPanel, x.blocks);
    panel.fill(tile, begin, end, x.moderate);
    for (std::size_t group = 0; group < groups; ++group) {
      const Expanded expanded{panel, {tile.codes + end * kNibbleBytes, group}};
      if (panel.moderate)
        multiply(Shifted{expanded}, end - begin, x, group, begin, sums);
      else
        multiply(expanded, end - begin, x, group, begin, sums);
    }
  }
}

inline void multiply_tile(const Bytes& tile, const Batch& x, Sums* sums) {
  std::memset(sums, 0, x.tokens * sizeof(Sums));
  const std::size_t groups = x.num_groups();
  if (groups == 1) return multiply(tile, x.blocks, x, 0, 0, sums);
  for (std::size_t begin = 0; groups > 0 && begin < x.blocks; begin += kPanel) {
    const std::size_t end = std::min(begin + kPanel, x.blocks);
    const Bytes panel{tile.codes + begin * kByteBytes, tile.multipliers + begin * kLanes};
    for (std::size_t group = 0; group < groups; ++group) {
      const BytesPanel with_next{panel, {tile.codes + end * kByteBytes, group}};
      multiply(with_next, end - begin, x, group, begin, sums);
    }
  }
}

}  // namespace ossia::OSSIA_ISA
