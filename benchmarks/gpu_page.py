"""The figures of a GPU's first run as a page: ``python -m benchmarks.gpu_page results.json`` writes them into docs/gpu.md.

Of several files, of runs on the same card one after the other, a later one's stages replace an earlier one's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_results import Results, Row, merged

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- gpu figures: begin -->", "<!-- gpu figures: end -->"
GAIN, NETWORKS_WANTED = 0.05, 2  # what fused convolutions must save of a step, and on how many of the networks


def _rows(results: Results, **wanted: Any) -> list[Row]:
    return [row for row in results["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)), ""] if lines else []


def verdict(results: Results) -> str:
    """Whether the kernels are right on this device, in one line: what a reader must know first."""
    doctor, tests = _rows(results, what="doctor"), _rows(results, what="tests")
    if not doctor:
        stage = next((entry for entry in results["stages"] if entry["name"] == "doctor"), None)
        return f"**The kernels were not checked: doctor {_state(stage) if stage else 'was not run'}. No figure below counts.**"
    if results["device"] not in doctor[0]["devices"]:
        return f"**The kernels were not checked: doctor ran on {', '.join(doctor[0]['devices'])} alone. No figure below counts.**"
    if not doctor[0]["passed"]:
        names = sorted(
            {f"{row['kernel']} ({row['device']}, {row['dtype']})" for row in _rows(results, what="wrong kernel")}
        )
        text = f"**Doctor FAILED: {len(names)} checks, {', '.join(names[:6])}. No figure below counts for them.**"
    else:
        text = f"Doctor passed: {doctor[0]['checks']} checks on {', '.join(doctor[0]['devices'])}."
    for row in tests:
        found = f" Tests marked `gpu`: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped."
        text += f" **{found.strip()}**" if row["failed"] else found
    return text


def _state(entry: Row) -> str:
    return f"{entry['state']}{': ' + entry['reason'] if entry['reason'] else ''}"


def _environment(results: Results) -> Iterator[str]:
    for row in _rows(results, what="config"):
        where = row["gpu"] or "the processor (a dry run with tiny networks: its figures mean nothing)"
        yield (
            f"{where}; torch {row['torch']}, CUDA {row['torch_cuda'] or 'none'}, Python {row['python']}; CUDA kernels "
            f"{'for ' + row['cuda_architectures'] if row['cuda_kernels'] else 'not built'}"
            f"{', nvcc ' + row['nvcc'] if row['nvcc'] else ''}; {results['date']}."
        )
    ceilings = [f"{row['by']} {row['value']:.0f} {row['unit']}" for row in _rows(results, what="ceiling")]
    if ceilings:
        yield f"PyTorch alone reaches: {', '.join(ceilings)}."


def _figure(row: Row | None, name: str = "ratio", digits: int = 2) -> str:
    if row is None:
        return "-"
    if "error" in row:
        return row["error"][:80].replace("|", "/")
    return "-" if row.get(name) is None else f"{row[name]:.{digits}f}"


def _spread(row: Row | None) -> str:
    if row is None or "ratio" not in row:
        return _figure(row)
    return f"{row['ratio']:.2f} ({row['low']:.2f} - {row['high']:.2f})"


def _memory(row: Row, base: Row) -> str:
    if not row.get("peak_mib") or not base.get("peak_mib"):
        return ""
    return f" (memory {row['peak_mib'] / base['peak_mib']:.2f})"


def _chosen(results: Results, network: str, precision: str) -> str:
    """How many convolutions the tuner gave to the fused kernels."""
    choices = _rows(results, what="choice", network=network, precision=precision)
    fused = sum(row["path"] == "fused" for row in choices)
    refused = sum(row["fused_ms"] is None for row in choices)
    return f"{fused} of {len(choices)}{f', {refused} refused' if refused else ''}" if choices else ""


def _kernel_lines(kernels: Sequence[Row]) -> Iterator[str]:
    """One line per layer and dtype, then what failed and what is less exact than allowed."""
    for layer, dtype in dict.fromkeys((row["layer"], row["dtype"]) for row in kernels):
        rows = [row for row in kernels if (row["layer"], row["dtype"]) == (layer, dtype)]
        texts = [f"{row['op']} {1 / row['ratio']:.1f}" if "ratio" in row else f"{row['op']} -" for row in rows]
        yield f"eager over ours, {layer} {dtype}: {', '.join(texts)}"
    for row in kernels:
        if "error" in row:
            yield f"kernel {row['op']} {row['layer']} {row['dtype']}: {_figure(row)}"
        elif row["error_ratio"] > 1:
            yield f"kernel {row['op']} {row['layer']} {row['dtype']}: error {row['error_ratio']:.2g} times its bound"


def _groups(rows: Sequence[Row], *columns: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in columns), {})[row["by"]] = row
    return found


def _passes(results: Results) -> Iterator[str]:
    """Steps and heatmaps as ratios to the plain pass, with the peak memory's ratio for the recorded ones."""
    for what, base, names in (
        ("step", "plain", ("recorded", "static")),
        ("heatmap", "forward + input gradient",
         ("epsilon, recorded", "epsilon, static", "EpsilonPlus, recorded", "EpsilonPlus, static")),
    ):  # fmt: skip
        lines = []
        graphs = _groups(_rows(results, what=f"graph {what}"), "network", "precision")
        groups = {**graphs, **_groups(_rows(results, what=what), "network", "precision")}
        for (network, precision), by in groups.items():
            graphed = [graphs.get((network, precision), {}).get(name) for name in ("graph", f"{base}, graph")]
            plain, ours = by.get(base, {}), by.get(names[0], {})
            memory = "-"
            if plain.get("peak_mib") and ours.get("peak_mib"):
                memory = f"{ours['peak_mib'] / plain['peak_mib']:.2f}"
            cells = [_spread(by.get(name)) for name in names]
            lines.append([network, precision, _figure(by.get(base), "ms"), *cells, *map(_spread, graphed), memory])
        if lines:
            yield f"### {what.capitalize()}s, as ratios to {'a plain step' if what == 'step' else base}, with quartiles"
            yield from _table(
                ["network", "precision", f"{base}, ms", *names, "graph", f"{base}, graph", "peak memory"], lines
            )


