// A pool of threads that share the work of one op at a time. Workers spin for some microseconds after each job, then
// sleep; the caller works too. Which thread does which piece is left to chance, so no op may depend on it.
#pragma once

#include <cstddef>

namespace ossia {

// Threads that work, the caller included.
int num_threads();
// At least 1. Waits for a running job to end.
void set_num_threads(int count);

namespace detail {
using Piece = void (*)(void* context, std::size_t begin, std::size_t end);
void run(std::size_t count, std::size_t grain, Piece piece, void* context);
}  // namespace detail

// Calls body(begin, end) on pieces of at most `grain` that cover 0 .. count - 1; returns when all are done.
template <typename Body>
void parallel_for(std::size_t count, std::size_t grain, Body body) {
  detail::run(
      count, grain,
      [](void* context, std::size_t begin, std::size_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace ossia
