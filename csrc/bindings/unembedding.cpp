// The ops of ../unembedding.hpp as functions of arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "../unembedding.hpp"
#include "door.hpp"

namespace nb = nanobind;
using ossia::door::kAnySize;
using ossia::door::refuse;
using ossia::door::require;

namespace {

using In = nb::ndarray<nb::ro>;
using Out = nb::ndarray<>;

constexpr std::size_t kTile = 16, kBlock = 32;

ossia::Split split(const In& high, const In& low, const In& multipliers, const In& row_scales, const In& dither) {
  ossia::Split w{};
  w.high = require<const std::uint8_t>(high, "high", {kAnySize, kAnySize, kTile * kBlock / 2});
  w.tiles = high.shape(0);
  w.blocks = high.shape(1);
  if (w.blocks == 0) refuse("high has no columns");
  w.low = require<const std::uint8_t>(low, "low", {w.tiles, w.blocks, kTile * kBlock / 2});
  w.multipliers = require<const std::uint8_t>(multipliers, "multipliers", {w.tiles, w.blocks, kTile});
  w.row_scales = require<const float>(row_scales, "row_scales", {w.tiles * kTile});
  w.dither = require<const std::int8_t>(dither, "dither", {w.blocks * kBlock});
  return w;
}

const float* activations(const In& x, const ossia::Split& w) {
  const float* x_TD = require<const float>(x, "x", {kAnySize, kAnySize});
  if ((x.shape(1) + kBlock - 1) / kBlock != w.blocks)
    refuse("x has " + std::to_string(x.shape(1)) + " columns, which do not make " + std::to_string(w.blocks) +
           " blocks of " + std::to_string(kBlock));
  return x_TD;
}

void check_rows(std::size_t rows, const ossia::Split& w) {
  if (rows > w.tiles * kTile)
    refuse("rows is " + std::to_string(rows) + ", and the weight has " + std::to_string(w.tiles * kTile));
}

void logits_split(In x, In high, In low, In multipliers, In row_scales, In dither, Out out) {
  const ossia::Split w = split(high, low, multipliers, row_scales, dither);
  const float* x_TD = activations(x, w);
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  float* out_TR = require<float>(out, "out", {tokens, kAnySize});
  const std::size_t rows = out.shape(1);
  check_rows(rows, w);
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(logits_split, w, x_TD, out_TR, tokens, columns, rows);
}

void best_split(In x, In high, In low, In multipliers, In row_scales, In dither, std::size_t rows, double deviations,
                Out ids, Out values, Out completed) {
  const ossia::Split w = split(high, low, multipliers, row_scales, dither);
  const float* x_TD = activations(x, w);
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  check_rows(rows, w);
  auto* ids_TK = require<std::int64_t>(ids, "ids", {tokens, kAnySize});
  const std::size_t count = ids.shape(1);
  if (count < 1 || count > rows)
    refuse("ids has room for " + std::to_string(count) + " of " + std::to_string(rows) + " rows: ask for 1 to all");
  float* values_TK = require<float>(values, "values", {tokens, count});
  auto* completed_T = require<std::int64_t>(completed, "completed", {tokens});
  if (!(deviations >= 0)) refuse("deviations is " + std::to_string(deviations) + ": give 0 or more");
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(best_split, w, x_TD, ids_TK, values_TK, completed_T, tokens, columns, rows, count, deviations);
}

void bounds_split(In x, In high, In low, In multipliers, In row_scales, In dither, double deviations, Out out) {
  const ossia::Split w = split(high, low, multipliers, row_scales, dither);
  const float* x_TD = activations(x, w);
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  float* out_TR = require<float>(out, "out", {tokens, w.tiles * kTile});
  if (!(deviations >= 0)) refuse("deviations is " + std::to_string(deviations) + ": give 0 or more");
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(bounds_split, w, x_TD, out_TR, tokens, columns, deviations);
}

void pack_split(In weight, In dither, Out high, Out low, Out multipliers, Out row_scales) {
  const auto* weight_RC = require<const std::uint16_t>(weight, "weight", {kAnySize, kAnySize});
  const std::size_t rows = weight.shape(0), columns = weight.shape(1);
  ossia::SplitOut out{};
  out.tiles = (rows + kTile - 1) / kTile;
  out.blocks = (columns + kBlock - 1) / kBlock;
  out.dither = require<const std::int8_t>(dither, "dither", {out.blocks * kBlock});
  out.high = require<std::uint8_t>(high, "high", {out.tiles, out.blocks, kTile * kBlock / 2});
  out.low = require<std::uint8_t>(low, "low", {out.tiles, out.blocks, kTile * kBlock / 2});
  out.multipliers = require<std::uint8_t>(multipliers, "multipliers", {out.tiles, out.blocks, kTile});
  out.row_scales = require<float>(row_scales, "row_scales", {out.tiles * kTile});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(pack_split, out, weight_RC, rows, columns);
}

}  // namespace

void bind_unembedding(nb::module_& m) {
  m.def("logits_split", &logits_split, nb::arg("x"), nb::arg("high"), nb::arg("low"), nb::arg("multipliers"),
        nb::arg("row_scales"), nb::arg("dither"), nb::arg("out"),
        "x float32 [T, D] times a packed.Split, into out float32 [T, rows].");
  m.def("best_split", &best_split, nb::arg("x"), nb::arg("high"), nb::arg("low"), nb::arg("multipliers"),
        nb::arg("row_scales"), nb::arg("dither"), nb::arg("rows"), nb::arg("deviations"), nb::arg("ids"),
        nb::arg("values"), nb::arg("completed"),
        "The largest of logits_split into ids int64 and values float32 [T, K]; completed int64 [T]: rows read in full.");
  m.def("bounds_split", &bounds_split, nb::arg("x"), nb::arg("high"), nb::arg("low"), nb::arg("multipliers"),
        nb::arg("row_scales"), nb::arg("dither"), nb::arg("deviations"), nb::arg("out"),
        "What best_split takes for the most that each logit can be, into out float32 [T, 16 tiles].");
  m.def("pack_split", &pack_split, nb::arg("weight"), nb::arg("dither"), nb::arg("high"), nb::arg("low"),
        nb::arg("multipliers"), nb::arg("row_scales"), "Quantise bfloat16 (as uint16) [R, C] into a packed.Split.");
}
