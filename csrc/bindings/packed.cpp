// Ops on packed weights, the small ops on activations, and the packers.
#include <nanobind/stl/optional.h>

#include <optional>

#include "../elementwise.hpp"
#include "../experts.hpp"
#include "../linear.hpp"
#include "../pack.hpp"
#include "door.hpp"

namespace nb = nanobind;
using ossia::door::kAnySize;
using ossia::door::refuse;
using ossia::door::require;

namespace {

using In = nb::ndarray<nb::ro>;
using Out = nb::ndarray<>;
using MaybeIn = std::optional<In>;

constexpr std::size_t kTile = 16, kBlock = 32;

std::size_t up(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit; }

const float* maybe_floats(const MaybeIn& array, const char* name, std::size_t size) {
  return array ? require<const float>(*array, name, {size}) : nullptr;
}

void linear_q8(In x, In codes, In multipliers, In row_scales, MaybeIn bias, Out out) {
  const auto* x_TC = require<const float>(x, "x", {kAnySize, kAnySize});
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  auto* out_TR = require<float>(out, "out", {tokens, kAnySize});
  const std::size_t rows = out.shape(1), tiles = up(rows, kTile), blocks = up(columns, kBlock);
  const auto* codes_ = require<const std::uint8_t>(codes, "codes", {tiles, blocks, 512});
  const auto* multipliers_ = require<const std::uint8_t>(multipliers, "multipliers", {tiles, blocks, kTile});
  const auto* row_scales_R = require<const float>(row_scales, "row_scales", {tiles * kTile});
  const auto* bias_R = maybe_floats(bias, "bias", rows);
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(linear_q8, x_TC, tokens, columns, codes_, multipliers_, row_scales_R, bias_R, rows, out_TR);
}

void linear_bf16(In x, In weight, MaybeIn bias, Out out) {
  const auto* x_TC = require<const float>(x, "x", {kAnySize, kAnySize});
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  auto* out_TR = require<float>(out, "out", {tokens, kAnySize});
  const std::size_t rows = out.shape(1);
  const auto* weight_ = require<const std::uint16_t>(weight, "weight", {up(rows, kTile), columns, kTile});
  const auto* bias_R = maybe_floats(bias, "bias", rows);
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(linear_bf16, x_TC, tokens, columns, weight_, bias_R, rows, out_TR);
}

template <bool kExact>
void experts(In x, In gate_up_codes, In gate_up_scales, In gate_up_bias, In down_codes, In down_scales, In down_bias,
             In expert_ids, In expert_weights, float limit, Out out) {
  const auto* x_TD = require<const float>(x, "x", {kAnySize, kAnySize});
  const std::size_t tokens = x.shape(0), hidden = x.shape(1);
  const auto* down_codes_ = require<const std::uint8_t>(down_codes, "down_codes", {kAnySize, kAnySize, kAnySize, 256});
  const std::size_t num_experts = down_codes.shape(0), intermediate = down_codes.shape(2) * kBlock;
  if (hidden == 0 || hidden % kBlock != 0) refuse("x does not have a multiple of 32 columns");
  const std::size_t d_tiles = hidden / kTile, d_blocks = hidden / kBlock;
  const std::size_t i_tiles = 2 * intermediate / kTile, i_blocks = intermediate / kBlock;
  require<const std::uint8_t>(down_codes, "down_codes", {num_experts, d_tiles, i_blocks, 256});
  ossia::Experts all{num_experts, hidden, intermediate, {}, {}, limit};
  all.gate_up = {
      require<const std::uint8_t>(gate_up_codes, "gate_up_codes", {num_experts, i_tiles, d_blocks, 256}),
      require<const std::uint8_t>(gate_up_scales, "gate_up_scales", {num_experts, i_tiles, d_blocks, kTile}),
      require<const float>(gate_up_bias, "gate_up_bias", {num_experts, 2 * intermediate})};
  all.down = {down_codes_,
              require<const std::uint8_t>(down_scales, "down_scales", {num_experts, d_tiles, i_blocks, kTile}),
              require<const float>(down_bias, "down_bias", {num_experts, hidden})};
  const auto* ids_TK = require<const std::int64_t>(expert_ids, "expert_ids", {tokens, kAnySize});
  const std::size_t active = expert_ids.shape(1);
  const auto* weights_TK = require<const float>(expert_weights, "expert_weights", {tokens, active});
  auto* out_TD = require<float>(out, "out", {tokens, hidden});
  for (std::size_t i = 0; i < tokens * active; ++i)
    if (ids_TK[i] < 0 || static_cast<std::size_t>(ids_TK[i]) >= num_experts)
      refuse("expert_ids holds " + std::to_string(ids_TK[i]) + ": there are " + std::to_string(num_experts) + " experts");
  nb::gil_scoped_release release;
  if constexpr (kExact) OSSIA_DISPATCH(experts_exact, all, x_TD, tokens, ids_TK, weights_TK, active, out_TD);
  else OSSIA_DISPATCH(experts_packed, all, x_TD, tokens, ids_TK, weights_TK, active, out_TD);
}

void rms_norm(In x, In scale, float eps, Out out) {
  const auto* x_TD = require<const float>(x, "x", {kAnySize, kAnySize});
  const std::size_t tokens = x.shape(0), hidden = x.shape(1);
  const auto* scale_D = require<const float>(scale, "scale", {hidden});
  auto* out_TD = require<float>(out, "out", {tokens, hidden});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(rms_norm, x_TD, tokens, hidden, scale_D, eps, out_TD);
}

void rope(In x, In cos, In sin, Out out) {
  auto* out_TNH = require<float>(out, "out", {kAnySize, kAnySize, kAnySize});
  const std::size_t tokens = out.shape(0), heads = out.shape(1), size = out.shape(2);
  if (size % 2 != 0) refuse("out does not have an even last dimension");
  // Queries and keys are slices of one product: tokens may lie apart, but not within themselves.
  const bool apart = x.ndim() == 3 && tokens > 1 && x.shape(0) == tokens && x.stride(0) >= 0;
  const std::size_t stride = apart ? static_cast<std::size_t>(x.stride(0)) : heads * size;
  const bool within = x.ndim() == 3 && x.shape(0) == tokens && x.shape(1) == heads && x.shape(2) == size;
  if (!within) refuse("x does not have the shape of out");
  if (x.dtype() != nb::dtype<float>()) refuse("x is not of type float32");
  if (x.device_type() != nb::device::cpu::value) refuse("x is not in the memory of the CPU");
  if (x.size() != 0 && ((size > 1 && x.stride(2) != 1) || (heads > 1 && x.stride(1) != static_cast<std::int64_t>(size)) ||
                        (tokens > 1 && x.stride(0) < 0)))
    refuse("x is not contiguous within a token");
  const auto* cos_TH = require<const float>(cos, "cos", {tokens, size / 2});
  const auto* sin_TH = require<const float>(sin, "sin", {tokens, size / 2});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(rope, static_cast<const float*>(x.data()), tokens, stride, heads, size, cos_TH, sin_TH, out_TNH);
}

void pack_mxfp4(In blocks, In scales, MaybeIn order, Out codes, Out tile_scales) {
  const auto* scales_RB = require<const std::uint8_t>(scales, "scales", {kAnySize, kAnySize});
  const std::size_t rows = scales.shape(0), num_blocks = scales.shape(1);
  const auto* blocks_RB = require<const std::uint8_t>(blocks, "blocks", {rows, num_blocks, 16});
  if (rows % kTile != 0) refuse("scales does not have a multiple of 16 rows");
  auto* codes_ = require<std::uint8_t>(codes, "codes", {rows / kTile, num_blocks, 256});
  auto* tile_scales_ = require<std::uint8_t>(tile_scales, "tile_scales", {rows / kTile, num_blocks, kTile});
  const std::int64_t* order_R = order ? require<const std::int64_t>(*order, "order", {rows}) : nullptr;
  for (std::size_t r = 0; order_R && r < rows; ++r)
    if (order_R[r] < 0 || static_cast<std::size_t>(order_R[r]) >= rows)
      refuse("order holds " + std::to_string(order_R[r]) + ": there are " + std::to_string(rows) + " rows");
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(pack_mxfp4, blocks_RB, scales_RB, order_R, rows, num_blocks, codes_, tile_scales_);
}

void pack_q8(In weight, Out codes, Out multipliers, Out row_scales) {
  const bool is_float = weight.dtype() == nb::dtype<float>();
  const float* floats = nullptr;
  const std::uint16_t* bf16 = nullptr;
  if (is_float) floats = require<const float>(weight, "weight", {kAnySize, kAnySize});
  else bf16 = require<const std::uint16_t>(weight, "weight", {kAnySize, kAnySize});
  const std::size_t rows = weight.shape(0), columns = weight.shape(1), tiles = up(rows, kTile), blocks = up(columns, kBlock);
  auto* codes_ = require<std::uint8_t>(codes, "codes", {tiles, blocks, 512});
  auto* multipliers_ = require<std::uint8_t>(multipliers, "multipliers", {tiles, blocks, kTile});
  auto* row_scales_R = require<float>(row_scales, "row_scales", {tiles * kTile});
  bool finite = true;
  {
    nb::gil_scoped_release release;
    if (is_float) OSSIA_DISPATCH(pack_q8, floats, rows, columns, codes_, multipliers_, row_scales_R, finite);
    else OSSIA_DISPATCH(pack_q8, bf16, rows, columns, codes_, multipliers_, row_scales_R, finite);
  }
  if (!finite) refuse("weight holds NaN or infinity");
}

void pack_bf16(In weight, Out packed) {
  const auto* weight_RC = require<const std::uint16_t>(weight, "weight", {kAnySize, kAnySize});
  const std::size_t rows = weight.shape(0), columns = weight.shape(1);
  auto* packed_ = require<std::uint16_t>(packed, "packed", {up(rows, kTile), columns, kTile});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(pack_bf16, weight_RC, rows, columns, packed_);
}

}  // namespace

