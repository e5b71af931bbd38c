// Attention over a paged cache of keys and values.
//
// The definition, the same bit for bit whatever the chunks, the companions, the threads and the ISA:
//
//   New keys and values are first rounded to the type of the cache and written to their pages; queries read pages alone.
//   A score is the sum of q[h] / sqrt(H) * k[h] from 0 in the order of h, each step one fma; in 8 bits it is then
//   multiplied by the key's scale. Keys are taken in segments of kSegmentTokens absolute positions. In a segment m is the
//   largest score that the query sees, p = exp(score - m), l the sum of p (in lanes of position mod 16, then by
//   halves), o[h] the sum of p * v[h] in the order of positions, each step one fma; in 8 bits p is first multiplied by the
//   value's scale. Segments are merged into (m, l, o) = (sink, 1, 0) in the order of positions; the result is o / l.
//
// What a query does not see is never used, so pages may hold anything there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

constexpr std::size_t kPageTokens = 64;
constexpr std::size_t kSegmentTokens = 512;

// One layer's attention for new tokens of many sequences, which lie end to end. T tokens, B sequences, N query heads, G
// key/value heads, H head size, W = H filled up to a multiple of 16, P pages, M pages in a sequence's table.
struct PagedAttention {
  std::size_t num_sequences, num_heads, num_groups, head_dim, table_width;
  const float* q;      // [T, N, H]
  const float* k;      // [T, G, H]
  const float* v;      // [T, G, H]
  const float* sinks;  // [N]
  // bfloat16 where there are no scales, else int8.
  void* keys;           // [P, G, H, 64]: lanes are tokens
  void* values;         // [P, G, 64, W]
  float* key_scales;    // [P, G, 64], or null
  float* value_scales;  // [P, G, 64], or null
  // Position p lies in the page tables[sequence][p / 64 mod M], at p mod 64.
  const std::int32_t* tables;   // [B, M]
  const std::int64_t* starts;   // [B]: the position of each sequence's first new token
  const std::int64_t* lengths;  // [B]: its new tokens
  std::size_t window;           // A query sees this many keys, itself included; 0: all.
  float* out;                   // [T, N, H]
};

// The caller answers for the shapes, for table entries below P, and that M pages are enough: for all positions, or at
// least for the window. The more a ring holds beyond the window, the more tokens are taken at once.
OSSIA_DECLARE(void attention_paged(const PagedAttention& call))

}  // namespace ossia
