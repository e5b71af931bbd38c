// The module ossia.kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>

#include "../isa.hpp"
#include "../mxfp4.hpp"
#include "../pool.hpp"
#include "door.hpp"

namespace nb = nanobind;
using ossia::door::kAnySize;
using ossia::door::require;

namespace {

constexpr int kMostThreads = 1024;

const char* name(ossia::Isa isa) {
  switch (isa) {
    case ossia::Isa::avx512: return "avx512";
    case ossia::Isa::avx2: return "avx2";
    default: return "plain";
  }
}

void set_isa(const std::string& wanted) {
  for (ossia::Isa isa : {ossia::Isa::plain, ossia::Isa::avx2, ossia::Isa::avx512}) {
    if (wanted != name(isa)) continue;
    if (!ossia::set_isa(isa)) ossia::door::refuse("this processor has no " + wanted + ": its best is " + name(ossia::best_isa()));
    return;
  }
  ossia::door::refuse("unknown isa '" + wanted + "': give avx512, avx2 or plain");
}

void set_num_threads(int count) {
  if (count < 1 || count > kMostThreads)
    ossia::door::refuse("threads is " + std::to_string(count) + ": give 1 to " + std::to_string(kMostThreads));
  ossia::set_num_threads(count);
}

void mxfp4_dequantize(nb::ndarray<nb::ro> blocks, nb::ndarray<nb::ro> scales, nb::ndarray<> out) {
  const auto* scales_N = require<const std::uint8_t>(scales, "scales", {kAnySize});
  const std::size_t num_blocks = scales.shape(0);
  const auto* blocks_N = require<const std::uint8_t>(blocks, "blocks", {num_blocks, ossia::kMxfp4Bytes});
  auto* out_N = require<float>(out, "out", {num_blocks, ossia::kMxfp4Block});
  nb::gil_scoped_release release;
  ossia::mxfp4_dequantize(blocks_N, scales_N, out_N, num_blocks);
}

}  // namespace

void bind_packed(nb::module_& m);
void bind_grouped(nb::module_& m);
void bind_training(nb::module_& m);
void bind_unembedding(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_limits(nb::module_& m);

NB_MODULE(_native, m) {
  m.doc() = "The CPU kernels of ossia. Called through ossia.kernels.";
  m.def("mxfp4_dequantize", &mxfp4_dequantize, nb::arg("blocks"), nb::arg("scales"), nb::arg("out"),
        "Unpack MXFP4 blocks uint8 [N, 16] under scales uint8 [N] into out float32 [N, 32].");
  m.def("isa", [] { return name(ossia::isa()); }, "The instructions in use: avx512, avx2 or plain.");
  m.def("best_isa", [] { return name(ossia::best_isa()); }, "The best instructions of this processor.");
  m.def("set_isa", &set_isa, nb::arg("isa"), "Use these instructions from now on.");
  m.def("num_threads", &ossia::num_threads, "Threads that work, the caller included.");
  m.def("set_num_threads", &set_num_threads, nb::arg("count"), "Use so many threads from now on.");
  bind_packed(m);
  bind_grouped(m);
  bind_training(m);
  bind_unembedding(m);
  bind_attention(m);
  bind_limits(m);
}
