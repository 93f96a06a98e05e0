"""CUDA graphs: whether the current stream is being captured, when nothing may wait for the device or copy from the host."""

from __future__ import annotations

import torch


def is_capturing(device: torch.device) -> bool:
    """Whether work for ``device`` is recorded instead of run. Checks that would read a result are left out then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
