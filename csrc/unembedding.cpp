// See unembedding.hpp. Templates of the library are used on types of this namespace alone: what the compiler makes of them
// for one ISA must not be shared with another.
#include "unembedding.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "pool.hpp"
#include "quantize_weights.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kPieces = 4;           // Of 64 bytes: a block of the high plane of a tile, and one of the low plane.
constexpr std::size_t kPlane = 64 * kPieces;

constexpr float kMost = 32512.0f;    // 127 * 256: the largest activation, so that its upper byte is at most 127.
constexpr float kLeast = 0x1p-100f;  // Blocks of smaller activations count as zeros, so that no product is subnormal.
constexpr float kUnbounded = 0x1p60f;  // With larger steps sums could overflow.

constexpr std::size_t kTokens = 4;       // That share a look at the weights in the first-level cache.
constexpr std::size_t kBatch = 8;        // That share a look at the weights in memory.
constexpr std::size_t kRound = 64;       // Rows completed, at least, before those still wanted are counted anew.
constexpr std::size_t kTilesAtOnce = 4;  // Expanded in the second-level cache.
constexpr std::size_t kGrain = 8;        // Tiles.
constexpr std::size_t kAhead = 8192;     // Bytes from what is used to what is fetched into the second-level cache.

// A plane in pieces of 64 bytes, which are read in order.
U8 next(const std::uint8_t* piece) {
  __builtin_prefetch(piece + kAhead, 0, 2);
  return load(piece);
}

// -------------------------------------------------------------------- activations

// 32 activations of one token: step * (256 high + low).
struct alignas(16) Block {
  std::int8_t high[kBlock];
  std::int8_t low[kBlock];
  float step;
  float variance;       // Of a coarse sum over the block under a scale of 1, in squares of the token's largest step.
  std::int32_t exact;   // Their sum over -(128 + u), which turns stored codes into q.
  std::int32_t coarse;  // Their sum over -(241 + 2 u), which turns 32 (h + 8) into 2 (16 h + 7.5 - u).
};

struct Token {
  float largest_step;  // NaN where an activation is not finite.
};

struct Activations16 {
  std::vector<Token> tokens;
  std::vector<Block> blocks;  // [tokens, blocks]
};

// Fills all of the block but its variance, and returns the sum of the squares.
double quantize(Block& out, const float* x, const std::int8_t* dither) {
  const F32 x0 = load(x), x1 = load(x + kLanes);
  const std::int32_t most_bits = largest(max(magnitude(x0), magnitude(x1)));
  float most;
  std::memcpy(&most, &most_bits, sizeof most);
  const bool finite = most <= FLT_MAX, used = finite && most >= kLeast;
  out.step = used ? most * (1.0f / kMost) : finite ? 0.0f : NAN;
  const F32 inverse = splat(used ? kMost / most : 0.0f);
  std::int32_t q[kBlock] = {};
  if (used) store(q, round_to_int(x0 * inverse)), store(q + kLanes, round_to_int(x1 * inverse));
  std::int64_t squares = 0;
  std::int32_t exact = 0, coarse = 0;
  for (std::size_t i = 0; i < kBlock; ++i) {
    const std::int32_t high = (q[i] + 128) >> 8;
    out.high[i] = static_cast<std::int8_t>(high);
    out.low[i] = static_cast<std::int8_t>(q[i] - 256 * high);
    exact -= (128 + dither[i]) * q[i];
    coarse -= (241 + 2 * dither[i]) * q[i];
    squares += static_cast<std::int64_t>(q[i]) * q[i];
  }
  out.exact = exact;
  out.coarse = coarse;
  return static_cast<double>(squares);
}

void quantize(Token& token, Block* blocks, const float* x, const Split& w, std::size_t columns) {
  float largest_step = 0;
  bool finite = true;
  for (std::size_t b = 0; b < w.blocks; ++b) {
    float last[kBlock] = {};
    const float* x_b = x + kBlock * b;
    if (kBlock * (b + 1) > columns) {
      std::memcpy(last, x_b, (columns - kBlock * b) * sizeof(float));
      x_b = last;
    }
    const double squares = quantize(blocks[b], x_b, w.dither + kBlock * b);
    blocks[b].variance = static_cast<float>(squares);  // At most 2^35: the rounding is allowed for in `reach`.
    finite &= blocks[b].step <= FLT_MAX;
    if (blocks[b].step > largest_step) largest_step = blocks[b].step;
  }
  token.largest_step = finite ? largest_step : NAN;
  for (std::size_t b = 0; b < w.blocks; ++b) {
    if (!(blocks[b].step > 0)) continue;
    const double part = static_cast<double>(blocks[b].step) / largest_step;
    blocks[b].variance = static_cast<float>(std::fmax(85.0 / 4.0 * blocks[b].variance * part * part, FLT_MIN));
  }
}

