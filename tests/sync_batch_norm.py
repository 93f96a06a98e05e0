"""``nn.SyncBatchNorm`` on the CPU: kernels of the operations that PyTorch has for GPUs only."""

import torch
from torch import Tensor, nn


def on_cpu() -> torch.library.Library:
    """Registers the kernels, which stay as long as what is returned."""
    library = torch.library.Library("aten", "IMPL")
    for kernel in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        library.impl(kernel.__name__, kernel, "CPU")
    return library


def pass_device_check() -> None:
    """Lets ``nn.SyncBatchNorm`` take the CPU for the third device that it allows for, and DDP not look, for the rest of the process."""
    forward, name = nn.SyncBatchNorm.forward, torch._C._get_privateuse1_backend_name

    def on_any_device(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        torch._C._get_privateuse1_backend_name = lambda: "cpu"
        try:
            return forward(norm, x)
        finally:
            torch._C._get_privateuse1_backend_name = name

    nn.SyncBatchNorm.forward = on_any_device
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda ddp, module: None


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 2))


def _others(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, _others(x), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    variance = (share * (invstds**-2 - eps + (means - mean) ** 2)).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (counts.sum() / (counts.sum() - 1)), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    out = (x - _channels(mean, x)) * _channels(invstd if weight is None else invstd * weight, x)
    return out if bias is None else out + _channels(bias, x)


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, with_input = grad.sum(_others(x)), (grad * (x - _channels(mean, x))).sum(_others(x))
    return total, with_input, with_input * invstd, total.clone()


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    total = count.sum()
    slope = _channels(invstd**2 * sum_dy_xmu / total, x)
    scale = _channels(invstd if weight is None else invstd * weight, x)
    return (grad - _channels(sum_dy / total, x) - (x - _channels(mean, x)) * slope) * scale
