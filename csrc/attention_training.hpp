// Attention of whole documents, forward and backward: the causal softmax with a sink of docs/numerics.md over keys that no
// document shares with another. Everything is computed in float32, and only pieces of the scores ever exist.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

// q, out [tokens, heads, size]; k, v [tokens, groups, size]; all of them, and the gradients of the same shape, bfloat16 where
// `narrow`, else float32. Rows lie end to end, contiguous. size is 16, 32, 64 or 128.
struct TrainingAttention {
  bool narrow;
  const void *q, *k, *v;
  const float* sinks;  // [heads]
  const std::int64_t* starts;  // [documents + 1]: first token of each document, and the number of tokens.
  std::size_t documents, heads, groups, size;
  std::size_t window;  // Keys that a query sees, itself included; 0: all before it.
  void* out;
  float* log_sums;  // [tokens, heads]: logarithm of the softmax's denominator, sink included. Backward reads it.
};

struct TrainingAttentionGradients {
  const void* out_grad;
  void *q_grad, *k_grad, *v_grad;
  float* sink_grads;  // [documents, heads]: a document's part.
};

// Each document and group is the work of one thread, in a fixed order: queries by block, heads one after another.
OSSIA_DECLARE(void attention_training(const TrainingAttention& call))
OSSIA_DECLARE(void attention_training_backward(const TrainingAttention& call, const TrainingAttentionGradients& gradients))

}  // namespace ossia
