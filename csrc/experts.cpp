#include "experts.hpp"

#include <atomic>

#include "exact.hpp"
#include "pool.hpp"
#include "scratch.hpp"
#include "tiles.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kMostAtOnce = 512;        // Tokens at a time, which bounds the memory.
constexpr std::size_t kUnitTiles = 4;           // Tiles of gate_up that make one block of columns for `down`.
constexpr std::size_t kWorthWaking = 1u << 18;  // Multiply-adds below which one thread is as quick as two.

// Slots of one expert that are multiplied together. A slot is one token at one of its experts; slots are numbered expert
// by expert, and `order` says which place t * active + k of the routing each has.
struct Part {
  std::size_t expert;
  std::size_t first;
  std::size_t count;
};

F32 swiglu(F32 gate, F32 linear, float limit) {
  const F32 most = splat(limit);
  // The operand that may be NaN comes second, so that NaN stays.
  gate = min(most, gate);
  linear = max(splat(-limit), min(most, linear));
  return gate / (splat(1.0f) + exp(splat(-1.702f) * gate)) * (linear + splat(1.0f));
}

// What becomes of activations: `put` stores 32 of them and says whether the scales among them are moderate, and
// multiply_tile multiplies a Batch of them.
struct Rounded {
  static constexpr std::size_t kBytes = kBlockBytes;

  static bool put(Place place, std::size_t block, const float* x) {
    const QuantizedBlock q = quantize(x);
    OSSIA_ISA::put(place, block, q, kNibbleOffset);
    return is_moderate(q.scale);
  }
};

struct Exact {
  static constexpr std::size_t kBytes = kExactBytes;

  static bool put(Place place, std::size_t block, const float* x) {
    put_exact(place, block, x);
    return true;
  }
};

// One piece of work: all phases run on `parts`, one after the other.
template <typename Storage>
class Step {
 public:
  Step(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids, const float* weights,
       std::size_t active, float* out)
      : experts_(experts), x_(x), tokens_(tokens), weights_(weights), active_(active), out_(out) {
    static thread_local Scratch order, parts, extreme, x_data, h_data, outputs;
    const std::size_t slots = tokens * active;
    x_blocks_ = num_blocks(experts.hidden), h_blocks_ = num_blocks(experts.intermediate);
    order_ = order.take<std::size_t>(slots + experts.experts + 1);
    parts_ = parts.take<Part>(slots);
    extreme_ = extreme.take<std::atomic<bool>>(2 * slots);
    h_data_ = h_data.take<std::uint8_t>(slots * h_blocks_ * Storage::kBytes);
    outputs_ = outputs.take<float>(slots * experts.hidden);
    sort(ids, slots);
    shared_ = tokens == 1 && num_parts_ == slots;
    x_data_ = x_data.take<std::uint8_t>((shared_ ? 1 : slots) * x_blocks_ * Storage::kBytes);
  }

