"""Models as functions of positional floating-point tensors, which is what verification compares: keyword inputs, token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .own_pass import Inputs, copy_of, unchanged

_ARGUMENT = "additional_forward_args"


class _Adapter(nn.Module):
    """Calls a model in another way; its modules have the names that they have in the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # and not by train(), which would change the model

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        return self.model.named_modules(*args, **kwargs)


class ByKeyword(_Adapter):
    """A model whose inputs are given by these keywords."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(model)
        self.names = names

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), **kwargs)


class WithArguments(_Adapter):
    """A model that takes further positional arguments behind its inputs, given by the keywords of :meth:`named`."""

    @staticmethod
    def named(given: Any) -> dict[str, Any]:
        """Keywords for further arguments, in order: a tuple of them, or a single one."""
        return {f"{_ARGUMENT}[{i}]": value for i, value in enumerate(given if isinstance(given, tuple) else (given,))}

    def forward(self, *inputs: Tensor, **kwargs: Any) -> Any:
        self.training = self.model.training
        further = [value for name, value in kwargs.items() if name.startswith(_ARGUMENT)]
        return self.model(*inputs, *further, **{k: v for k, v in kwargs.items() if not k.startswith(_ARGUMENT)})


class FromEmbeddings(_Adapter):
    """A model of token ids as a function of the rows that its embeddings look up, in the order in which they do."""

    def __init__(self, model: nn.Module, ids: Inputs) -> None:
        super().__init__(model)
        self.ids = ids

    def forward(self, *rows: Tensor, **kwargs: Any) -> Any:
        given = iter(rows)
        with _on_embeddings(self.model, lambda _, __, ___: next(given)):
            return self.model(*map(copy_of, self.ids), **kwargs)

    def rows(self, kwargs: Mapping[str, Any]) -> Inputs:
        """What the embeddings look up, on a pass of its own."""
        found: list[Tensor] = []
        watching = _on_embeddings(self.model, lambda _, __, out: found.append(out.detach().clone()))
        with unchanged(self.model, self.ids[0].device), torch.no_grad(), watching:
            self.model(*map(copy_of, self.ids), **{name: copy_of(value) for name, value in kwargs.items()})
        return tuple(found)


@contextmanager
def _on_embeddings(model: nn.Module, hook: Any) -> Iterator[None]:
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_positional_numbers(
    model: nn.Module, inputs: Inputs, names: tuple[str, ...] | None, kwargs: Mapping[str, Any]
) -> tuple[nn.Module, Inputs]:
    """The model, or an adapter around it, and the floating-point tensors that it then takes."""
    if names is not None:
        model = ByKeyword(model, names)
    if all(x.is_floating_point() for x in inputs):
        return model, inputs
    adapter = FromEmbeddings(model, inputs)
    return adapter, adapter.rows(kwargs)
