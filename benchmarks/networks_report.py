"""Writes docs/networks.md: what each network of the field's libraries does under the engine.

python -m benchmarks.networks_report                           # writes all rows of docs/networks.md
python -m benchmarks.networks_report --only "torchvision *"    # these rows alone, the others stay
"""

from __future__ import annotations

import argparse
import copy
import warnings
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks.library_networks import NETWORKS, build, without_constants
from benchmarks.timing import alternate, environment, steady_allocator
from lrpkernels.engine.target import select_logits

PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
HEAD = """# Networks

Written by `python -m benchmarks.networks_report`; small versions with random weights, float64 unless said otherwise. All run as they are
imported. What is tested of each: `tests/test_networks.py`.

- *exact*: networks whose activations are ReLUs equal double backward through a modified ReLU, heatmap and gradients, to 1e-9 or better
  (the test); "-": no independent reference, conservation is what is checked.
- *trains*: parameters with a finite gradient of a loss on the heatmap; the biases of the last layer never reach a heatmap.
- *conservation error*: |sum R - logit| / sum |R| with biases and means at zero and eps 1e-12; "-": layer norms, softmax or additive
  embeddings keep relevance by definition.
- *bf16, autocast*: largest heatmap difference to float64 under CPU bfloat16 autocast, as a share of the largest value.
- *step*: ISNet-like step (heatmap and a loss on it) / plain step, float32, one thread, tiny inputs, where fixed costs weigh most.
- *fallbacks*: functions without a rule, whose gradient is used.

MONAI and transformers install beside torch 2.13; torchvision's rows come from an environment of its own (`pip install torch==2.14.1
torchvision==0.29.1 monai transformers`, then `pip install --no-build-isolation .`).

| network | runs | exact | trains | conservation error | bf16, autocast | step | fallbacks | torch |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def _logits(output: object) -> Tensor:
    return select_logits(output, None)


def row(name: str) -> str:
    model, x = build(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, heatmap = lrp.LRP(model)(x, 1)
    fallbacks = ", ".join(str(w.message).split()[5] for w in caught if "no rule for" in str(w.message)) or "none"
    heatmap.abs().sum().backward()
    trained = sum(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    trains = f"{trained} of {len(list(model.parameters()))} parameters"
    error = "-"
    if NETWORKS[name].conserves:
        bare = without_constants(copy.deepcopy(model))
        with torch.no_grad():
            output, relevance = lrp.LRP(bare, lrp.Epsilon(1e-12))(x, 1)
        difference = (relevance.flatten(1).sum(1) - _logits(output)[:, 1]).abs() / relevance.abs().flatten(1).sum(1)
        error = f"{float(difference.max()):.0e}"
    single = copy.deepcopy(model).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = lrp.LRP(single)(x.float(), 1)[1]
    precision = f"{float((low.double() - heatmap.detach()).abs().max() / heatmap.detach().abs().max()):.0e}"
    exact = "yes" if NETWORKS[name].relu_only else "-"
    step = f"{_step_ratio(single, x.float()):.2f}"
    cells = (name, "yes", exact, trains, error, precision, step, fallbacks, torch.__version__)
    return f"| {' | '.join(cells)} |"


def _step_ratio(model: nn.Module, x: Tensor) -> float:
    labels = torch.zeros(len(x), dtype=torch.int64)

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(_logits(model(x)), labels).backward()

    def with_heatmap() -> None:
        model.zero_grad()
        output, heatmap = lrp.LRP(model)(x, 1)
        (F.cross_entropy(_logits(output), labels) + heatmap.abs().mean()).backward()

    return alternate({"plain": plain, "heatmap": with_heatmap}, repeats=9)[1].ratio


def _rows_of(page: str) -> dict[str, str]:
    """Network -> its row on a page written earlier."""
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="networks to run; the others keep their rows")
    parser.add_argument("--stdout", action="store_true", help="print instead of writing docs/networks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steady_allocator()
    rows = {} if options.only == "*" else _rows_of(PAGE.read_text())
    for name in NETWORKS:
        if fnmatch(name, options.only):
            rows[name] = row(name)
            print(rows[name], flush=True)
    info = environment("cpu")
    if not options.stdout:
        PAGE.write_text(
            HEAD + "\n".join(rows.values()) + f"\n\nLast rows measured on {info['device']}, {info['date']}.\n"
        )


if __name__ == "__main__":
    main()