Activations16 quantized(const Split& w, const float* x, std::size_t tokens, std::size_t columns) {
  Activations16 out{std::vector<Token>(tokens), std::vector<Block>(tokens * w.blocks)};
  parallel_for(tokens, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t)
      quantize(out.tokens[t], out.blocks.data() + t * w.blocks, x + t * columns, w, columns);
  });
  return out;
}

// Calls body<N>(first) on groups of at most kTokens tokens.
template <typename Body>
void by_groups(std::size_t tokens, Body body) {
  std::size_t t = 0;
  for (; t + 4 <= tokens; t += 4) body(std::integral_constant<int, 4>(), t);
  if (tokens - t == 3) body(std::integral_constant<int, 3>(), t);
  if (tokens - t == 2) body(std::integral_constant<int, 2>(), t);
  if (tokens - t == 1) body(std::integral_constant<int, 1>(), t);
}

// -------------------------------------------------------------------- from both planes

// Codes of sixteen rows as stored, 16 (h + 8) + m = q + u + 128, in pieces of 4 columns: joined from the planes when used,
struct Planes {
  const std::uint8_t* high;  // [blocks, 256]
  const std::uint8_t* low;

  template <typename Body>
  void pieces(std::size_t block, Body body) const {
    for (std::size_t p = 0; p < kPieces; ++p) {
      const U8 h = next(high + block * kPlane + 64 * p), m = next(low + block * kPlane + 64 * p);
      body(2 * p, join_low_nibbles(h, m));
      body(2 * p + 1, join_high_nibbles(h, m));
    }
  }
};

// or once for many tokens.
struct Joined {
  const U8* codes;  // [blocks, 8]

  template <typename Body>
  void pieces(std::size_t block, Body body) const {
    for (std::size_t p = 0; p < 2 * kPieces; ++p) body(p, codes[2 * kPieces * block + p]);
  }
};

void join(U8* codes, const Planes& planes, std::size_t blocks) {
  for (std::size_t b = 0; b < blocks; ++b, codes += 2 * kPieces)
    planes.pieces(b, [&](std::size_t p, U8 piece) { codes[p] = piece; });
}

// Logits of sixteen rows for N tokens.
template <int N, typename Codes>
void exact(F32* y, const Codes& codes, const std::uint8_t* multipliers, F32 row_scales, const Block* x,
           std::size_t blocks) {
  F32 acc[N];
  for (F32& each : acc) each = splat(0.0f);
  for (std::size_t b = 0; b < blocks; ++b) {
    I32 high[N], low[N];
    for (int n = 0; n < N; ++n) high[n] = splat(0), low[n] = splat(x[n * blocks + b].exact);
    codes.pieces(b, [&](std::size_t p, U8 piece) {
      for (int n = 0; n < N; ++n) {
        high[n] = dot4(high[n], piece, splat4(x[n * blocks + b].high + 4 * p));
        low[n] = dot4(low[n], piece, splat4(x[n * blocks + b].low + 4 * p));
      }
    });
    const F32 k = to_float(widen(multipliers + b * kLanes));
    for (int n = 0; n < N; ++n)
      acc[n] = fma(to_float(shift_left<8>(high[n]) + low[n]), k * splat(x[n * blocks + b].step), acc[n]);
  }
  for (int n = 0; n < N; ++n) y[n] = row_scales * acc[n];
}

// -------------------------------------------------------------------- from the high plane

// By how many standard errors an estimate is raised, times the largest step: `deviations`, and what all roundings of both
// stages can add up to.
float reach(const Token& token, std::size_t blocks, double deviations) {
  const double rounding = FLT_EPSILON / 2;
  const double most_a_deviation = 127.5 * std::sqrt(kBlock * static_cast<double>(blocks) / (85.0 / 4.0));
  const double wanted =
      deviations * (1 + (blocks + 8.0) * rounding) + (2.0 * blocks + 8.0) * rounding * 1.05 * most_a_deviation;
  return token.largest_step < kUnbounded ? static_cast<float>(wanted * token.largest_step) : INFINITY;
}

