// Which instructions the ops use. Every op is written once, on the sixteen lanes of lanes.hpp, and compiled once for each
// ISA into a namespace of its own; OSSIA_DISPATCH calls the one that was chosen at load.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define OSSIA_X86 1
#else
#define OSSIA_X86 0
#endif

// Declares an op in every ISA's namespace.
#if OSSIA_X86
#define OSSIA_DECLARE(...)      \
  namespace avx512 {            \
  __VA_ARGS__;                  \
  }                             \
  namespace avx2 {              \
  __VA_ARGS__;                  \
  }                             \
  namespace plain {             \
  __VA_ARGS__;                  \
  }
#define OSSIA_DISPATCH(op, ...)                                                     \
  do {                                                                              \
    switch (::ossia::isa()) {                                                       \
      case ::ossia::Isa::avx512: ::ossia::avx512::op(__VA_ARGS__); break;           \
      case ::ossia::Isa::avx2: ::ossia::avx2::op(__VA_ARGS__); break;               \
      default: ::ossia::plain::op(__VA_ARGS__);                                     \
    }                                                                               \
  } while (false)
#else
#define OSSIA_DECLARE(...) \
  namespace plain {        \
  __VA_ARGS__;             \
  }
#define OSSIA_DISPATCH(op, ...) ::ossia::plain::op(__VA_ARGS__)
#endif

namespace ossia {

enum class Isa { plain, avx2, avx512 };

// The ISA in use: the best one of this processor until `set_isa` says otherwise.
Isa isa();
// False, and nothing changed, where the processor does not have it.
bool set_isa(Isa wanted);
Isa best_isa();

}  // namespace ossia