def gains(results: Results) -> dict[str, dict[str, float]]:
    """Per precision and network: the share of a step that the tuner's choice saves of one with the vendor's convolutions."""
    found: dict[str, dict[str, float]] = {}
    groups = _groups(_rows(results, what="conv step"), "precision", "network")
    for (precision, network), by in groups.items():
        if "ratio" in by.get("auto", {}):
            found.setdefault(precision, {})[network] = 1 - by["auto"]["ratio"]
    return found


def decision(results: Results) -> list[str]:
    """What the rule says of fused convolutions: the default where they save at least 5 % of a step on two of the networks."""
    lines = []
    for precision, by in gains(results).items():
        enough = [name for name, gain in by.items() if gain >= GAIN]
        texts = ", ".join(f"{name} {gain:+.1%}" for name, gain in by.items())
        stays = len(enough) >= NETWORKS_WANTED
        known = stays or len(by) >= 4
        said = (
            "they stay the default"
            if stays
            else "they do not stay the default"
            if known
            else "not decided, networks are missing"
        )
        lines.append(f"{precision}: {said} (saved of a step: {texts}).")
    return lines


def _conv(results: Results) -> Iterator[str]:
    lines = []
    for what in ("conv step", "conv heatmap"):
        for (network, precision), by in _groups(_rows(results, what=what), "network", "precision").items():
            chosen = _chosen(results, network, precision) or "-"
            cells = [_spread(by.get(mode)) for mode in ("auto", "fused")]
            lines.append(
                [what.removeprefix("conv "), network, precision, _figure(by.get("vendor"), "ms"), *cells, chosen]
            )
    if lines:
        yield "### Convolutions: the tuner's choice and all fused, as ratios to the vendor's"
        yield from _table(["pass", "network", "precision", "vendor, ms", "auto", "fused", "chosen fused"], lines)
        yield f"The rule: fused convolutions stay the default if they save {GAIN:.0%} of a step on {NETWORKS_WANTED} of four networks."
        yield from (f"- {line}" for line in decision(results))


def _kernels(results: Results) -> Iterator[str]:
    columns = sorted({(row["layer"], row["dtype"]) for row in _rows(results, what="kernel")}, reverse=True)
    lines = []
    for op in dict.fromkeys(row["op"] for row in _rows(results, what="kernel")):
        cells = []
        for layer, dtype in columns:
            by = {row["by"]: row for row in _rows(results, what="kernel", op=op, layer=layer, dtype=dtype)}
            ours, eager = by.get("lrpkernels"), by.get("eager")
            if ours is None or "error" in ours:
                cells.append(_figure(ours))
                continue
            speed = f"{1 / ours['ratio']:.2f}x" if "ratio" in ours else f"eager: {_figure(eager)}"
            wrong = "" if ours["error_ratio"] <= 1 else f", **error {ours['error_ratio']:.2g} times its bound**"
            cells.append(f"{speed}, {ours['gb_per_s']:.0f} GB/s{wrong}")
        lines.append([op, *cells])
    if lines:
        yield "### Kernels: how many times faster than eager PyTorch, and bytes of arguments and results over time"
        yield from _table(["op", *(f"{layer}, {dtype}" for layer, dtype in columns)], lines)


def _others(results: Results) -> Iterator[str]:
    """Rows of peers and of compiled steps, one line each."""
    lines = []
    for what in ("peer step", "peer heatmap", "compiled step"):
        for row in _rows(results, what=what):
            name = f"{what} {row.get('composite') or ''}".strip()
            lines.append([name, row["network"], row["precision"], row["by"], _figure(row, "ms"), _spread(row)])
    if lines:
        yield "### Peers, as ratios to the first of each comparison"
        yield from _table(["what", "network", "precision", "by", "ms", "ratio"], lines)


