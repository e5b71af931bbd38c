// The small ops of training, forward and backward, on numbers that are bfloat16 where `narrow` is said, else float32.
// Everything is computed in float32. Where rows are added up, it is row after row within pieces of kPiece rows, then the pieces
// in order, whatever the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace ossia {

constexpr std::size_t kPiece = 128;

// out [rows, width]: each row of x over its root mean square, times scale [width]. inverse [rows]: one over that root.
OSSIA_DECLARE(void rms_norm_training(bool narrow, const void* x, std::size_t rows, std::size_t width, const void* scale,
                                     float eps, void* out, float* inverse))
// x_grad [rows, width], scale_grad [width], of the type of x.
OSSIA_DECLARE(void rms_norm_backward(bool narrow, const void* x, std::size_t rows, std::size_t width, const void* scale,
                                     const float* inverse, const void* grad, void* x_grad, void* scale_grad))
// out [tokens, heads, size]: halves rotated by the angles of cos and sin [tokens, size / 2], or back where `back`.
OSSIA_DECLARE(void rope_training(bool narrow, const void* x, std::size_t tokens, std::size_t heads, std::size_t size,
                                 const float* cos, const float* sin, bool back, void* out))
// hidden [rows, width] of gate_up [rows, 2 width], gates even: gate at most limit, linear within it both ways,
// gate * sigmoid(1.702 gate) * (linear + 1).
OSSIA_DECLARE(void swiglu(bool narrow, const void* gate_up, std::size_t rows, std::size_t width, float limit, void* hidden))
// gate_up_grad [rows, 2 width] from grad [rows, width]; hidden is made again beside it.
OSSIA_DECLARE(void swiglu_backward(bool narrow, const void* gate_up, const void* grad, std::size_t rows, std::size_t width,
                                   float limit, void* gate_up_grad, void* hidden))
// out [tokens, width]: sum over active of weights [tokens, active] (null: all one) times row places [tokens, active] of x.
OSSIA_DECLARE(void combine_rows(bool narrow, const void* x, std::size_t width, const std::int64_t* places, const void* weights,
                                std::size_t tokens, std::size_t active, void* out))
// x_grad row places [tokens, active] = weight * grad row of its token; weights_grad [tokens, active] = x row . grad row.
OSSIA_DECLARE(void combine_rows_backward(bool narrow, const void* x, std::size_t width, const std::int64_t* places,
                                         const void* weights, std::size_t tokens, std::size_t active, const void* grad,
                                         void* x_grad, void* weights_grad))
// out [groups, width]: sums of the rows offsets[g] .. offsets[g + 1] of x.
OSSIA_DECLARE(void sum_rows(bool narrow, const void* x, std::size_t width, const std::int64_t* offsets, std::size_t groups,
                            void* out))
// surprise [rows]: log of the sum of the exponentials of logits [rows, width], less that of the target; log_sums [rows].
OSSIA_DECLARE(void surprise(bool narrow, const void* logits, std::size_t rows, std::size_t width, const std::int64_t* targets,
                            float* surprise, float* log_sums))
// logits_grad [rows, width] = (softmax - one at the target) * grad [rows].
OSSIA_DECLARE(void surprise_backward(bool narrow, const void* logits, std::size_t rows, std::size_t width,
                                     const std::int64_t* targets, const float* log_sums, const float* grad, void* logits_grad))
// stored [blocks, 32] = weight through the MXFP4 quantiser, bit for bit mxfp4.fake_quantize: the scale is the power of two
// under which the largest magnitude lies in [4, 8), doubled where its 23 bits of mantissa are at least `doubled`. Returns
// through `changed` [ceil(blocks / kPiece)] how many of each piece's values are no longer what they were.
OSSIA_DECLARE(void store_mxfp4(bool narrow, const float* weight, std::size_t blocks, std::int32_t doubled, void* stored,
                               std::int64_t* changed))

}  // namespace ossia
