// The ops of training. Their operands are all float32, or all bfloat16 as uint16: the first one decides.
#include "../training.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <string>

#include "../attention_training.hpp"
#include "door.hpp"

namespace nb = nanobind;
using ossia::door::kAnySize;
using ossia::door::refuse;
using ossia::door::require;

namespace {

using In = nb::ndarray<nb::ro>;
using Out = nb::ndarray<>;
using Shape = std::initializer_list<std::size_t>;

bool is_narrow(const In& x) { return x.dtype() == nb::dtype<std::uint16_t>(); }

template <typename Array>
const void* read(bool narrow, const Array& array, const char* name, Shape shape) {
  if (narrow) return require<const std::uint16_t>(array, name, shape);
  return require<const float>(array, name, shape);
}

void* write(bool narrow, const Out& array, const char* name, Shape shape) {
  if (narrow) return require<std::uint16_t>(array, name, shape);
  return require<float>(array, name, shape);
}

// Each of `count` numbers is at least 0 and below `end`.
void check_range(const std::int64_t* numbers, std::size_t count, std::size_t end, const char* name) {
  for (std::size_t i = 0; i < count; ++i)
    if (numbers[i] < 0 || static_cast<std::size_t>(numbers[i]) >= end)
      refuse(std::string(name) + " holds " + std::to_string(numbers[i]) + ", which is not one of " + std::to_string(end));
}

// From 0 up to `end`, never falling.
const std::int64_t* check_starts(const In& array, const char* name, std::size_t end) {
  const auto* starts = require<const std::int64_t>(array, name, {kAnySize});
  const std::size_t count = array.shape(0);
  bool good = count > 0 && starts[0] == 0 && static_cast<std::size_t>(starts[count - 1]) == end;
  for (std::size_t i = 1; good && i < count; ++i) good = starts[i] >= starts[i - 1];
  if (!good) refuse(std::string(name) + " does not rise from 0 to " + std::to_string(end));
  return starts;
}

void rms_norm_training(In x, In scale, float eps, Out out, Out inverse) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize});
  const std::size_t rows = x.shape(0), width = x.shape(1);
  const void* scale_ = read(narrow, scale, "scale", {width});
  void* out_ = write(narrow, out, "out", {rows, width});
  float* inverse_ = require<float>(inverse, "inverse", {rows});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(rms_norm_training, narrow, x_, rows, width, scale_, eps, out_, inverse_);
}

void rms_norm_backward(In x, In scale, In inverse, In grad, Out x_grad, Out scale_grad) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize});
  const std::size_t rows = x.shape(0), width = x.shape(1);
  const void* scale_ = read(narrow, scale, "scale", {width});
  const float* inverse_ = require<const float>(inverse, "inverse", {rows});
  const void* grad_ = read(narrow, grad, "grad", {rows, width});
  void* x_grad_ = write(narrow, x_grad, "x_grad", {rows, width});
  void* scale_grad_ = write(narrow, scale_grad, "scale_grad", {width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(rms_norm_backward, narrow, x_, rows, width, scale_, inverse_, grad_, x_grad_, scale_grad_);
}

void rope_training(In x, In cos, In sin, bool back, Out out) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize, kAnySize});
  const std::size_t tokens = x.shape(0), heads = x.shape(1), size = x.shape(2);
  if (size % 2) refuse("x has heads of an odd size, " + std::to_string(size));
  const float* cos_ = require<const float>(cos, "cos", {tokens, size / 2});
  const float* sin_ = require<const float>(sin, "sin", {tokens, size / 2});
  void* out_ = write(narrow, out, "out", {tokens, heads, size});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(rope_training, narrow, x_, tokens, heads, size, cos_, sin_, back, out_);
}

