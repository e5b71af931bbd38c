// The module ossia.kernels._native: each operand's type, shape and layout is checked here, at the door, and a ValueError
// names the one that is wrong. The ops themselves trust their pointers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "mxfp4.hpp"

namespace nb = nanobind;

namespace {

constexpr std::size_t kAnySize = static_cast<std::size_t>(-1);

std::string text(std::initializer_list<std::size_t> shape) {
  std::string out = "[";
  for (std::size_t size : shape) {
    if (out.size() > 1) out += ", ";
    out += size == kAnySize ? "any" : std::to_string(size);
  }
  return out + "]";
}

// Raises ValueError unless `array` is a C-contiguous CPU array of type T and of this shape.
template <typename T, typename Array>
void require(const Array& array, const char* name, const char* type, std::initializer_list<std::size_t> shape) {
  const auto refuse = [&](const std::string& what) {
    throw nb::value_error((std::string(name) + " " + what).c_str());
  };
  if (array.device_type() != nb::device::cpu::value) refuse("is not in the memory of the CPU");
  if (array.dtype() != nb::dtype<T>()) refuse(std::string("is not of type ") + type);
  bool same = array.ndim() == shape.size();
  std::size_t axis = 0;
  for (std::size_t size : shape) {
    if (same && size != kAnySize && array.shape(axis) != size) same = false;
    ++axis;
  }
  if (!same) refuse("does not have shape " + text(shape));
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.size() != 0 && array.stride(i) != expected) refuse("is not contiguous");
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
}

void mxfp4_dequantize(nb::ndarray<nb::ro> blocks, nb::ndarray<nb::ro> scales, nb::ndarray<> out) {
  require<std::uint8_t>(scales, "scales", "uint8", {kAnySize});
  const std::size_t num_blocks = scales.shape(0);
  require<std::uint8_t>(blocks, "blocks", "uint8", {num_blocks, ossia::kMxfp4Bytes});
  require<float>(out, "out", "float32", {num_blocks, ossia::kMxfp4Block});
  nb::gil_scoped_release release;
  ossia::mxfp4_dequantize(static_cast<const std::uint8_t*>(blocks.data()),
                          static_cast<const std::uint8_t*>(scales.data()), static_cast<float*>(out.data()), num_blocks);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The CPU kernels of ossia. Called through ossia.kernels.cpu.";
  m.def("mxfp4_dequantize", &mxfp4_dequantize, nb::arg("blocks"), nb::arg("scales"), nb::arg("out"),
        "Unpack MXFP4 blocks uint8 [N, 16] under scales uint8 [N] into out float32 [N, 32].");
}
