// Products that training needs: sorted by expert, and transposed.
#include "../grouped.hpp"

#include <nanobind/stl/optional.h>

#include <optional>

#include "door.hpp"

namespace nb = nanobind;
using ossia::door::kAnySize;
using ossia::door::refuse;
using ossia::door::require;

namespace {

using In = nb::ndarray<nb::ro>;
using Out = nb::ndarray<>;

constexpr std::size_t kTile = 16, kBlock = 32;

// Tiles of every expert, and the rows of `slots` that are each one's.
ossia::GroupedMatrix grouped(const In& codes, const In& scales, const In& offsets, std::size_t slots) {
  const auto* codes_ = require<const std::uint8_t>(codes, "codes", {kAnySize, kAnySize, kAnySize, 256});
  const std::size_t experts = codes.shape(0), tiles = codes.shape(1), blocks = codes.shape(2);
  const auto* scales_ = require<const std::uint8_t>(scales, "scales", {experts, tiles, blocks, kTile});
  const auto* offsets_ = require<const std::int64_t>(offsets, "offsets", {experts + 1});
  bool rising = offsets_[0] == 0 && offsets_[experts] == static_cast<std::int64_t>(slots);
  for (std::size_t e = 0; e < experts; ++e) rising = rising && offsets_[e] <= offsets_[e + 1];
  if (!rising) refuse("offsets does not rise from 0 to " + std::to_string(slots));
  return {codes_, scales_, experts, tiles * kTile, blocks * kBlock, offsets_};
}

void grouped_mxfp4(In x, In codes, In scales, std::optional<In> bias, In offsets, Out out) {
  const auto* x_SC = require<const float>(x, "x", {kAnySize, kAnySize});
  const std::size_t slots = x.shape(0);
  const ossia::GroupedMatrix weight = grouped(codes, scales, offsets, slots);
  require<const float>(x, "x", {slots, weight.columns});
  const float* bias_ER = bias ? require<const float>(*bias, "bias", {weight.experts, weight.rows}) : nullptr;
  auto* out_SR = require<float>(out, "out", {slots, weight.rows});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(grouped_mxfp4, weight, x_SC, bias_ER, out_SR);
}

void grouped_mxfp4_transposed(In grad, In codes, In scales, In offsets, Out out) {
  const auto* grad_SR = require<const float>(grad, "grad", {kAnySize, kAnySize});
  const std::size_t slots = grad.shape(0);
  const ossia::GroupedMatrix weight = grouped(codes, scales, offsets, slots);
  require<const float>(grad, "grad", {slots, weight.rows});
  auto* out_SC = require<float>(out, "out", {slots, weight.columns});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(grouped_mxfp4_transposed, weight, grad_SR, out_SC);
}

void linear_bf16_transposed(In grad, In weight, Out out) {
  const auto* grad_TR = require<const float>(grad, "grad", {kAnySize, kAnySize});
  const std::size_t tokens = grad.shape(0), rows = grad.shape(1);
  auto* out_TC = require<float>(out, "out", {tokens, kAnySize});
  const std::size_t columns = out.shape(1);
  const auto* weight_ = require<const std::uint16_t>(weight, "weight", {(rows + kTile - 1) / kTile, columns, kTile});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(linear_bf16_transposed, grad_TR, tokens, rows, weight_, columns, out_TC);
}

}  // namespace

void bind_grouped(nb::module_& m) {
  m.def("grouped_mxfp4", &grouped_mxfp4, nb::arg("x"), nb::arg("codes"), nb::arg("scales"), nb::arg("bias").none(),
        nb::arg("offsets"), nb::arg("out"),
        "Each expert's MXFP4 tiles times its rows of x float32 [S, C], plus bias [E, R] or None, into out float32 [S, R].");
  m.def("grouped_mxfp4_transposed", &grouped_mxfp4_transposed, nb::arg("grad"), nb::arg("codes"), nb::arg("scales"),
        nb::arg("offsets"), nb::arg("out"),
        "Each expert's transposed MXFP4 tiles times its rows of grad float32 [S, R], into out float32 [S, C].");
  m.def("linear_bf16_transposed", &linear_bf16_transposed, nb::arg("grad"), nb::arg("weight"), nb::arg("out"),
        "Transposed bfloat16 tiles (as uint16) times grad float32 [T, R], into out float32 [T, C].");
}
