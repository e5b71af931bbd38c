// Attention over pages; the definition is in attention.hpp.
//
// All query heads of a key/value head share each vector of keys or values that is loaded. Prefill and decoding are the same
// code: work is cut by blocks of queries and heads, and where that is too little, by segments too.
#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.hpp"
#include "pool.hpp"

namespace ossia::OSSIA_ISA {
namespace {

constexpr std::size_t kBlockTokens = 16;  // Queries that share a segment while it is in the cache.
constexpr std::size_t kMostPartials = std::size_t{1} << 20;  // Lines: 64 MB.
constexpr std::size_t kScoreStride = kSegmentTokens + kLanes;  // Not a power of two, so that rows do not share cache sets.

// Accumulators are rows x vectors of sixteen lanes; these fill the registers of each ISA.
#if OSSIA_LANES_AVX512
constexpr std::size_t kRows = 8;
template <std::size_t rows>
constexpr std::size_t kVectors = rows > 4 ? 2 : 4;
#else
constexpr std::size_t kRows = 4;
template <std::size_t rows>
constexpr std::size_t kVectors = rows > 2 ? 1 : 2;
#endif

// Sixteen floats. Also keeps this ISA's instances of the library's templates apart from the others'.
struct alignas(64) Line {
  float v[kLanes];
};

inline F32 load(const Line& line) { return OSSIA_ISA::load(line.v); }
inline void store(Line& line, F32 a) { OSSIA_ISA::store(line.v, a); }

inline F32 load_cached(const std::uint16_t* p) { return load_bf16(p); }
inline F32 load_cached(const std::int8_t* p) { return to_float(widen(p)); }

// Neighbouring tokens of one sequence.
struct Span {
  std::size_t sequence, token, count, position;
};

struct Segments {
  std::size_t first, last;  // One past.
  std::size_t count() const { return last - first; }
};

// One key/value head of one page.
template <typename T>
struct Page {
  T* keys;
  T* values;
  float* key_scales;
  float* value_scales;
};

template <typename T>
class Paged {
 public:
  explicit Paged(const PagedAttention& call)
      : call_(call),
        group_(call.num_heads / call.num_groups),
        vectors_((call.head_dim + kLanes - 1) / kLanes),
        row_lines_(2 + vectors_),
        scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(call.head_dim)))) {}

  void run() {
    // New tokens must not take the place in a ring of what the first of them sees: they come in pieces that fit.
    std::vector<Span> left, now;
    std::size_t token = 0;
    for (std::size_t b = 0; b < call_.num_sequences; ++b) {
      const auto count = static_cast<std::size_t>(call_.lengths[b]);
      if (count > 0) left.push_back({b, token, count, static_cast<std::size_t>(call_.starts[b])});
      token += count;
    }
    while (!left.empty()) {
      now.clear();
      for (Span& span : left) {
        now.push_back(span);
        now.back().count = std::min(span.count, room(span));
        span.token += now.back().count;
        span.position += now.back().count;
        span.count -= now.back().count;
      }
      left.erase(std::remove_if(left.begin(), left.end(), [](const Span& span) { return span.count == 0; }), left.end());
      for (const Span& span : now) write(span);
      attend(now);
    }
  }

 private:
  std::size_t room(const Span& span) const {
    const std::size_t size = call_.table_width * kPageTokens;
    return span.position + span.count <= size ? span.count : size - (call_.window - 1);
  }

  Page<T> page(std::size_t sequence, std::size_t index, std::size_t g) const {
    const std::int32_t id = call_.tables[sequence * call_.table_width + index % call_.table_width];
    const std::size_t at = static_cast<std::size_t>(id) * call_.num_groups + g;
    const bool scaled = call_.key_scales != nullptr;
    return {static_cast<T*>(call_.keys) + at * call_.head_dim * kPageTokens,
            static_cast<T*>(call_.values) + at * kPageTokens * vectors_ * kLanes,
            scaled ? call_.key_scales + at * kPageTokens : nullptr,
            scaled ? call_.value_scales + at * kPageTokens : nullptr};
  }

  // ------------------------------------------------------------------ new keys and values

  void write(const Span& span) const {
    const std::size_t tokens = span.count;
    parallel_for(call_.num_groups * tokens, 64, [&](std::size_t begin, std::size_t end) {
      Line* row = scratch(2 * vectors_);  // Floats, then what they are rounded to.
      T* rounded = reinterpret_cast<T*>(row + vectors_);
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t g = i / tokens, position = span.position + i % tokens, slot = position % kPageTokens;
        const std::size_t at = ((span.token + i % tokens) * call_.num_groups + g) * call_.head_dim;
        const Page<T> to = page(span.sequence, position / kPageTokens, g);
        round(call_.k + at, row, rounded, to.key_scales, slot);
        for (std::size_t h = 0; h < call_.head_dim; ++h) to.keys[h * kPageTokens + slot] = rounded[h];
        round(call_.v + at, row, rounded, to.value_scales, slot);
        std::memcpy(to.values + slot * vectors_ * kLanes, rounded, vectors_ * kLanes * sizeof(T));
      }
    });
  }

  // x [H], filled up with zeros, in the type of the cache.
  void round(const float* x, Line* row, T* rounded, float* scales, std::size_t slot) const {
    store(row[vectors_ - 1], splat(0.0f));
    std::memcpy(row, x, call_.head_dim * sizeof(float));
    if constexpr (sizeof(T) == 2) {
      for (std::size_t j = 0; j < vectors_; ++j) store_bf16(rounded + j * kLanes, load(row[j]));
    } else {
      I32 most = splat(std::int32_t{0});
      for (std::size_t j = 0; j < vectors_; ++j) most = max(most, magnitude(load(row[j])));
      const std::int32_t bits = largest(most);
      float a;
      std::memcpy(&a, &bits, sizeof a);
      scales[slot] = a * (1.0f / 127.0f);
      const F32 inverse = splat(a > 0 ? 127.0f / a : 0.0f);
      for (std::size_t j = 0; j < vectors_; ++j) narrow(rounded + j * kLanes, round_to_int(load(row[j]) * inverse));
    }
  }

  // ------------------------------------------------------------------ queries

  void attend(const std::vector<Span>& spans) const {
    std::vector<Span> blocks;
    std::size_t most_segments = 0, partial_lines = 0;
    for (const Span& span : spans) {
      for (std::size_t i = 0; i < span.count; i += kBlockTokens) {
        blocks.push_back({span.sequence, span.token + i, std::min(kBlockTokens, span.count - i), span.position + i});
        const std::size_t count = segments(blocks.back()).count();
        most_segments = std::max(most_segments, count);
        partial_lines += count * blocks.back().count * call_.num_heads * row_lines_;
      }
    }
    const std::size_t pieces = blocks.size() * call_.num_groups;
    if (most_segments > 1 && pieces < 4 * static_cast<std::size_t>(num_threads()) && partial_lines <= kMostPartials)
      return attend_by_segments(blocks, partial_lines);
    parallel_for(pieces, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) attend_whole(blocks[i / call_.num_groups], i % call_.num_groups);
    });
  }

  // Every segment of every block and key/value head is a piece of work; merging comes after.
  void attend_by_segments(const std::vector<Span>& blocks, std::size_t partial_lines) const {
    struct Piece {
      const Span* block;
      std::size_t g, segment;
      Line* partial;
    };
    std::vector<Line> partials(partial_lines);
    std::vector<Piece> pieces;
    std::vector<Piece> firsts;
    Line* next = partials.data();
    for (const Span& block : blocks) {
      const Segments range = segments(block);
      for (std::size_t g = 0; g < call_.num_groups; ++g) {
        firsts.push_back({&block, g, range.first, next});
        for (std::size_t segment = range.first; segment < range.last; ++segment) {
          pieces.push_back({&block, g, segment, next});
          next += block.count * group_ * row_lines_;
        }
      }
    }
    parallel_for(pieces.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const Piece& piece = pieces[i];
        Line* queries = scratch(query_lines(*piece.block) + score_lines());
        Line* scores = queries + query_lines(*piece.block);
        load_queries(*piece.block, piece.g, queries);
        for (std::size_t t = 0; t < piece.block->count; ++t)
          attend_segment(*piece.block, t, piece.g, piece.segment, queries, scores, piece.partial + t * group_ * row_lines_);
      }
    });
    parallel_for(firsts.size(), 8, [&](std::size_t begin, std::size_t end) {
      Line* total = scratch(row_lines_);
      for (std::size_t i = begin; i < end; ++i) {
        const Piece& first = firsts[i];
        const Span& block = *first.block;
        const Segments range = segments(block);
        for (std::size_t row = 0; row < block.count * group_; ++row) {
          const std::size_t t = row / group_, n = first.g * group_ + row % group_;
          start(total, n);
          for (std::size_t segment = range.first; segment < range.last; ++segment) {
            if (visible(block, t, segment).empty()) continue;
            merge(total, first.partial + ((segment - range.first) * block.count * group_ + row) * row_lines_);
          }
          finish(total, block.token + t, n);
        }
      }
    });
  }

  // One block's queries of one key/value head against all of their keys.
  void attend_whole(const Span& block, std::size_t g) const {
    const std::size_t rows = block.count * group_;
    Line* totals = scratch(rows * row_lines_ + group_ * row_lines_ + query_lines(block) + score_lines());
    Line* partial = totals + rows * row_lines_;
    Line* queries = partial + group_ * row_lines_;
    Line* scores = queries + query_lines(block);
    load_queries(block, g, queries);
    for (std::size_t row = 0; row < rows; ++row) start(totals + row * row_lines_, g * group_ + row % group_);
    const Segments range = segments(block);
    for (std::size_t segment = range.first; segment < range.last; ++segment) {
      for (std::size_t t = 0; t < block.count; ++t) {
        if (visible(block, t, segment).empty()) continue;
        attend_segment(block, t, g, segment, queries, scores, partial);
        for (std::size_t r = 0; r < group_; ++r)
          merge(totals + (t * group_ + r) * row_lines_, partial + r * row_lines_);
      }
    }
    for (std::size_t row = 0; row < rows; ++row)
      finish(totals + row * row_lines_, block.token + row / group_, g * group_ + row % group_);
  }

  struct Range {
    std::size_t first, last;  // Positions; one past.
    bool empty() const { return first >= last; }
  };

  // The keys of a segment that the t-th query of a block sees.
  Range visible(const Span& block, std::size_t t, std::size_t segment) const {
    const std::size_t end = block.position + t + 1;
    const std::size_t begin = call_.window > 0 && end > call_.window ? end - call_.window : 0;
    return {std::max(begin, segment * kSegmentTokens), std::min(end, (segment + 1) * kSegmentTokens)};
  }

  // Those that any query of a block sees.
  Segments segments(const Span& block) const {
    const std::size_t end = block.position + 1;
    const std::size_t begin = call_.window > 0 && end > call_.window ? end - call_.window : 0;
    return {begin / kSegmentTokens, (block.position + block.count - 1) / kSegmentTokens + 1};
  }

  std::size_t query_lines(const Span& block) const {
    return (block.count * group_ * call_.head_dim + kLanes - 1) / kLanes;
  }
  static constexpr std::size_t score_lines() { return kRows * kScoreStride / kLanes; }

  // The block's queries of one key/value head, scaled, [t][kRows heads at a time][h][head].
  void load_queries(const Span& block, std::size_t g, Line* queries) const {
    auto* to = reinterpret_cast<float*>(queries);
    for (std::size_t t = 0; t < block.count; ++t) {
      const float* from = call_.q + ((block.token + t) * call_.num_heads + g * group_) * call_.head_dim;
      for (std::size_t row = 0; row < group_; row += kRows) {
        const std::size_t rows = std::min(kRows, group_ - row);
        for (std::size_t h = 0; h < call_.head_dim; ++h)
          for (std::size_t r = 0; r < rows; ++r) *to++ = from[(row + r) * call_.head_dim + h] * scale_;
      }
    }
  }

  // m, l and o of all heads of one query and key/value head in one segment.
  void attend_segment(const Span& block, std::size_t t, std::size_t g, std::size_t segment, const Line* queries, Line* scores,
                      Line* partial) const {
    const Range range = visible(block, t, segment);
    if (range.empty()) return;
    const float* q = reinterpret_cast<const float*>(queries) + t * group_ * call_.head_dim;
    auto* s = reinterpret_cast<float*>(scores);
    for (std::size_t row = 0; row < group_; row += kRows) {
      const std::size_t rows = std::min(kRows, group_ - row);
      const auto of_rows = [&](auto number) {
        attend_rows<decltype(number)::value>(block.sequence, g, range, block.position, q, s, partial + row * row_lines_);
      };
      switch (rows) {
        case 1: of_rows(Number<1>{}); break;
        case 2: of_rows(Number<2>{}); break;
        case 3: of_rows(Number<3>{}); break;
        case 4: of_rows(Number<4>{}); break;
#if OSSIA_LANES_AVX512
        case 5: of_rows(Number<5>{}); break;
        case 6: of_rows(Number<6>{}); break;
        case 7: of_rows(Number<7>{}); break;
        case 8: of_rows(Number<8>{}); break;
#endif
      }
      q += rows * call_.head_dim;
    }
  }

  template <std::size_t number>
  struct Number {
    static constexpr std::size_t value = number;
  };

  template <std::size_t rows>
  void attend_rows(std::size_t sequence, std::size_t g, Range range, std::size_t position, const float* q, float* scores,
                   Line* partial) const {
    const std::size_t origin = range.first / kSegmentTokens * kSegmentTokens;
    const std::size_t first_page = range.first / kPageTokens, last_page = (range.last - 1) / kPageTokens;
    const std::size_t next_page = std::min(range.last, position) / kPageTokens;  // What is read next may be this.
    for (std::size_t index = first_page; index <= last_page; ++index) {
      const Page<T> from = page(sequence, index, g);
      const std::size_t begin = std::max(range.first, index * kPageTokens) - index * kPageTokens;
      const std::size_t end = std::min(range.last - index * kPageTokens, kPageTokens);
      float* to = scores + index * kPageTokens - origin;
      const T* ahead = index < last_page ? page(sequence, index + 1, g).keys : page(sequence, first_page, g).values;
      constexpr std::size_t step = kVectors<rows> * kLanes;
      std::size_t key = begin / kLanes * kLanes;
      for (; key + step <= kPageTokens && key < end; key += step)
        score<rows, kVectors<rows>>(from, key, q, to + key, ahead);
      for (; key < end; key += kLanes) score<rows, 1>(from, key, q, to + key, ahead);
    }

    for (std::size_t r = 0; r < rows; ++r)
      soften(scores + r * kScoreStride, range.first - origin, range.last - origin, partial + r * row_lines_);

    for (std::size_t index = first_page; index <= last_page; ++index) {
      const Page<T> from = page(sequence, index, g);
      const std::size_t begin = std::max(range.first, index * kPageTokens) - index * kPageTokens;
      const std::size_t end = std::min(range.last - index * kPageTokens, kPageTokens);
      float* p = scores + index * kPageTokens - origin;
      const T* ahead = index < last_page ? page(sequence, index + 1, g).values : page(sequence, next_page, g).keys;
      if constexpr (sizeof(T) == 1)
        for (std::size_t key = begin / kLanes * kLanes; key < end; key += kLanes)
          for (std::size_t r = 0; r < rows; ++r) {
            float* at = p + r * kScoreStride + key;
            OSSIA_ISA::store(at, OSSIA_ISA::load(at) * OSSIA_ISA::load(from.value_scales + key));
          }
      std::size_t j = 0;
      for (; j + kVectors<rows> <= vectors_; j += kVectors<rows>)
        add_values<rows, kVectors<rows>>(p, begin, end, from.values + j * kLanes, partial + 2 + j, ahead + j * kLanes);
      for (; j < vectors_; ++j)
        add_values<rows, 1>(p, begin, end, from.values + j * kLanes, partial + 2 + j, ahead + j * kLanes);
    }
  }

  // Scores of `rows` heads and 16 * count keys of a page.
  template <std::size_t rows, std::size_t count>
  void score(const Page<T>& from, std::size_t key, const float* q, float* to, const T* ahead) const {
    F32 s[rows][count];
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t j = 0; j < count; ++j) s[r][j] = splat(0.0f);
    const T* keys = from.keys + key;
    ahead += key;
    for (std::size_t h = 0; h < call_.head_dim; ++h, keys += kPageTokens, ahead += kPageTokens, q += rows) {
      prefetch(ahead);
      F32 k[count];
      for (std::size_t j = 0; j < count; ++j) k[j] = load_cached(keys + j * kLanes);
      for (std::size_t r = 0; r < rows; ++r) {
        const F32 q_r = splat(q[r]);
        for (std::size_t j = 0; j < count; ++j) s[r][j] = fma(q_r, k[j], s[r][j]);
      }
    }
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t j = 0; j < count; ++j) {
        if constexpr (sizeof(T) == 1) s[r][j] = s[r][j] * OSSIA_ISA::load(from.key_scales + key + j * kLanes);
        OSSIA_ISA::store(to + r * kScoreStride + j * kLanes, s[r][j]);
      }
  }

  // Scores [begin, end) of one head become p; m and l are written, o is set to 0.
  void soften(float* scores, std::size_t begin, std::size_t end, Line* partial) const {
    static constexpr float kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const std::size_t first = begin / kLanes * kLanes, last = (end - 1) / kLanes * kLanes;
    const F32 hidden = splat(-INFINITY), lane = OSSIA_ISA::load(kCount);
    const F32 lowest = splat(static_cast<float>(begin - first)), highest = splat(static_cast<float>(end - last));
    OSSIA_ISA::store(scores + first, where_less(lane, lowest, hidden, OSSIA_ISA::load(scores + first)));
    OSSIA_ISA::store(scores + last, where_less(lane, highest, OSSIA_ISA::load(scores + last), hidden));
    F32 most = hidden;
    for (std::size_t i = first; i <= last; i += kLanes) most = max(OSSIA_ISA::load(scores + i), most);
    const F32 m = splat(largest(most));
    F32 l = splat(0.0f);
    for (std::size_t i = first; i <= last; i += kLanes) {
      const F32 p = exp(OSSIA_ISA::load(scores + i) - m);
      OSSIA_ISA::store(scores + i, p);
      l = l + p;
    }
    store(partial[0], m);
    store(partial[1], splat(sum(l)));
    for (std::size_t j = 0; j < vectors_; ++j) store(partial[2 + j], splat(0.0f));
  }

  // o of `rows` heads and 16 * count columns, and keys [begin, end) of a page.
  template <std::size_t rows, std::size_t count>
  void add_values(const float* p, std::size_t begin, std::size_t end, const T* values, Line* o, const T* ahead) const {
    F32 sums[rows][count];
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t j = 0; j < count; ++j) sums[r][j] = load(o[r * row_lines_ + j]);
    const std::size_t width = vectors_ * kLanes;
    values += begin * width;
    for (std::size_t key = begin; key < end; ++key, values += width, ahead += width) {
      prefetch(ahead);
      F32 v[count];
      for (std::size_t j = 0; j < count; ++j) v[j] = load_cached(values + j * kLanes);
      for (std::size_t r = 0; r < rows; ++r) {
        const F32 p_r = splat(p[r * kScoreStride + key]);
        for (std::size_t j = 0; j < count; ++j) sums[r][j] = fma(p_r, v[j], sums[r][j]);
      }
    }
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t j = 0; j < count; ++j) store(o[r * row_lines_ + j], sums[r][j]);
  }

  // ------------------------------------------------------------------ merging: rows of m, l (sixteen times each) and o

  void start(Line* total, std::size_t n) const {
    store(total[0], splat(call_.sinks[n]));
    store(total[1], splat(1.0f));
    for (std::size_t j = 0; j < vectors_; ++j) store(total[2 + j], splat(0.0f));
  }

  void merge(Line* total, const Line* partial) const {
    const F32 m = max(load(partial[0]), load(total[0]));
    const F32 old = exp(load(total[0]) - m), more = exp(load(partial[0]) - m);
    store(total[0], m);
    for (std::size_t j = 1; j < row_lines_; ++j)
      store(total[j], fma(load(total[j]), old, load(partial[j]) * more));
  }

  void finish(const Line* total, std::size_t token, std::size_t n) const {
    float* to = call_.out + (token * call_.num_heads + n) * call_.head_dim;
    for (std::size_t j = 0; j < vectors_; ++j) {
      Line line;
      store(line, load(total[2 + j]) / load(total[1]));
      std::memcpy(to + j * kLanes, line.v, std::min(kLanes, call_.head_dim - j * kLanes) * sizeof(float));
    }
  }

  static Line* scratch(std::size_t lines) {
    thread_local std::vector<Line> memory;
    if (memory.size() < lines) memory.resize(lines);
    return memory.data();
  }

  const PagedAttention& call_;
  const std::size_t group_;      // Query heads of a key/value head.
  const std::size_t vectors_;    // Sixteens of columns of a value.
  const std::size_t row_lines_;  // m, l and o of one head.
  const float scale_;
};

}  // namespace

void attention_paged(const PagedAttention& call) {
  if (call.key_scales != nullptr)
    Paged<std::int8_t>(call).run();
  else
    Paged<std::uint16_t>(call).run();
}

}  // namespace ossia::OSSIA_ISA
