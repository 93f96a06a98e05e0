"""The measuring parts of a GPU's first run, each a process of its own: ``python -m benchmarks.gpu_stages NAME --rows FILE``.

Every row is written as soon as it is known. benchmarks/gpu_first_run.sh runs them all, within a time limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import isnet
from benchmarks.gpu_cases import (
    Case,
    gradient_run,
    graph_heatmap,
    graph_step,
    heatmap_run,
    heatmap_runs,
    isnet_step,
    make_case,
    plain_step,
    step_runs,
    with_tuner,
)
from benchmarks.gpu_profile import profiles
from benchmarks.gpu_timing import captured, first_line, measure, precision, synchronize
from benchmarks.gradient_trick import autograd_heatmap, gradient_trick_step, modified_relus
from benchmarks.kernel_inputs import Layer, arguments_of, eager
from benchmarks.peer_steps import step_of
from benchmarks.peers import captum_heatmap, zennit_heatmap
from lrpkernels import show_config
from lrpkernels.functional.tuner import Tuner, describe
from lrpkernels.testing import CONV_OPS, CPU_OPS, OPS, accuracies, samples

Row = dict[str, Any]
Stage = Callable[[str, bool], Iterator[Row]]
CONV_NETWORKS = ("resnet50", "densenet121", "vgg16", "resnet18")


def _measured(case: Case, runs: dict[str, Any], tiny: bool, **columns: Any) -> Iterator[Row]:
    for row in measure(runs, case.device, repeats=2 if tiny else 10, warmup=2 if tiny else 3):
        yield {**columns, **row}


def _network(network: str, name: str, device: str, tiny: bool, composites: tuple[str, ...]) -> Iterator[Row]:
    """Step and heatmap of one network in one precision."""
    with precision(name):
        case = make_case(network, device, name == "bf16", tiny)
        columns = {"network": network, "precision": name}
        yield from _measured(case, step_runs(case), tiny, what="step", **columns)
        yield from _measured(case, heatmap_runs(case, composites), tiny, what="heatmap", **columns)


def config(device: str, tiny: bool) -> Iterator[Row]:
    """What was loaded, and what this GPU reaches at best: a copy and a matrix product of PyTorch's."""
    yield {
        "what": "config",
        **show_config().as_dict(),
        "device": device,
        "library": str(sys.modules["lrpkernels._C"].__file__),
    }
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        yield {
            "what": "gpu", "name": found.name, "multiprocessors": found.multi_processor_count, "gib": found.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability()), "cudnn": torch.backends.cudnn.version(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }  # fmt: skip
    count, side = (2**20, 256) if tiny else (2**30, 8192)
    planes = torch.ones(2, count, device=device)
    (row,) = measure({"copy": lambda: planes[0].copy_(planes[1])}, device, repeats=3)
    yield {"what": "ceiling", "unit": "GB/s", "value": 8e-6 * count / row["ms"], **row}
    for name in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        with precision(name):
            (row,) = measure({f"{name} product": lambda a=a, b=b: a @ b}, device, repeats=3)
        yield {"what": "ceiling", "unit": "TFLOP/s", "value": 2e-9 * side**3 / row["ms"], **row}


def main_networks(device: str, tiny: bool) -> Iterator[Row]:
    """ResNet50 and DenseNet121."""
    for network in ("resnet50", "densenet121"):
        for name in ("fp32", "bf16"):
            yield from _network(network, name, device, tiny, ("epsilon", "EpsilonPlus"))


def conv(device: str, tiny: bool) -> Iterator[Row]:
    """Steps and heatmaps with the vendor's convolutions, with ours, and with the tuner's choice, and what it chose."""
    for name in ("bf16", "fp32", "tf32"):
        for network in CONV_NETWORKS:
            with precision(name):
                case = make_case(network, device, name == "bf16", tiny)
                columns = {"network": network, "precision": name}
                tuners = {mode: Tuner(mode) for mode in ("vendor", "auto", "fused")}
                case.model.train().requires_grad_(True)
                steps = {mode: with_tuner(isnet_step(case, static=True), tuner) for mode, tuner in tuners.items()}
                yield from _measured(case, steps, tiny, what="conv step", **columns)
                steps.clear()
                maps = {mode: with_tuner(heatmap_run(case, static=True), tuner) for mode, tuner in tuners.items()}
                yield from _measured(case, maps, tiny, what="conv heatmap", **columns)
                for key, choice in tuners["auto"].choices.items():
                    text = describe(key, torch.device("cpu")).removeprefix("cpu: ")
                    found = {"path": choice.path, "fused_ms": choice.fused_ms, "vendor_ms": choice.vendor_ms}
                    yield {"what": "choice", **columns, "key": text, **found, "difference": choice.error}