void swiglu(In gate_up, float limit, Out hidden) {
  const bool narrow = is_narrow(gate_up);
  void* hidden_ = write(narrow, hidden, "hidden", {kAnySize, kAnySize});
  const std::size_t rows = hidden.shape(0), width = hidden.shape(1);
  const void* gate_up_ = read(narrow, gate_up, "gate_up", {rows, 2 * width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(swiglu, narrow, gate_up_, rows, width, limit, hidden_);
}

void swiglu_backward(In gate_up, In grad, float limit, Out gate_up_grad, Out hidden) {
  const bool narrow = is_narrow(gate_up);
  const void* grad_ = read(narrow, grad, "grad", {kAnySize, kAnySize});
  const std::size_t rows = grad.shape(0), width = grad.shape(1);
  const void* gate_up_ = read(narrow, gate_up, "gate_up", {rows, 2 * width});
  void* gate_up_grad_ = write(narrow, gate_up_grad, "gate_up_grad", {rows, 2 * width});
  void* hidden_ = write(narrow, hidden, "hidden", {rows, width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(swiglu_backward, narrow, gate_up_, grad_, rows, width, limit, gate_up_grad_, hidden_);
}

void combine_rows(In x, In places, std::optional<In> weights, Out out) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize});
  const std::size_t width = x.shape(1);
  const auto* places_ = require<const std::int64_t>(places, "places", {kAnySize, kAnySize});
  const std::size_t tokens = places.shape(0), active = places.shape(1);
  check_range(places_, tokens * active, x.shape(0), "places");
  const void* weights_ = weights ? read(narrow, *weights, "weights", {tokens, active}) : nullptr;
  void* out_ = write(narrow, out, "out", {tokens, width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(combine_rows, narrow, x_, width, places_, weights_, tokens, active, out_);
}

void combine_rows_backward(In x, In places, In weights, In grad, Out x_grad, Out weights_grad) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize});
  const std::size_t rows = x.shape(0), width = x.shape(1);
  const auto* places_ = require<const std::int64_t>(places, "places", {kAnySize, kAnySize});
  const std::size_t tokens = places.shape(0), active = places.shape(1);
  check_range(places_, tokens * active, rows, "places");
  const void* weights_ = read(narrow, weights, "weights", {tokens, active});
  const void* grad_ = read(narrow, grad, "grad", {tokens, width});
  void* x_grad_ = write(narrow, x_grad, "x_grad", {rows, width});
  void* weights_grad_ = write(narrow, weights_grad, "weights_grad", {tokens, active});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(combine_rows_backward, narrow, x_, width, places_, weights_, tokens, active, grad_, x_grad_, weights_grad_);
}

