"""FSDP2, FSDP and DDP train an ISNet to one process's weights; what cannot be is refused in one line. The cases: tests/two_processes.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from two_processes import CASES, OTHERS

import isnet

REFUSED = {
    "sharded blocks, static": "ValueError: static: 3 is sharded by fully_shard, whose hooks gather its weights in each call",
    "FSDP 1 inside": "ValueError: 3: FullyShardedDataParallel inside the model frees weights that the relevance pass reads; use ",
    "sharded from outside": "ValueError: 0.weight is a shard (DTensor), which only the sharded module around this model gathers; call ",
    "verified": "ValueError: model: fully_shard has sharded it, and its weights are not all there; verify it before that",
}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What each of the two processes has found."""
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 2
    return results


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_two_processes_do_as_one(found: list[dict[str, Any]], case: str) -> None:
    for result in found:
        if case in REFUSED:
            assert str(result[case]).startswith(REFUSED[case]) and "\n" not in result[case]
        else:
            assert isinstance(result[case], float), result[case]
            assert result[case] <= (5e-2 if case == "mixed precision" else 1e-10)


def test_output_is_a_tree_of_tensors() -> None:
    """DistributedDataParallel finds the outputs of a static graph so."""
    net = isnet.ISNet(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), check=False)
    out = net(torch.rand(2, 1, 4, 4))
    leaves, form = torch.utils._pytree.tree_flatten(out)
    assert [leaf.shape for leaf in leaves] == [out.logits.shape, out.heatmaps["input"].shape]
    again = torch.utils._pytree.tree_unflatten(leaves, form)
    assert isinstance(again, isnet.ISNetOutput) and again.heatmaps["input"] is out.heatmaps["input"]
