"""Cost of an ISNet training step against a plain one.

    python -m benchmarks.step
    python -m benchmarks.step --networks resnet50 densenet121 --size 224 --json step.json
    python -m benchmarks.step --networks vit convnext efficientnet_b0 seresnet50 --static
    python -m benchmarks.step --networks resnet10_3d --batch 1 --size 48 --classes 2
    python -m benchmarks.step --networks resnet18 --supervise layers.3 --every 4

A plain step is forward, cross-entropy, backward; an ISNet step adds the heatmap and its loss, all terms of them. The floor at equal
precision is 2.0 for one epsilon heatmap: a forward-sized relevance pass and its two-fold backward beside a plain step's three
(docs/method.md). A step of a student with a teacher of the same network (--variant distilled) has the teacher's heatmap beside it, two
forward passes without a graph, and no cross-entropy: 8/3 plain steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import isnet
from benchmarks import command_line
from benchmarks.gradient_trick import gradient_trick_step
from benchmarks.networks import NETWORKS, images
from benchmarks.timing import alternate, as_rows

VARIANTS = ("selective", "stochastic", "dual", "original")
DISTILLED = "distilled"


def floor(variant: str, classes: int, every: int, supervise: str | None = None) -> float | None:
    """The least cost of a step in plain ones, at equal precision and efficiency (docs/method.md, section 6).

    None for a pass that ends at a layer: it depends on the network.
    """
    if variant == DISTILLED:
        return 8 / 3
    if supervise is not None:
        return None
    relevance = {"dual": 3.0, "original": float(classes)}.get(variant, 1.0)
    return 1 + relevance / every


def steps(
    network: str,
    variant: str,
    *,
    batch: int,
    size: int,
    classes: int,
    training: bool,
    device: str,
    trick: bool = False,
    every: int = 1,
    autocast: bool = False,
    model: torch.nn.Module | None = None,
    checkpoint: bool = False,
    static: bool = False,
    supervise: str | None = None,
) -> dict[str, Callable[[], object]]:
    """The steps to compare, the plain one first; with ``every`` K a run is K steps, of both kinds, the last with a heatmap."""
    torch.manual_seed(0)
    model = (model or NETWORKS[network](classes)).to(device).train(training)
    x, labels = images(network, batch, size, device), torch.randint(0, classes, (batch,), device=device)
    masks = torch.zeros_like(x[:, :1])
    masks[(..., *(slice(size // 4, 3 * size // 4),) * (x.dim() - 2))] = 1
    if variant == DISTILLED:
        return _distilled_steps(model, x, labels, static)
    options: dict[str, Any] = {"input_range": (0.0, 1.0), "generator": torch.Generator().manual_seed(0), "check": False}
    options |= {"supervise": supervise}
    net = isnet.ISNet(model, variant, **options)  # type: ignore[arg-type]
    criterion = isnet.ISNetLoss()

    def plain() -> None:
        for _ in range(every):
            model.zero_grad()
            F.cross_entropy(model(x), labels).backward()

    def isnet_step() -> None:
        step(net)

    def step(net: isnet.ISNet) -> None:
        net.training = True
        for index in range(every):
            model.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                out = net(x, heatmaps=index == every - 1)
            loss = criterion(out, labels, masks).total if out.heatmaps else F.cross_entropy(out.logits.float(), labels)
            loss.backward()

    name = f"ISNet {variant}{' bf16' if autocast else ''}{f', every {every}' if every > 1 else ''} step"
    runs: dict[str, Callable[[], object]] = {"plain step": plain, name: isnet_step}
    if checkpoint:
        small = isnet.ISNet(model, variant, **options, checkpoint=True)  # type: ignore[arg-type]
        runs[f"{name}, checkpointed"] = lambda: step(small)
    if static:
        fixed = isnet.ISNet(model, variant, **options, static=True)  # type: ignore[arg-type]
        runs[f"{name}, static"] = lambda: step(fixed)
    if trick:
        runs["gradient trick step"] = gradient_trick_step(model, x, labels, masks, criterion)
    return runs


def _distilled_steps(
    student: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor, static: bool
) -> dict[str, Callable[[], object]]:
    """A plain step, and steps of a student that matches maps (the input's alone, and those that "auto" finds) or logits."""
    criterion = isnet.MatchingLoss()

    def plain() -> None:
        student.zero_grad()
        F.cross_entropy(student(x), labels).backward()

    def step(net: isnet.Distilled) -> Callable[[], None]:
        def run() -> None:
            net.training = True
            student.zero_grad()
            criterion(net(x)).total.backward()

        return run

    runs: dict[str, Callable[[], object]] = {"plain step": plain}
    kinds: dict[str, dict[str, Any]] = {"maps, input alone": {"layers": ()}, "maps": {}, "logits": {"match": "logits"}}
    if static:
        kinds["maps, static"] = {"static": True}
    for name, options in kinds.items():
        teacher, draws = copy.deepcopy(student), torch.Generator().manual_seed(0)
        runs[name] = step(isnet.Distilled(student, teacher, head="free", generator=draws, check=False, **options))
    return runs


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "vgg11"])
    parser.add_argument("--variant", default="selective", choices=(*VARIANTS, DISTILLED))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--every", type=int, default=1, metavar="K", help="lazy heatmap loss: a heatmap in every K-th step"
    )
    parser.add_argument(
        "--autocast", action="store_true", help="the ISNet step under bfloat16 autocast, the plain one in float32"
    )
    parser.add_argument("--checkpoint", action="store_true", help="also the ISNet step with tape checkpointing")
    parser.add_argument("--static", action="store_true", help="also the ISNet step with static calls")
    parser.add_argument("--supervise", metavar="MODULE", help="the relevance pass ends at this module's output")
    parser.add_argument("--eval", action="store_true", help="batch norm with running statistics")
    parser.add_argument(
        "--trick", action="store_true", help="also plain autograd LRP: modified ReLU and double backward"
    )
    options = parser.parse_args(arguments)
    command_line.begin(options)
    rows: list[dict[str, Any]] = []
    least = floor(options.variant, options.classes, options.every, options.supervise)
    print(
        f"{'network':<12} {'step':<24} {'seconds':>9} {'ratio':>7}   10 % - 90 %   floor {'-' if least is None else f'{least:.2f}'}"
    )
    for network in options.networks:
        runs = steps(
            network, options.variant, batch=options.batch, size=options.size, classes=options.classes,
            training=not options.eval, device=options.device, trick=options.trick, every=options.every, autocast=options.autocast,
            checkpoint=options.checkpoint, static=options.static, supervise=options.supervise,
        )  # fmt: skip
        for row in as_rows(
            alternate(runs, options.repeats, wall=options.wall),
            network=network,
            batch=options.batch,
            size=options.size,
            floor=least,
        ):
            rows.append(row)
            print(
                f"{network:<12} {row['name']:<24} {row['seconds']:9.4f} {row['ratio']:7.3f}   {row['low']:.3f} - {row['high']:.3f}"
            )
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