void sum_rows(In x, In offsets, Out out) {
  const bool narrow = is_narrow(x);
  const void* x_ = read(narrow, x, "x", {kAnySize, kAnySize});
  const auto* offsets_ = check_starts(offsets, "offsets", x.shape(0));
  const std::size_t groups = offsets.shape(0) - 1, width = x.shape(1);
  void* out_ = write(narrow, out, "out", {groups, width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(sum_rows, narrow, x_, width, offsets_, groups, out_);
}

void surprise(In logits, In targets, Out surprise, Out log_sums) {
  const bool narrow = is_narrow(logits);
  const void* logits_ = read(narrow, logits, "logits", {kAnySize, kAnySize});
  const std::size_t rows = logits.shape(0), width = logits.shape(1);
  const auto* targets_ = require<const std::int64_t>(targets, "targets", {rows});
  check_range(targets_, rows, width, "targets");
  float* surprise_ = require<float>(surprise, "surprise", {rows});
  float* log_sums_ = require<float>(log_sums, "log_sums", {rows});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(surprise, narrow, logits_, rows, width, targets_, surprise_, log_sums_);
}

void surprise_backward(In logits, In targets, In log_sums, In grad, Out logits_grad) {
  const bool narrow = is_narrow(logits);
  const void* logits_ = read(narrow, logits, "logits", {kAnySize, kAnySize});
  const std::size_t rows = logits.shape(0), width = logits.shape(1);
  const auto* targets_ = require<const std::int64_t>(targets, "targets", {rows});
  check_range(targets_, rows, width, "targets");
  const float* log_sums_ = require<const float>(log_sums, "log_sums", {rows});
  const float* grad_ = require<const float>(grad, "grad", {rows});
  void* logits_grad_ = write(narrow, logits_grad, "logits_grad", {rows, width});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(surprise_backward, narrow, logits_, rows, width, targets_, log_sums_, grad_, logits_grad_);
}

void store_mxfp4(In weight, std::int32_t doubled, Out stored, Out changed) {
  const auto* weight_ = require<const float>(weight, "weight", {kAnySize, 32});
  const std::size_t blocks = weight.shape(0);
  const bool narrow = stored.dtype() == nb::dtype<std::uint16_t>();
  void* stored_ = write(narrow, stored, "stored", {blocks, 32});
  auto* changed_ = require<std::int64_t>(changed, "changed", {(blocks + ossia::kPiece - 1) / ossia::kPiece});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(store_mxfp4, narrow, weight_, blocks, doubled, stored_, changed_);
}

ossia::TrainingAttention attention_call(const In& q, const In& k, const In& v, const In& sinks, const In& starts,
                                        std::int64_t window) {
  ossia::TrainingAttention call{};
  call.narrow = is_narrow(q);
  call.q = read(call.narrow, q, "q", {kAnySize, kAnySize, kAnySize});
  const std::size_t tokens = q.shape(0);
  call.heads = q.shape(1);
  call.size = q.shape(2);
  if (call.size != 16 && call.size != 32 && call.size != 64 && call.size != 128)
    refuse("q has heads of size " + std::to_string(call.size) + ", which is not 16, 32, 64 or 128");
  call.k = read(call.narrow, k, "k", {tokens, kAnySize, call.size});
  call.groups = k.shape(1);
  if (call.groups == 0 || call.heads == 0 || call.heads % call.groups != 0)
    refuse("q has " + std::to_string(call.heads) + " heads, not a multiple of the " + std::to_string(call.groups) + " of k");
  call.v = read(call.narrow, v, "v", {tokens, call.groups, call.size});
  call.sinks = require<const float>(sinks, "sinks", {call.heads});
  call.starts = check_starts(starts, "starts", tokens);
  call.documents = starts.shape(0) - 1;
  if (window < 0) refuse("window is " + std::to_string(window));
  call.window = static_cast<std::size_t>(window);
  return call;
}

void attention_training(In q, In k, In v, In sinks, In starts, std::int64_t window, Out out, Out log_sums) {
  ossia::TrainingAttention call = attention_call(q, k, v, sinks, starts, window);
  call.out = write(call.narrow, out, "out", {q.shape(0), call.heads, call.size});
  call.log_sums = require<float>(log_sums, "log_sums", {q.shape(0), call.heads});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(attention_training, call);
}

void attention_training_backward(In q, In k, In v, In sinks, In starts, std::int64_t window, Out out, Out log_sums, In out_grad,
                                 Out q_grad, Out k_grad, Out v_grad, Out sink_grads) {
  ossia::TrainingAttention call = attention_call(q, k, v, sinks, starts, window);
  const std::size_t tokens = q.shape(0);
  call.out = write(call.narrow, out, "out", {tokens, call.heads, call.size});
  call.log_sums = require<float>(log_sums, "log_sums", {tokens, call.heads});
  ossia::TrainingAttentionGradients gradients{};
  gradients.out_grad = read(call.narrow, out_grad, "out_grad", {tokens, call.heads, call.size});
  gradients.q_grad = write(call.narrow, q_grad, "q_grad", {tokens, call.heads, call.size});
  gradients.k_grad = write(call.narrow, k_grad, "k_grad", {tokens, call.groups, call.size});
  gradients.v_grad = write(call.narrow, v_grad, "v_grad", {tokens, call.groups, call.size});
  gradients.sink_grads = require<float>(sink_grads, "sink_grads", {call.documents, call.heads});
  nb::gil_scoped_release release;
  OSSIA_DISPATCH(attention_training_backward, call, gradients);
}

}  // namespace

void bind_training(nb::module_& m) {
  m.def("rms_norm_training", &rms_norm_training, nb::arg("x"), nb::arg("scale"), nb::arg("eps"), nb::arg("out"), nb::arg("inverse"));
  m.def("rms_norm_backward", &rms_norm_backward, nb::arg("x"), nb::arg("scale"), nb::arg("inverse"), nb::arg("grad"),
        nb::arg("x_grad"), nb::arg("scale_grad"));
  m.def("rope_training", &rope_training, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("back"), nb::arg("out"));
  m.def("swiglu", &swiglu, nb::arg("gate_up"), nb::arg("limit"), nb::arg("hidden"));
  m.def("swiglu_backward", &swiglu_backward, nb::arg("gate_up"), nb::arg("grad"), nb::arg("limit"), nb::arg("gate_up_grad"),
        nb::arg("hidden"));
  m.def("combine_rows", &combine_rows, nb::arg("x"), nb::arg("places"), nb::arg("weights").none(), nb::arg("out"));
  m.def("combine_rows_backward", &combine_rows_backward, nb::arg("x"), nb::arg("places"), nb::arg("weights"), nb::arg("grad"),
        nb::arg("x_grad"), nb::arg("weights_grad"));
  m.def("sum_rows", &sum_rows, nb::arg("x"), nb::arg("offsets"), nb::arg("out"));
  m.def("surprise", &surprise, nb::arg("logits"), nb::arg("targets"), nb::arg("surprise"), nb::arg("log_sums"));
  m.def("surprise_backward", &surprise_backward, nb::arg("logits"), nb::arg("targets"), nb::arg("log_sums"), nb::arg("grad"),
        nb::arg("logits_grad"));
  m.def("store_mxfp4", &store_mxfp4, nb::arg("weight"), nb::arg("doubled"), nb::arg("stored"), nb::arg("changed"));
  m.def("attention_training", &attention_training, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("sinks"), nb::arg("starts"),
        nb::arg("window"), nb::arg("out"), nb::arg("log_sums"));
  m.def("attention_training_backward", &attention_training_backward, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("sinks"),
        nb::arg("starts"), nb::arg("window"), nb::arg("out"), nb::arg("log_sums"), nb::arg("out_grad"), nb::arg("q_grad"),
        nb::arg("k_grad"), nb::arg("v_grad"), nb::arg("sink_grads"));
}