void bind_packed(nb::module_& m) {
  m.def("linear_q8", &linear_q8, nb::arg("x"), nb::arg("codes"), nb::arg("multipliers"), nb::arg("row_scales"),
        nb::arg("bias").none(), nb::arg("out"), "x float32 [T, C] times Q8 tiles, plus bias [R] or None, into out float32 [T, R].");
  m.def("linear_bf16", &linear_bf16, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("out"),
        "x float32 [T, C] times bfloat16 tiles (as uint16), plus bias [R] or None, into out float32 [T, R].");
  const auto def_experts = [&](const char* name, auto* function, const char* text) {
    m.def(name, function, nb::arg("x"), nb::arg("gate_up_codes"), nb::arg("gate_up_scales"), nb::arg("gate_up_bias"),
          nb::arg("down_codes"), nb::arg("down_scales"), nb::arg("down_bias"), nb::arg("expert_ids"),
          nb::arg("expert_weights"), nb::arg("limit"), nb::arg("out"), text);
  };
  def_experts("experts_packed", &experts<false>,
              "Weighted sum of the chosen experts of x float32 [T, D], from MXFP4 tiles, into out float32 [T, D].");
  def_experts("experts_exact", &experts<true>, "As experts_packed, with x and what follows from it in float32.");
  m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("scale"), nb::arg("eps"), nb::arg("out"),
        "x float32 [T, D] over its root mean square, times scale [D], into out [T, D].");
  m.def("rope", &rope, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"),
        "x float32 [T, N, H] with its halves rotated by cos and sin [T, H/2], into out [T, N, H].");
  m.def("pack_mxfp4", &pack_mxfp4, nb::arg("blocks"), nb::arg("scales"), nb::arg("order").none(), nb::arg("codes"),
        nb::arg("tile_scales"), "Published blocks uint8 [R, B, 16] and scales [R, B], rows in the given order, into tiles.");
  m.def("pack_q8", &pack_q8, nb::arg("weight"), nb::arg("codes"), nb::arg("multipliers"), nb::arg("row_scales"),
        "weight [R, C], float32 or bfloat16 (as uint16), into Q8 tiles.");
  m.def("pack_bf16", &pack_bf16, nb::arg("weight"), nb::arg("packed"), "weight bfloat16 [R, C] (as uint16) into tiles.");
}
