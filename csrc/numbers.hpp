// Numbers that are either float or bfloat16 (as uint16), sixteen at a time: what the training ops are written on.
#pragma once

#include "lanes.hpp"

namespace ossia::OSSIA_ISA {

inline F32 load_number(const float* p) { return load(p); }
inline F32 load_number(const std::uint16_t* p) { return load_bf16(p); }
inline void store_number(float* p, F32 a) { store(p, a); }
inline void store_number(std::uint16_t* p, F32 a) { store_bf16(p, a); }

// The first `count` of sixteen, the rest zero; and only so many written.
template <typename T>
F32 load_some(const T* p, std::size_t count) {
  if (count >= kLanes) return load_number(p);
  T some[kLanes] = {};
  std::memcpy(some, p, count * sizeof(T));
  return load_number(some);
}
template <typename T>
void store_some(T* p, F32 a, std::size_t count) {
  if (count >= kLanes) return store_number(p, a);
  T some[kLanes];
  store_number(some, a);
  std::memcpy(p, some, count * sizeof(T));
}

inline float number(float x) { return x; }
inline float number(std::uint16_t x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

}  // namespace ossia::OSSIA_ISA
