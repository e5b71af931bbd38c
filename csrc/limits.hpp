// The two limits that bound a language model on this machine: how fast memory can be read, and how many 8-bit
// multiply-adds its vector units do.
#pragma once

#include <cstddef>

namespace ossia {

struct Limits {
  double read_bytes_per_second;
  double int8_macs_per_second;
};

// Measures both on at least one thread and at most one a processor: the best of several passes, about a second in all.
// Memory is read from a buffer of num_bytes, which should be much larger than the caches. Throws std::bad_alloc.
Limits measure_limits(int threads, std::size_t num_bytes);

}  // namespace ossia
