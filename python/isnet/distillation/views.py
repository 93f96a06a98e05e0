"""What the teacher sees of the student's images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from isnet.data.backgrounds import replace_background

ViewName = Literal["image", "zeros", "ones", "noise", "swap"]
View = ViewName | Callable[[Tensor, Tensor | None, torch.Generator | None], Tensor]
VIEWS: tuple[str, ...] = get_args(ViewName)


def require_view(view: Any) -> None:
    """Raises ValueError unless ``view`` is the name of one, or a callable."""
    if not callable(view) and view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, or a callable, got {view!r}")


def seen(
    view: View,
    images: Tensor,
    masks: Tensor | None,
    generator: torch.Generator | None,
    input_range: tuple[Any, Any],
    place: tuple[int, int] | None = None,
) -> Tensor:
    """The teacher's images.

    Args:
        view: "image": the same; "zeros": the foreground alone, on pixels that are 0 as the networks get them and so have no relevance;
            "ones": on the upper end of the pixel range; "noise": on white noise of random amplitude; "swap": on the background of another
            image of the batch; a callable (images, masks, generator) -> images of any shape, [B, ...]: another modality, say.
        images: [B, C, H, W].
        masks: [B, 1, H, W], 1 = foreground; None: there are none.
        generator: on the CPU, of the noise; None: a new one, seeded from PyTorch's.
        input_range: (low, high) of the pixels, numbers or one per channel.
        place: (i, n): these images are those from i on of a batch of n.

    Raises:
        ValueError: a view of the foreground without masks that fit, or a callable that returns another number of images.
    """
    if callable(view):
        found = view(images, masks, generator)
        if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != len(images):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"view: expected {len(images)} images for {len(images)} of the student's, got {got}")
        return found
    if view == "image":
        return images
    if masks is None or masks.shape != (len(images), 1, *images.shape[2:]):
        given = "none" if masks is None else str(list(masks.shape))
        expected = [len(images), 1, *images.shape[2:]]
        raise ValueError(
            f'view: {view!r} shows the foreground and needs masks of shape {expected}, got {given}; "image" needs none'
        )
    if view == "zeros" or view == "ones":
        ends = torch.as_tensor(0.0 if view == "zeros" else input_range[1], dtype=images.dtype, device=images.device)
        return torch.where(masks > 0, images, ends.reshape(-1, *(1,) * (images.dim() - 2)))
    first, total = place or (0, len(images))
    draws = torch.Generator().manual_seed(int(torch.randint(2**31, ()))) if generator is None else generator
    return replace_background(images, masks, draws, *input_range, kind=view, first=first, total=total)
