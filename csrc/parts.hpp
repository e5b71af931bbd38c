// How rows that are sorted by expert are cut into pieces of work.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ossia::OSSIA_ISA {

// Rows of one expert that are multiplied together.
struct RowPart {
  std::size_t expert, first, count;
};

// Calls run(parts, their number, first row, number of rows) on rounds of at most `most_at_once` rows, which bounds the memory,
// whose parts have at most `most` rows.
template <typename Run>
void in_rounds(const std::int64_t* offsets, std::size_t experts, std::size_t most, std::size_t most_at_once, Run run) {
  std::vector<RowPart> parts;
  std::size_t first = 0, end = 0;
  const auto flush = [&] {
    if (end > first) run(parts.data(), parts.size(), first, end - first);
    parts.clear();
    first = end;
  };
  for (std::size_t e = 0; e < experts; ++e) {
    const auto stop = static_cast<std::size_t>(offsets[e + 1]);
    while (end < stop) {
      if (end - first == most_at_once) flush();
      const std::size_t count = std::min(std::min(most, stop - end), most_at_once - (end - first));
      parts.push_back({e, end, count});
      end += count;
    }
  }
  flush();
}

}  // namespace ossia::OSSIA_ISA
