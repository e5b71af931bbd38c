"""Operands are contiguous arrays, of numpy or torch; bfloat16 goes as uint16. ValueError names what is wrong."""

from typing import Any

Array = Any

def mxfp4_dequantize(blocks: Array, scales: Array, out: Array) -> None: ...
def isa() -> str: ...
def best_isa() -> str: ...
def set_isa(isa: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def linear_q8(
    x: Array, codes: Array, multipliers: Array, row_scales: Array, bias: Array | None, out: Array
) -> None: ...
def linear_bf16(x: Array, weight: Array, bias: Array | None, out: Array) -> None: ...
def experts_packed(
    x: Array,
    gate_up_codes: Array,
    gate_up_scales: Array,
    gate_up_bias: Array,
    down_codes: Array,
    down_scales: Array,
    down_bias: Array,
    expert_ids: Array,
    expert_weights: Array,
    limit: float,
    out: Array,
) -> None: ...
def experts_exact(
    x: Array,
    gate_up_codes: Array,
    gate_up_scales: Array,
    gate_up_bias: Array,
    down_codes: Array,
    down_scales: Array,
    down_bias: Array,
    expert_ids: Array,
    expert_weights: Array,
    limit: float,
    out: Array,
) -> None: ...
def grouped_mxfp4(x: Array, codes: Array, scales: Array, bias: Array | None, offsets: Array, out: Array) -> None: ...
def grouped_mxfp4_transposed(grad: Array, codes: Array, scales: Array, offsets: Array, out: Array) -> None: ...
def linear_bf16_transposed(grad: Array, weight: Array, out: Array) -> None: ...
def rms_norm(x: Array, scale: Array, eps: float, out: Array) -> None: ...
def rope(x: Array, cos: Array, sin: Array, out: Array) -> None: ...
def pack_mxfp4(blocks: Array, scales: Array, order: Array | None, codes: Array, tile_scales: Array) -> None: ...
def pack_q8(weight: Array, codes: Array, multipliers: Array, row_scales: Array) -> None: ...
def pack_bf16(weight: Array, packed: Array) -> None: ...
def attention_paged(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    keys: Array,
    values: Array,
    key_scales: Array | None,
    value_scales: Array | None,
    tables: Array,
    starts: Array,
    lengths: Array,
    window: int,
    out: Array,
) -> None: ...
def logits_split(
    x: Array, high: Array, low: Array, multipliers: Array, row_scales: Array, dither: Array, out: Array
) -> None: ...
def best_split(
    x: Array,
    high: Array,
    low: Array,
    multipliers: Array,
    row_scales: Array,
    dither: Array,
    rows: int,
    deviations: float,
    ids: Array,
    values: Array,
    completed: Array,
) -> None: ...
def bounds_split(
    x: Array,
    high: Array,
    low: Array,
    multipliers: Array,
    row_scales: Array,
    dither: Array,
    deviations: float,
    out: Array,
) -> None: ...
def pack_split(
    weight: Array, dither: Array, high: Array, low: Array, multipliers: Array, row_scales: Array
) -> None: ...
def measure_limits(threads: int, num_bytes: int) -> tuple[float, float]: ...
def rms_norm_training(x: Array, scale: Array, eps: float, out: Array, inverse: Array) -> None: ...
def rms_norm_backward(
    x: Array, scale: Array, inverse: Array, grad: Array, x_grad: Array, scale_grad: Array
) -> None: ...
def rope_training(x: Array, cos: Array, sin: Array, back: bool, out: Array) -> None: ...
def swiglu(gate_up: Array, limit: float, hidden: Array) -> None: ...
def swiglu_backward(gate_up: Array, grad: Array, limit: float, gate_up_grad: Array, hidden: Array) -> None: ...
def combine_rows(x: Array, places: Array, weights: Array | None, out: Array) -> None: ...
def combine_rows_backward(
    x: Array, places: Array, weights: Array, grad: Array, x_grad: Array, weights_grad: Array
) -> None: ...
def sum_rows(x: Array, offsets: Array, out: Array) -> None: ...
def surprise(logits: Array, targets: Array, surprise: Array, log_sums: Array) -> None: ...
def surprise_backward(logits: Array, targets: Array, log_sums: Array, grad: Array, logits_grad: Array) -> None: ...
def store_mxfp4(weight: Array, doubled: int, stored: Array, changed: Array) -> None: ...
def attention_training(
    q: Array, k: Array, v: Array, sinks: Array, starts: Array, window: int, out: Array, log_sums: Array
) -> None: ...
def attention_training_backward(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    starts: Array,
    window: int,
    out: Array,
    log_sums: Array,
    out_grad: Array,
    q_grad: Array,
    k_grad: Array,
    v_grad: Array,
    sink_grads: Array,
) -> None: ...