def kernels(device: str, tiny: bool) -> Iterator[Row]:
    """Every op beside eager PyTorch, checked against float64 on the same input beforehand."""
    layers = [Layer(2, 8, 8)] if tiny else [Layer(32, 64, 56), Layer(32, 512, 7)]
    for layer in layers:
        for dtype in (torch.float32, torch.bfloat16):
            for op in OPS if device == "cuda" else CPU_OPS:
                shape = "x".join(map(str, (layer.batch, layer.channels, layer.side, layer.side)))
                columns = {"what": "kernel", "op": op, "layer": shape, "dtype": str(dtype).removeprefix("torch.")}
                try:
                    yield from _kernel(op, layer, dtype, device, columns)
                except Exception as error:  # the other ops are measured all the same
                    yield {**columns, "by": "lrpkernels", "error": first_line(error)}


def _kernel(op: str, layer: Layer, dtype: torch.dtype, device: str, columns: Row) -> Iterator[Row]:
    with precision("fp32"):
        arguments = arguments_of(op, layer, dtype)
        there = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
        kernel = getattr(torch.ops.lrpkernels, op)
        results = kernel(*there)
        results = results if isinstance(results, tuple) else (results,)
        error = _error(op, arguments, there, results, device)
        moved = sum(a.numel() * a.element_size() for a in (*there, *results) if isinstance(a, torch.Tensor))
        runs = {"eager": eager(op, there), "lrpkernels": lambda: kernel(*there)}
        for row in measure(runs, device, repeats=5, warmup=3, calls=1 if device == "cpu" else 10):
            rate = {"gb_per_s": 1e-6 * moved / row["ms"]} if "ms" in row else {}
            yield {**columns, **row, **rate, "error_ratio": error if row["by"] == "lrpkernels" else None}


def _error(op: str, arguments: tuple[Any, ...], there: tuple[Any, ...], results: Any, device: str) -> float:
    """The largest error relative to what the dtype allows; at most 1 if the op is right."""
    try:
        with torch.device(device):  # the formulas in float64 are long on a processor
            found = accuracies(op, there, results)
    except (RuntimeError, TypeError):
        found = accuracies(op, arguments, [result.cpu() for result in results])
    return max(accuracy.ratio for accuracy in found)


def vit(device: str, tiny: bool) -> Iterator[Row]:
    """ViT-B."""
    for name in ("fp32", "bf16"):
        yield from _network("vit_b_16", name, device, tiny, ("epsilon",))


def tf32(device: str, tiny: bool) -> Iterator[Row]:
    """The three networks with float32 products on tensor cores."""
    for network in ("resnet50", "densenet121", "vit_b_16"):
        yield from _network(network, "tf32", device, tiny, ("epsilon",))


def graphs(device: str, tiny: bool) -> Iterator[Row]:
    """Static passes captured as CUDA graphs, beside the plain ones and the static ones."""
    for name in ("bf16", "fp32", "tf32"):
        for network in ("resnet50", "densenet121", "vit_b_16"):
            columns = {"network": network, "precision": name}
            with precision(name):
                for what, graph in (("graph heatmap", graph_heatmap), ("graph step", graph_step)):
                    case = make_case(network, device, name == "bf16", tiny)
                    try:
                        replay, error = graph(case)
                    except Exception as found:  # a capture that fails is this figure's entry
                        yield {"what": what, **columns, "by": "graph", "error": first_line(found)}
                        continue
                    if what == "graph step":
                        runs = {"plain": plain_step(case), "static": isnet_step(case, static=True)}
                    else:
                        runs = {
                            "forward + input gradient": gradient_run(case),
                            "static": heatmap_run(case, static=True),
                        }
                    runs["graph"] = replay
                    base = next(iter(runs))
                    try:  # what is left of the ratio when nothing waits for the processor
                        runs[f"{base}, graph"] = captured(runs[base], device)[0]
                    except Exception as found:
                        yield {"what": what, **columns, "by": f"{base}, graph", "error": first_line(found)}
                    for row in _measured(case, runs, tiny, what=what, **columns):
                        yield {**row, "difference": error} if row["by"] == "graph" else row