// The largest possible logits of a tile for N tokens: the estimate and `reaches` standard errors.
template <int N>
void bound(float* upper, const Split& w, std::size_t tile, const Block* x, const float* reaches) {
  const std::size_t blocks = w.blocks;
  const std::uint8_t* high_plane = w.high + tile * blocks * kPlane;
  const std::uint8_t* multipliers = w.multipliers + tile * blocks * kLanes;
  F32 acc[N], variance[N];
  for (int n = 0; n < N; ++n) acc[n] = variance[n] = splat(0.0f);
  for (std::size_t b = 0; b < blocks; ++b) {
    I32 high[N], low[N];
    for (int n = 0; n < N; ++n) high[n] = low[n] = splat(0);
    for (std::size_t p = 0; p < kPieces; ++p) {
      const U8 piece = next(high_plane + b * kPlane + 64 * p), left = low_nibbles(piece), right = high_nibbles(piece);
      for (int n = 0; n < N; ++n) {
        const Block& each = x[n * blocks + b];
        high[n] = dot4_small(high[n], left, splat4(each.high + 8 * p));
        low[n] = dot4_small(low[n], left, splat4(each.low + 8 * p));
        high[n] = dot4_small(high[n], right, splat4(each.high + 8 * p + 4));
        low[n] = dot4_small(low[n], right, splat4(each.low + 8 * p + 4));
      }
    }
    const F32 k = to_float(widen(multipliers + b * kLanes));
    for (int n = 0; n < N; ++n) {
      const Block& each = x[n * blocks + b];
      const I32 twice = shift_left<5>(shift_left<8>(high[n]) + low[n]) + splat(each.coarse);
      acc[n] = fma(to_float(twice), k * splat(each.step), acc[n]);
      variance[n] = fma(k * k, splat(each.variance), variance[n]);
    }
  }
  const F32 row_scales = load(w.row_scales + tile * kLanes);
  for (int n = 0; n < N; ++n) {
    const F32 most = fma(splat(reaches[n]), sqrt(variance[n]), splat(0.5f) * acc[n]);
    // The last term is more than a product too small for a float can lose. NaN: nothing is known.
    const F32 sum = fma(row_scales, most, splat(FLT_MIN));
    store(upper + (n * w.tiles + tile) * kLanes, where_less(sum, splat(INFINITY), sum, splat(INFINITY)));
  }
}

// upper [tokens, 16 tiles], at most kBatch tokens.
void bound_all(float* upper, const Split& w, const Activations16& x, double deviations) {
  const std::size_t tokens = x.tokens.size();
  float reaches[kBatch];
  for (std::size_t t = 0; t < tokens; ++t) reaches[t] = reach(x.tokens[t], w.blocks, deviations);
  parallel_for(w.tiles, kGrain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t tile = begin; tile < end; ++tile)
      by_groups(tokens, [&](auto group, std::size_t t) {
        bound<group.value>(upper + t * w.tiles * kLanes, w, tile, x.blocks.data() + t * w.blocks, reaches + t);
      });
  });
}

// -------------------------------------------------------------------- the largest

struct Multipliers {
  std::uint8_t of_lane[kLanes];
};

struct Scored {
  float score;
  std::int64_t row;
};

// NaN first, then larger scores, then lower rows.
bool before(const Scored& a, const Scored& b) {
  const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.score != b.score) return a.score > b.score;
  return a.row < b.row;
}

constexpr auto in_order = [](const Scored& a, const Scored& b) { return before(a, b); };

// Calls body(row) where upper[row] >= least, in increasing order; `least` may grow meanwhile.
template <typename Body>
void for_each_above(const float* upper, std::size_t rows, const float& least, Body body) {
  constexpr std::size_t kChunk = 64;
  for (std::size_t begin = 0; begin < rows; begin += kChunk) {
    const std::size_t end = begin + kChunk < rows ? begin + kChunk : rows;
    const float at_least = least;
    int above = 0;
    for (std::size_t r = begin; r < end; ++r) above += upper[r] >= at_least;
    if (above == 0) continue;
    for (std::size_t r = begin; r < end; ++r)
      if (upper[r] >= at_least) body(r);
  }
}

// The `count` rows with the largest bounds.
std::vector<Scored> most_promising(const float* upper, std::size_t rows, std::size_t count) {
  std::vector<Scored> out;
  float least = -INFINITY;
  for_each_above(upper, rows, least, [&](std::size_t row) {
    out.push_back({upper[row], static_cast<std::int64_t>(row)});
    if (out.size() < 4 * count) return;
    std::nth_element(out.begin(), out.begin() + (count - 1), out.end(), in_order);
    out.resize(count);
    least = out.back().score;
  });
  if (out.size() > count) {
    std::nth_element(out.begin(), out.begin() + (count - 1), out.end(), in_order);
    out.resize(count);
  }
  return out;
}

