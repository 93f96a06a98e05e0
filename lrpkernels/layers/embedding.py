"""Embeddings: rows of a table, looked up by the model's integer input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import times
from ..graph import Arrived, Multipliers, Node
from ..rules import Rule
from .registry import Recorder, bind, records


class Embedding(Node):
    """The rows of a table that integers name: the relevance of an integer is the sum over its row."""

    kind = "embedding"
    yields_relevance = sees_through = True
    reads_inputs = False
    module_type = torch.nn.Embedding

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (times(multipliers[0], self.value).sum(-1),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0].sum(-1),)


@records(F.embedding, torch.embedding)
def _embedding(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    first, second = bind(args, kwargs, *(("input", "weight") if func is F.embedding else ("weight", "indices")))[:2]
    tokens, table = (first, second) if func is F.embedding else (second, first)
    value = rec.value(tokens)
    if value is None or rec.value(table) is not None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    rec.add(Embedding(value), out)
    return out
