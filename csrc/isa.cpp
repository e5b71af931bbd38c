#include "isa.hpp"

#include <atomic>

namespace ossia {
namespace {

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{best_isa()};
  return value;
}

}  // namespace

Isa best_isa() {
#if OSSIA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::plain;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(Isa wanted) {
  if (wanted > best_isa()) return false;
  current().store(wanted);
  return true;
}

}  // namespace ossia