// Lane r of every 64-byte piece of a tile, to another lane of other pieces.
void copy_lane(std::uint8_t* to, std::size_t to_lane, const std::uint8_t* from, std::size_t from_lane, std::size_t pieces) {
  for (std::size_t p = 0; p < pieces; ++p) std::memcpy(to + 64 * p + 4 * to_lane, from + 64 * p + 4 * from_lane, 4);
}

// Gives the rows in [begin, end) their scores from both planes, sixteen at a time: the very arithmetic of logits_split.
void complete(Scored* begin, Scored* end, const Split& w, const Block* x) {
  const std::size_t num_rows = end - begin, pieces = w.blocks * kPieces;
  parallel_for((num_rows + kLanes - 1) / kLanes, 1, [&](std::size_t first, std::size_t last) {
    std::vector<U8> planes(2 * pieces);
    std::vector<Multipliers> multipliers(w.blocks);
    auto* high = reinterpret_cast<std::uint8_t*>(planes.data());
    std::uint8_t* low = high + w.blocks * kPlane;
    for (std::size_t group = first; group < last; ++group) {
      float row_scales[kLanes], scores[kLanes];
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const std::size_t row = begin[std::min(group * kLanes + lane, num_rows - 1)].row;
        const std::size_t tile = row / kLanes, r = row % kLanes;
        copy_lane(high, lane, w.high + tile * w.blocks * kPlane, r, pieces);
        copy_lane(low, lane, w.low + tile * w.blocks * kPlane, r, pieces);
        for (std::size_t b = 0; b < w.blocks; ++b)
          multipliers[b].of_lane[lane] = w.multipliers[(tile * w.blocks + b) * kLanes + r];
        row_scales[lane] = w.row_scales[row];
      }
      F32 y;
      exact<1>(&y, Planes{high, low}, multipliers[0].of_lane, load(row_scales), x, w.blocks);
      store(scores, y);
      for (std::size_t lane = 0; lane < kLanes && group * kLanes + lane < num_rows; ++lane)
        begin[group * kLanes + lane].score = scores[lane];
    }
  });
}

// The `count` best rows of one token, in order, then all others that were completed. `upper` is spoiled.
std::vector<Scored> best_of(float* upper, const Split& w, const Block* x, std::size_t rows, std::size_t count) {
  std::vector<Scored> out = most_promising(upper, rows, std::min(rows, std::max(count, kLanes)));
  float least;  // A row whose bound is below is not wanted: it is the last wanted score so far.
  const auto complete_to = [&](std::size_t done, std::size_t end) {
    complete(out.data() + done, out.data() + end, w, x);
    std::nth_element(out.begin(), out.begin() + (count - 1), out.begin() + end, in_order);
    const float last = out[count - 1].score;
    least = last != last ? -INFINITY : last;
  };
  std::size_t done = out.size();
  complete_to(0, done);
  for (const Scored& each : out) upper[each.row] = NAN;  // Above nothing.
  for_each_above(upper, rows, least,
                 [&](std::size_t row) { out.push_back({upper[row], static_cast<std::int64_t>(row)}); });
  std::sort(out.begin() + done, out.end(), in_order);
  while (done < out.size() && out[done].score >= least) {
    const std::size_t end = std::min(out.size(), done + std::max(done / 8, kRound));
    complete_to(done, end);
    done = end;
  }
  out.resize(done);
  std::partial_sort(out.begin(), out.begin() + count, out.end(), in_order);
  return out;
}

}  // namespace

