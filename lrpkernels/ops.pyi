"""Signatures of torch.ops.lrpkernels. Written by `python -m lrpkernels.tools.stubs`, never by hand."""

from collections.abc import Sequence

from torch import Tensor

def affine(
    multiplier: Tensor,
    value: Tensor,
    input: Tensor,
    slope: Tensor,
    shift: Tensor | None,
    whole: float,
    positive: float,
    epsilon: float,
) -> Tensor: ...
def affine_backward(
    grad: Tensor,
    multiplier: Tensor,
    value: Tensor,
    input: Tensor,
    slope: Tensor,
    shift: Tensor | None,
    whole: float,
    positive: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def average_pool(
    input: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor: ...
def average_pool_transpose(
    multiplier: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor: ...
def conv_apply(
    input: Tensor,
    weight: Tensor,
    weights: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tensor_cores: bool,
) -> Tensor: ...
def conv_relevance(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    value: Tensor | None,
    denominator: Tensor | None,
    weight: Tensor,
    weights: int,
    input: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    epsilon: float,
    tensor_cores: bool,
) -> Tensor: ...
def conv_weight_gradient(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    value: Tensor | None,
    denominator: Tensor | None,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    epsilon: float,
    tensor_cores: bool,
) -> Tensor: ...
def epsilon_scale(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None,
) -> Tensor: ...
def epsilon_scale_backward(
    grad: Tensor,
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    need_scale: bool,
    epsilons: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def heatmap_scores(
    heatmap: Tensor,
    mask: Tensor,
    kept: int,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def heatmap_scores_backward(
    heatmap: Tensor,
    mask: Tensor,
    order: Tensor,
    grad_foreground: Tensor,
    grad_signed_foreground: Tensor,
    grad_background: Tensor,
    decay: float,
) -> Tensor: ...
def max_pool_winner(
    multiplier: Tensor,
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor: ...
def max_pool_winner_backward(
    grad: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor: ...
def ratio(
    multiplier: Tensor,
    value: Tensor,
    denominator: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
) -> Tensor: ...
def ratio_backward(
    grad: Tensor,
    multiplier: Tensor,
    value: Tensor,
    denominator: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def sample_norm(
    multiplier: Tensor,
    input: Tensor,
    weight: Tensor | None,
    row: int,
    inner: int,
    centred: bool,
    epsilon: float,
) -> Tensor: ...
def sample_norm_backward(
    grad: Tensor,
    multiplier: Tensor,
    input: Tensor,
    weight: Tensor | None,
    row: int,
    inner: int,
    centred: bool,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]: ...
def sum_zplus(
    multiplier: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]: ...
def sum_zplus_backward(
    grad_a: Tensor,
    grad_b: Tensor,
    multiplier: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]: ...