def _profiles(results: Results) -> Iterator[str]:
    """Steps under torch.profiler: how long the GPU is busy, and with what."""
    steps = _rows(results, what="profile")
    if not steps:
        return
    yield "### Where a step's time goes: torch.profiler, one step"
    names = ("ms", "busy_ms", "kernels", "launches", "launch_ms")
    lines = [
        [row["network"], row["precision"], row["by"], *(_figure(row, name, 1 if "ms" in name else 0) for name in names)]
        for row in steps
    ]
    heads = [
        "network",
        "precision",
        "step",
        "ms without profiler",
        "GPU busy, ms",
        "kernels",
        "launch calls",
        "in them, ms",
    ]
    yield from _table(heads, lines)
    lines = [
        [row["network"], row["by"], f"`{row['kernel'][:100].replace('|', '/')}`", str(row["calls"]),
         f"{row['kernel_ms']:.2f}", f"{row['share']:.0%}"]
        for row in _rows(results, what="profile kernel")
    ]  # fmt: skip
    yield from _table(["network", "step", "kernel", "calls", "ms", "share of busy"], lines)


def page(results: Results) -> str:
    """Markdown of all figures; the first line says whether the kernels are right."""
    lines = [verdict(results), "", *_environment(results)]
    for part in (_passes, _conv, _kernels, _others, _profiles):
        lines += ["", *part(results)]
    for row in _rows(results, what="sanitizer"):
        watched = f" ({row['watched']} calls watched)" if row.get("watched") else ""
        lines.append(f"compute-sanitizer, {row['stage']}: {row['summary']}{watched}")
    lines += [f"Failed: `{row['test']}` {row['error']}" for row in _rows(results, what="failed test")]
    stages = [
        [entry["name"], _state(entry).replace("|", "/"), f"{entry['seconds']:.0f}"] for entry in results["stages"]
    ]
    lines += ["", "### Stages of the run", *_table(["stage", "state", "seconds"], stages)]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip()


def summary(results: Results) -> str:
    """The short table that ends a run: a few lines per network, at most some 8,000 characters."""
    lines = ["", "=" * 100, verdict(results).replace("*", ""), *_environment(results)]
    for entry in results["stages"]:
        lines.append(f"  {entry['name']:<10} {entry['seconds']:5.0f} s  {_state(entry)[:110]}")
    whats = (
        "step",
        "heatmap",
        "graph step",
        "graph heatmap",
        "conv step",
        "peer step",
        "peer heatmap",
        "compiled step",
    )
    for what in whats:
        for key, by in _groups(_rows(results, what=what), "network", "precision", "composite").items():
            base = next(iter(by.values()))
            rest = [f"{name} {_figure(row)[:40]}{_memory(row, base)}" for name, row in by.items() if row is not base]
            label = " ".join(str(part) for part in key if part)
            chosen = _chosen(results, key[0], key[1]) if what == "conv step" else ""
            text = f"{what:<13} {label:<24} {base['by']} {_figure(base, 'ms')[:40]} ms: {'; '.join(rest)}"
            lines.append(f"{text}{'; chosen ' + chosen if chosen else ''}")
    for row in _rows(results, what="profile"):
        figures = (
            f"{row['ms']:.1f} ms, GPU busy {row['busy_ms']:.1f} ms with {row['kernels']} kernels; "
            f"{row['launches']} launches take {row['launch_ms']:.1f} ms"
        )
        label = f"{row['network']} {row['precision']} {row['by']}"
        lines.append(f"profile       {label}: {_figure(row) if 'error' in row else figures}")
    lines += _kernel_lines(_rows(results, what="kernel", by="lrpkernels"))
    lines += [f"sanitizer {row['stage']}: {row['summary']}" for row in _rows(results, what="sanitizer")]
    lines += [f"failed test: {row['test']} {row['error'][:80]}" for row in _rows(results, what="failed test")[:12]]
    lines += [f"fused convolutions, {line}" for line in decision(results)]
    return "\n".join(line[:600] for line in lines)


def write(results: Results, path: Path = PAGE) -> None:
    """Puts the page between the marks of docs/gpu.md.

    Raises:
        ValueError: results of a dry run, or the marks are missing.
    """
    if results["device"] != "cuda":
        raise ValueError(
            f"results: expected those of a run on a GPU, got device {results['device']!r}; nothing was written"
        )
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path.name} has no {BEGIN} and {END}")
    path.write_text(f"{text[: text.index(BEGIN) + len(BEGIN)]}\n{page(results)}\n{text[text.index(END) :]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="of one run, or of several, the first one first")
    parser.add_argument("--print", action="store_true", help="print the page, write nothing")
    options = parser.parse_args(arguments)
    try:
        results = merged(*(json.loads(path.read_text()) for path in options.results))
        if options.print:
            print(page(results))
        else:
            write(results)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