void logits_split(const Split& w, const float* x, float* y, std::size_t tokens, std::size_t columns, std::size_t rows) {
  const Activations16 activations = quantized(w, x, tokens, columns);
  const std::size_t tiles = (rows + kLanes - 1) / kLanes, pieces = w.blocks * kPieces;
  const std::size_t at_once = tokens > kTokens ? kTilesAtOnce : 1;
  parallel_for(tiles, kGrain, [&](std::size_t begin, std::size_t end) {
    std::vector<U8> joined(tokens > kTokens ? at_once * 2 * pieces : 0);
    for (std::size_t first = begin; first < end; first += at_once) {
      const std::size_t last = std::min(first + at_once, end);
      const auto planes = [&](std::size_t tile) {
        return Planes{w.high + tile * w.blocks * kPlane, w.low + tile * w.blocks * kPlane};
      };
      const auto codes = [&](std::size_t tile) { return joined.data() + (tile - first) * 2 * pieces; };
      if (tokens > kTokens)
        for (std::size_t tile = first; tile < last; ++tile) join(codes(tile), planes(tile), w.blocks);
      by_groups(tokens, [&](auto group, std::size_t t) {
        const Block* x_t = activations.blocks.data() + t * w.blocks;
        for (std::size_t tile = first; tile < last; ++tile) {
          const std::size_t row = tile * kLanes;
          const std::uint8_t* multipliers = w.multipliers + row * w.blocks;
          const F32 row_scales = load(w.row_scales + row);
          F32 y_N[group.value];
          if (tokens > kTokens)
            exact<group.value>(y_N, Joined{codes(tile)}, multipliers, row_scales, x_t, w.blocks);
          else
            exact<group.value>(y_N, planes(tile), multipliers, row_scales, x_t, w.blocks);
          for (int n = 0; n < group.value; ++n) {
            float lanes[kLanes];
            store(lanes, y_N[n]);
            std::memcpy(y + (t + n) * rows + row, lanes, std::min(kLanes, rows - row) * sizeof(float));
          }
        }
      });
    }
  });
}

void bounds_split(const Split& w, const float* x, float* upper, std::size_t tokens, std::size_t columns,
                  double deviations) {
  for (std::size_t t = 0; t < tokens; t += kBatch) {
    const Activations16 activations = quantized(w, x + t * columns, std::min(kBatch, tokens - t), columns);
    bound_all(upper + t * w.tiles * kLanes, w, activations, deviations);
  }
}

void best_split(const Split& w, const float* x, std::int64_t* ids, float* values, std::int64_t* completed,
                std::size_t tokens, std::size_t columns, std::size_t rows, std::size_t count, double deviations) {
  const std::size_t stride = w.tiles * kLanes;
  std::vector<F32> uppers(std::min(kBatch, tokens) * w.tiles);
  float* upper = reinterpret_cast<float*>(uppers.data());
  for (std::size_t t = 0; t < tokens; t += kBatch) {
    const Activations16 batch = quantized(w, x + t * columns, std::min(kBatch, tokens - t), columns);
    bound_all(upper, w, batch, deviations);
    for (std::size_t i = 0; i < batch.tokens.size(); ++i, ids += count, values += count, ++completed) {
      if (batch.tokens[i].largest_step != batch.tokens[i].largest_step) {  // Then every logit is NaN.
        for (std::size_t k = 0; k < count; ++k) ids[k] = k, values[k] = NAN;
        *completed = 0;
        continue;
      }
      const std::vector<Scored> best =
          best_of(upper + i * stride, w, batch.blocks.data() + i * w.blocks, rows, count);
      for (std::size_t k = 0; k < count; ++k) ids[k] = best[k].row, values[k] = best[k].score;
      *completed = best.size();
    }
  }
}

// -------------------------------------------------------------------- packing

void pack_split(const SplitOut& out, const std::uint16_t* weight, std::size_t rows, std::size_t columns) {
  constexpr float kMostQ = 120.0f;  // packed.MOST_SPLIT
  parallel_for(out.tiles, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin * kLanes; row < end * kLanes; ++row) {
      const std::size_t tile = row / kLanes, r = row % kLanes;
      const std::uint16_t* from = row < rows ? weight + row * columns : nullptr;  // Rows that fill up the tile are zeros.
      const auto emit = [&](std::size_t block, I32 first, I32 second, std::uint8_t multiplier) {
        const I32 middle = splat(128);
        const std::int8_t* u = out.dither + kBlock * block;
        std::int32_t sums[kBlock];
        store(sums, first + widen(u) + middle);
        store(sums + kLanes, second + widen(u + kLanes) + middle);
        const std::size_t place = (tile * out.blocks + block) * kPlane + 4 * r;
        std::uint8_t *high = out.high + place, *low = out.low + place;
        for (std::size_t p = 0; p < kPieces; ++p)
          for (std::size_t c = 0; c < 4; ++c) {
            const std::int32_t left = sums[8 * p + c], right = sums[8 * p + 4 + c];
            high[64 * p + c] = static_cast<std::uint8_t>((left >> 4) | (right & 0xf0));
            low[64 * p + c] = static_cast<std::uint8_t>((left & 0x0f) | (right & 0x0f) << 4);
          }
        out.multipliers[(tile * out.blocks + block) * kLanes + r] = multiplier;
      };
      out.row_scales[row] = quantize_row(from, from ? columns : 0, out.blocks, kMostQ, emit);
    }
  });
}

}  // namespace ossia::OSSIA_ISA