  void run() {
    const std::size_t slots = tokens_ * active_, units = h_blocks_, tiles = experts_.hidden / kLanes;
    const bool alone = slots * experts_.hidden * experts_.intermediate <= kWorthWaking;
    const auto share = [&](std::size_t count, std::size_t grain, auto body) {
      parallel_for(count, alone ? std::max<std::size_t>(count, 1) : grain, body);
    };
    put_x(alone);
    share(num_parts_ * units, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) gate_up(parts_[i / units], i / units, i % units);
    });
    share(num_parts_ * tiles, 4, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) down(parts_[i / tiles], i / tiles, i % tiles);
    });
    share(tokens_, 16, [&](std::size_t begin, std::size_t end) {
      for (std::size_t t = begin; t < end; ++t) add_up(t);
    });
  }

 private:
  using Batch = BatchOf<Storage::kBytes>;

  // Slots by expert, by counting; then cut into parts.
  void sort(const std::int64_t* ids, std::size_t slots) {
    std::size_t* next = order_ + slots;
    for (std::size_t e = 0; e <= experts_.experts; ++e) next[e] = 0;
    for (std::size_t i = 0; i < slots; ++i) ++next[ids[i] + 1];
    num_parts_ = 0;
    for (std::size_t e = 0; e < experts_.experts; ++e) {
      const std::size_t count = next[e + 1];
      for (std::size_t done = 0; done < count; done += kChunk)
        parts_[num_parts_++] = {e, next[e] + done, std::min(kChunk, count - done)};
      next[e + 1] += next[e];
    }
    for (std::size_t i = 0; i < slots; ++i) order_[next[ids[i]]++] = i;
    for (std::size_t i = 0; i < 2 * num_parts_; ++i) new (&extreme_[i]) std::atomic<bool>(false);
  }

  Batch x_batch(const Part& part, std::size_t index) const {
    const std::size_t first = shared_ ? 0 : part.first;
    return {x_data_ + first * x_blocks_ * Storage::kBytes, part.count, x_blocks_, !extreme_[2 * index].load()};
  }

  Batch h_batch(const Part& part, std::size_t index) const {
    return {h_data_ + part.first * h_blocks_ * Storage::kBytes, part.count, h_blocks_, !extreme_[2 * index + 1].load()};
  }

  void put_x(bool alone) {
    const std::size_t count = shared_ ? std::min<std::size_t>(num_parts_, 1) : num_parts_;
    parallel_for(count, alone ? std::max<std::size_t>(count, 1) : 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        x_batch(parts_[i], i).for_each([&](std::size_t j, Place place) {
          const float* row = x_ + order_[parts_[i].first + j] / active_ * experts_.hidden;
          for (std::size_t block = 0; block < x_blocks_; ++block)
            if (!Storage::put(place, block, row + block * kBlock)) extreme_[2 * i].store(true);
        });
    });
  }

  static Nibbles tile(const ExpertsMatrix& matrix, std::size_t index, std::size_t blocks) {
    return {matrix.codes + index * blocks * kNibbleBytes, matrix.scales + index * blocks * kLanes};
  }

  // Four tiles: gate and linear rows of 32 columns of h, which are put away at once.
  void gate_up(const Part& part, std::size_t index, std::size_t unit) {
    const Batch x = x_batch(part, index), h = h_batch(part, index);
    const std::size_t first = (part.expert * h_blocks_ + unit) * kUnitTiles;
    const float* bias = experts_.gate_up.bias + first * kLanes;
    float columns[kChunk][kBlock];
    for (std::size_t half = 0; half < 2; ++half) {
      Sums gates[kChunk], linears[kChunk];
      multiply_tile(tile(experts_.gate_up, first + 2 * half, x_blocks_), x, gates);
      multiply_tile(tile(experts_.gate_up, first + 2 * half + 1, x_blocks_), x, linears);
      const F32 gate_bias = load(bias + 2 * half * kLanes), linear_bias = load(bias + (2 * half + 1) * kLanes);
      for (std::size_t j = 0; j < x.tokens; ++j)
        store(columns[j] + half * kLanes, swiglu(load(gates[j]) + gate_bias, load(linears[j]) + linear_bias, experts_.limit));
    }
    bool moderate = true;
    h.for_each([&](std::size_t j, Place place) { moderate &= Storage::put(place, unit, columns[j]); });
    if (!moderate) extreme_[2 * index + 1].store(true);
  }

  void down(const Part& part, std::size_t index, std::size_t number) {
    const Batch h = h_batch(part, index);
    const std::size_t tiles = experts_.hidden / kLanes;
    Sums sums[kChunk];
    multiply_tile(tile(experts_.down, part.expert * tiles + number, h_blocks_), h, sums);
    const F32 bias = load(experts_.down.bias + (part.expert * tiles + number) * kLanes);
    for (std::size_t j = 0; j < h.tokens; ++j)
      store(outputs_ + order_[part.first + j] * experts_.hidden + number * kLanes, load(sums[j]) + bias);
  }

  void add_up(std::size_t t) {
    for (std::size_t column = 0; column < experts_.hidden; column += kLanes) {
      F32 y = splat(0.0f);
      for (std::size_t i = t * active_; i < (t + 1) * active_; ++i)
        y = fma(splat(weights_[i]), load(outputs_ + i * experts_.hidden + column), y);
      store(out_ + t * experts_.hidden + column, y);
    }
  }

  const Experts& experts_;
  const float* x_;
  std::size_t tokens_;
  const float* weights_;
  std::size_t active_;
  float* out_;
  std::size_t x_blocks_, h_blocks_, num_parts_;
  bool shared_;  // A lone token is the same for each of its experts.
  std::size_t* order_;
  Part* parts_;
  std::atomic<bool>* extreme_;  // Of each part: x, then h, holds scales that are not moderate.
  std::uint8_t* x_data_;
  std::uint8_t* h_data_;
  float* outputs_;
};

template <typename Storage>
void run_in_steps(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids,
                  const float* weights, std::size_t active, float* out) {
  for (std::size_t first = 0; first < tokens; first += kMostAtOnce) {
    const std::size_t count = std::min(kMostAtOnce, tokens - first);
    Step<Storage>(experts, x + first * experts.hidden, count, ids + first * active, weights + first * active, active,
                  out + first * experts.hidden)
        .run();
  }
}

}  // namespace

void experts_packed(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids,
                    const float* weights, std::size_t active, float* out) {
  run_in_steps<Rounded>(experts, x, tokens, ids, weights, active, out);
}

void experts_exact(const Experts& experts, const float* x, std::size_t tokens, const std::int64_t* ids,
                   const float* weights, std::size_t active, float* out) {
  run_in_steps<Exact>(experts, x, tokens, ids, weights, active, out);
}

}  // namespace ossia::OSSIA_ISA
