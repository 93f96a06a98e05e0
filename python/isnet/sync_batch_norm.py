"""Batch norm over the images of all processes, with gloo on the CPU as with nccl on GPUs (PyTorch's own takes GPUs only)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isnet.distributed import current_world

_CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm [B, C, ...] whose statistics in training are those of the whole batch, of which each process holds a part.

    In evaluation mode, and in a process alone, it is ordinary batch norm. Parameters and buffers have the same names, so checkpoints fit
    both.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input: expected [B, C, ...], got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or current_world().size == 1:
            return super().forward(input)
        count, mean, variance = _statistics(input.detach())  # constants to a recording, as LRP wants them
        if self.track_running_stats and self.num_batches_tracked is not None:
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                unbiased = variance * (count / max(1.0, count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean), step)
                self.running_var.lerp_(unbiased.to(self.running_var), step)
        return _Normalize.apply(input, self.weight, self.bias, mean, variance, count, self.eps)


def synchronize_batch_norm(model: nn.Module) -> None:
    """Puts :class:`SynchronizedBatchNorm` in place of every batch norm in ``model``, with the same parameters, buffers and hooks.

    Raises:
        ValueError: the model is itself a batch norm, or holds one of a class of its own, whose forward pass is not known.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, SynchronizedBatchNorm):
            continue
        if type(module) not in _CONVERTED or not name:
            raise ValueError(f"sync_batch_norm: cannot synchronise {name or 'the model'}, a {type(module).__name__}")
        converted = SynchronizedBatchNorm.__new__(SynchronizedBatchNorm)
        converted.__dict__.update(module.__dict__)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, converted)


def _dims(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@torch.no_grad()
def _statistics(input: Tensor) -> tuple[float, Tensor, Tensor]:
    """(values per channel, mean [C], variance [C], not corrected) over all processes, float32 or float64.

    Each process sends its count, mean and summed squared deviations; put together as Chan et al. 1979 do, which loses no digits.
    """
    x = _wide(input)
    count = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, _dims(x), correction=0)
    own = torch.cat([mean.new_full((1,), count), mean, variance * count])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    counts, means, squares = torch.stack(parts).split([1, len(mean), len(mean)], 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return float(total), mean, (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / total


class _Normalize(torch.autograd.Function):
    """Batch norm with given statistics forward, and the gradient of the same with the whole batch's statistics backward."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        # Called by its name: a recording takes it for the batch norm that it is.
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, weight, mean, variance = ctx.saved_tensors
        dims, shape = _dims(input), (-1, *(1,) * (input.dim() - 2))
        inverse = torch.rsqrt(variance + ctx.eps)
        g = _wide(gradient)
        normal = (_wide(input) - mean.view(shape)) * inverse.view(shape)
        sums = torch.stack([g.sum(dims), (g * normal).sum(dims)])
        g_bias, g_weight = sums.clone()  # of this process: DDP brings those of all together
        dist.all_reduce(sums)
        sums = sums / ctx.count
        scale = inverse if weight is None else inverse * _wide(weight)
        g_input = scale.view(shape) * (g - sums[0].view(shape) - normal * sums[1].view(shape))
        grads = [g_input.to(input.dtype), None, None]
        if weight is not None:
            grads[1:] = g_weight.to(weight.dtype), g_bias.to(weight.dtype)
        return (*grads, None, None, None, None)
