"""Ratios of a new run beside the last accepted ones: a report, not a test.

    python -m benchmarks.step --json step.json && python -m benchmarks.compare step.json
    python -m benchmarks.compare step.json --accept      # take them as the new reference

Works on the JSON of benchmarks.step, .heatmap, .targets and .instructions. The reference is benchmarks/accepted.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).parent / "accepted.json"
# Relative drift: pairs on a shared machine vary about as much, counted instructions by a tenth of it.
NOTABLE, NOTABLE_COUNT = 0.1, 0.01
_COUNTED = "M instructions"


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Name of each measurement -> its ratio, baselines left out; and millions of instructions where they were counted."""
    found = {}
    for row in result["rows"]:
        if "millions" in row:
            found[f"{row['network']}, {row['name']}, {_COUNTED}"] = row["millions"]
            if row["ratio"] != 1:
                found[f"{row['network']}, {row['name']}, ratio of instructions"] = row["ratio"]
        elif row["ratio"] != 1:
            what = [str(row[key]) for key in ("network", "what", "name") if key in row]
            shape = [f"{key} {row[key]}" for key in ("batch", "size") if key in row]
            found[", ".join(what + shape)] = row["ratio"]
    return found


def table(accepted: dict[str, float], new: dict[str, float]) -> str:
    """Accepted and new ratios in Markdown, drifts beyond 10 % marked, of instructions those beyond 1 %."""
    lines = ["| what | accepted | now | drift |", "| --- | ---: | ---: | ---: |"]
    for what, ratio in new.items():
        before = accepted.get(what)
        drift = None if before is None else ratio / before - 1
        notable = NOTABLE_COUNT if what.endswith("instructions") else NOTABLE
        shown = "new" if drift is None else f"{100 * drift:+.1f} %{' !' if abs(drift) > notable else ''}"
        lines.append(f"| {what} | {'-' if before is None else f'{before:.3f}'} | {ratio:.3f} | {shown} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of benchmarks")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED)
    parser.add_argument("--accept", action="store_true", help="write the new ratios into the reference")
    options = parser.parse_args(arguments)
    accepted = json.loads(options.accepted.read_text()) if options.accepted.exists() else {}
    new: dict[str, float] = {}
    for path in options.results:
        new |= ratios(json.loads(path.read_text()))
    print(table(accepted, new))
    if options.accept:
        merged = accepted | {what: round(ratio, 3) for what, ratio in new.items()}
        options.accepted.write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")
    return new


if __name__ == "__main__":
    main()
