// Checks at the door: each operand's type, shape and layout, before an op sees its pointer. A ValueError names the one that
// is wrong. The ops themselves trust what they are given.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

namespace ossia::door {

namespace nb = nanobind;

constexpr std::size_t kAnySize = static_cast<std::size_t>(-1);

[[noreturn]] inline void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

inline std::string text(std::initializer_list<std::size_t> shape) {
  std::string out = "[";
  for (std::size_t size : shape) {
    if (out.size() > 1) out += ", ";
    out += size == kAnySize ? "any" : std::to_string(size);
  }
  return out + "]";
}

template <typename T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, std::uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, std::int8_t>) return "int8";
  if constexpr (std::is_same_v<T, std::uint16_t>) return "uint16";
  if constexpr (std::is_same_v<T, std::int32_t>) return "int32";
  if constexpr (std::is_same_v<T, std::int64_t>) return "int64";
}

// Raises ValueError unless `array` is a C-contiguous CPU array of type T and of this shape; returns its data.
template <typename T, typename Array>
T* require(const Array& array, const char* name, std::initializer_list<std::size_t> shape) {
  const auto wrong = [&](const std::string& what) { refuse(std::string(name) + " " + what); };
  if (array.device_type() != nb::device::cpu::value) wrong("is not in the memory of the CPU");
  if (array.dtype() != nb::dtype<std::remove_const_t<T>>())
    wrong(std::string("is not of type ") + type_name<std::remove_const_t<T>>());
  bool same = array.ndim() == shape.size();
  std::size_t axis = 0;
  for (std::size_t size : shape) {
    if (same && size != kAnySize && array.shape(axis) != size) same = false;
    ++axis;
  }
  if (!same) wrong("does not have shape " + text(shape));
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.size() != 0 && array.stride(i) != expected) wrong("is not contiguous");
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
  return static_cast<T*>(array.data());
}

}  // namespace ossia::door