def peers(device: str, tiny: bool) -> Iterator[Row]:
    """Plain autograd's step, and the heatmaps of zennit and captum where they can be imported."""
    for name in ("fp32", "bf16"):
        with precision(name):
            for network in ("resnet50", "vgg16"):
                case = make_case(network, device, name == "bf16", tiny)
                columns = {"network": network, "precision": name}
                runs = step_runs(case)
                runs["plain autograd"] = _trick(case)
                yield from _measured(case, runs, tiny, what="peer step", **columns)
    for network in ("resnet50", "vgg16"):
        for composite in ("epsilon", "EpsilonPlus"):
            with precision("fp32"), ExitStack() as stack:
                case = make_case(network, device, tiny=tiny)
                columns = {"network": network, "precision": "fp32", "composite": composite}
                runs = {"static": heatmap_run(case, composite, static=True)}
                makers = {
                    "zennit": lambda case=case, composite=composite, stack=stack: zennit_heatmap(
                        case.model, case.x, composite, stack
                    ),
                    "captum": lambda case=case, composite=composite: captum_heatmap(case.model, case.x, composite),
                }
                for peer, make in makers.items():
                    try:
                        runs[peer] = make()
                    except Exception as error:  # not installed, or the network is not for it
                        yield {"what": "peer heatmap", **columns, "by": peer, "error": first_line(error)}
                yield from _measured(case, runs, tiny, what="peer heatmap", **columns)


def _trick(case: Case) -> Callable[[], object]:
    step = gradient_trick_step(case.model, case.x, case.labels, case.masks, isnet.ISNetLoss())

    def run() -> object:
        with case.autocast():
            return step()

    return run


def compiled(device: str, tiny: bool) -> Iterator[Row]:
    """Plain autograd's step under torch.compile, and the plain step under it."""
    from torch._functorch import config as functorch

    functorch.donated_buffer = False  # else the first backward pass through a backward pass is refused
    with precision("fp32"):
        case = make_case("resnet18", device, tiny=tiny)
        net = modified_relus(case.model)
        network = torch.compile(net)
        parts = step_of(net, lambda: autograd_heatmap(network, case.x, case.labels), case.labels, case.masks)
        trick, plain = _trick(case), plain_step(case)
        for name, made, others in (
            ("plain autograd", trick, {"plain autograd, network compiled": parts}),
            ("plain", plain, {}),
            ("plain autograd", trick, {"plain autograd, compiled": torch.compile(trick)}),
        ):
            runs = {name: made, **(others or {"plain, compiled": torch.compile(made)})}
            start = time.perf_counter()
            for row in _measured(case, runs, tiny, what="compiled step", network="resnet18", precision="fp32"):
                yield {**row, "seconds": time.perf_counter() - start}


def sanitized(device: str, tiny: bool, seconds: float = 25.0) -> Iterator[Row]:
    """Calls of every op, for compute-sanitizer to watch, ops in turn until the time is over; results are not looked at."""
    begun, done, planned = time.perf_counter(), 0, 0
    forms = [(dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in ("contiguous", "offset")]
    calls = []
    for op in OPS if device == "cuda" else CPU_OPS:
        found = [list(samples(op, dtype, layout, 3))[: 8 if tiny else 36 : 7] for dtype, layout in forms]
        calls.append((op, [sample for turn in zip(*found, strict=True) for sample in turn]))  # every form early
    for turn in range(max(len(chosen) for _, chosen in calls)):
        for op, chosen in calls:
            if turn >= len(chosen):
                continue
            planned += 1
            if turn > 0 and time.perf_counter() - begun > seconds:  # once each, whatever it takes
                continue
            arguments = chosen[turn].arguments
            if op in CONV_OPS:  # every other time, and another form each time, on tensor cores
                arguments = (*arguments[:-1], (turn + turn // len(forms)) % 2 == 1)
            there = (a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
            getattr(torch.ops.lrpkernels, op)(*there)
            synchronize(device)
            done += 1
    yield {"what": "calls watched", "value": done, "of": planned}


STAGES: dict[str, Stage] = {
    "config": config, "networks": main_networks, "conv": conv, "kernels": kernels, "vit": vit, "tf32": tf32, "graphs": graphs,
    "peers": peers, "compile": compiled, "sanitized": sanitized, "profile": profiles,
}  # fmt: skip

NUMBERS = (
    "ms",
    "ratio",
    "peak_mib",
    "value",
    "difference",
    "of",
    "busy_ms",
    "kernels",
    "launches",
    "launch_ms",
    "kernel_ms",
    "calls",
)


def _show(row: Row) -> str:
    names = ("what", "op", "layer", "dtype", "network", "precision", "composite", "by", "unit", "kernel")
    text = " ".join(str(row[name]) for name in names if row.get(name) is not None)
    numbers = [f"{name} {row[name]:.4g}" for name in NUMBERS if row.get(name)]
    return f"{text}: {row['error'] if 'error' in row else ', '.join(numbers)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines are added to this file")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the logic on a processor")
    options = parser.parse_args(arguments)
    with options.rows.open("a") as file:
        for row in STAGES[options.stage](options.device, options.tiny):
            file.write(json.dumps({"stage": options.stage, **row}, default=str) + "\n")
            file.flush()
            if row["what"] != "choice":
                print(_show(row), flush=True)


if __name__ == "__main__":
    main()
