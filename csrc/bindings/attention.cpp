// attention_paged at its door.
#include "../attention.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <string>

#include "door.hpp"

namespace nb = nanobind;
using ossia::kPageTokens;
using ossia::door::kAnySize;
using ossia::door::refuse;
using ossia::door::require;

namespace {

using Input = nb::ndarray<nb::ro>;
using Output = nb::ndarray<>;

constexpr std::int64_t kMostPosition = std::int64_t{1} << 40;

std::size_t size(const Input& array, const char* name, std::size_t ndim, std::size_t axis) {
  if (array.ndim() != ndim) refuse(std::string(name) + " has " + std::to_string(array.ndim()) + " axes, not " + std::to_string(ndim));
  return array.shape(axis);
}

// Every page that the call will touch is one of num_pages, and no ring is shorter than the window.
void check_tables(const ossia::PagedAttention& call, std::size_t num_tokens, std::size_t num_pages) {
  std::size_t total = 0;
  for (std::size_t b = 0; b < call.num_sequences; ++b) {
    const std::string which = "[" + std::to_string(b) + "]";
    const std::int64_t start = call.starts[b], length = call.lengths[b];
    if (start < 0 || start > kMostPosition) refuse("starts" + which + " is " + std::to_string(start));
    if (length < 0 || static_cast<std::size_t>(length) > num_tokens) refuse("lengths" + which + " is " + std::to_string(length));
    total += static_cast<std::size_t>(length);
    if (length == 0) continue;
    const auto last = static_cast<std::size_t>(start + length - 1) / kPageTokens;
    if (last >= call.table_width && (call.window == 0 || call.window > call.table_width * kPageTokens))
      refuse("tables have " + std::to_string(call.table_width) + " pages of " + std::to_string(kPageTokens) +
             " tokens a sequence, too few for position " + std::to_string(start + length - 1));
    const std::size_t end = last < call.table_width ? last + 1 : call.table_width;
    for (std::size_t i = 0; i < end; ++i) {
      const std::int32_t id = call.tables[b * call.table_width + i];
      if (id < 0 || static_cast<std::size_t>(id) >= num_pages)
        refuse("tables" + which + " names page " + std::to_string(id) + " of " + std::to_string(num_pages));
    }
  }
  if (total != num_tokens)
    refuse("lengths add up to " + std::to_string(total) + ", and q has " + std::to_string(num_tokens) + " tokens");
}

void attention_paged(Input q, Input k, Input v, Input sinks, Output keys, Output values, std::optional<Output> key_scales,
                     std::optional<Output> value_scales, Input tables, Input starts, Input lengths, std::int64_t window,
                     Output out) {
  ossia::PagedAttention call{};
  const std::size_t num_tokens = size(q, "q", 3, 0);
  call.num_heads = size(q, "q", 3, 1);
  call.head_dim = size(q, "q", 3, 2);
  call.num_groups = size(k, "k", 3, 1);
  call.num_sequences = size(tables, "tables", 2, 0);
  call.table_width = size(tables, "tables", 2, 1);
  if (call.head_dim == 0) refuse("q has heads of size 0");
  if (call.num_groups == 0 || call.num_heads % call.num_groups != 0 || call.num_heads == 0)
    refuse("q has " + std::to_string(call.num_heads) + " heads, not a multiple of the " + std::to_string(call.num_groups) + " of k");
  if (window < 0 || window > kMostPosition) refuse("window is " + std::to_string(window));
  call.window = static_cast<std::size_t>(window);

  const std::size_t groups = call.num_groups, head_dim = call.head_dim, filled = (head_dim + 15) / 16 * 16;
  call.q = require<const float>(q, "q", {num_tokens, call.num_heads, head_dim});
  call.k = require<const float>(k, "k", {num_tokens, groups, head_dim});
  call.v = require<const float>(v, "v", {num_tokens, groups, head_dim});
  call.sinks = require<const float>(sinks, "sinks", {call.num_heads});
  call.out = require<float>(out, "out", {num_tokens, call.num_heads, head_dim});
  if (key_scales.has_value() != value_scales.has_value()) refuse("key_scales and value_scales come both or not at all");
  if (keys.ndim() != 4) refuse("keys has " + std::to_string(keys.ndim()) + " axes, not 4");
  const std::size_t num_pages = keys.shape(0);
  if (key_scales) {
    call.keys = require<std::int8_t>(keys, "keys", {num_pages, groups, head_dim, kPageTokens});
    call.values = require<std::int8_t>(values, "values", {num_pages, groups, kPageTokens, filled});
    call.key_scales = require<float>(*key_scales, "key_scales", {num_pages, groups, kPageTokens});
    call.value_scales = require<float>(*value_scales, "value_scales", {num_pages, groups, kPageTokens});
  } else {
    call.keys = require<std::uint16_t>(keys, "keys", {num_pages, groups, head_dim, kPageTokens});
    call.values = require<std::uint16_t>(values, "values", {num_pages, groups, kPageTokens, filled});
  }
  call.tables = require<const std::int32_t>(tables, "tables", {call.num_sequences, call.table_width});
  call.starts = require<const std::int64_t>(starts, "starts", {call.num_sequences});
  call.lengths = require<const std::int64_t>(lengths, "lengths", {call.num_sequences});
  check_tables(call, num_tokens, num_pages);
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(attention_paged, call);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attention_paged", &attention_paged, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("sinks"), nb::arg("keys"),
        nb::arg("values"), nb::arg("key_scales").none(), nb::arg("value_scales").none(), nb::arg("tables"), nb::arg("starts"),
        nb::arg("lengths"), nb::arg("window"), nb::arg("out"),
        "Write keys and values to their pages, then attend into out float32 [T, N, H]. Shapes: csrc/attention.hpp; bfloat16 "
        "pages are given as uint16, window 0 sees everything.");
}
