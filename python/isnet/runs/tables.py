"""Tables and sentences on the scores of runs: what evaluate, compare and the report say, in one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isnet.config import RunConfig
from isnet.data.names import title_of_test
from isnet.runs.build import used_ranges
from isnet.runs.evaluate import BACKGROUND, CHANGED, current_evaluation
from isnet.runs.folder import Run
from isnet.scoring.cautions import KINDS
from isnet.scoring.scores import SCORES

_SHOWN_CLASSES = 12  # in a printed confusion matrix
_SHOWN_SUBGROUPS = 24
_WORST = "accuracy of the worst subgroup"
_AVERAGE = "average, weighted by training images"

HEADLINE = ("auc", "balanced_accuracy", BACKGROUND, CHANGED)  # what decides
_PERCENT = (BACKGROUND, CHANGED)
_OF_IMAGES = {BACKGROUND: "relevance in the background", CHANGED: "answers changed by swapped backgrounds"}


def titles() -> dict[str, str]:
    """What tables call each score, by its name in evaluation.json, in their order: the headline first."""
    known = {**_OF_IMAGES, **{name: score.title for name, score in SCORES.items()}}
    return {name: known[name] for name in dict.fromkeys([*HEADLINE, *known])}


class Row(NamedTuple):
    """The scores of one run.

    Attributes:
        title: Of the run.
        accuracy: Test -> score, in percent.
        background_attention: Test -> score, in percent, without tests for which it is undefined.
        evaluation: All of them, as :func:`isnet.runs.evaluate.evaluate_run` returns them.
    """

    title: str
    accuracy: dict[str, float]
    background_attention: dict[str, float]
    evaluation: Mapping[str, Any]

    @property
    def scores(self) -> Mapping[str, Any]:
        """Test -> source -> score."""
        return self.evaluation["scores"]

    @property
    def masks(self) -> Mapping[str, Mapping[str, int]]:
        """Test -> how many images have masks."""
        return self.evaluation["masks"]


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per run, from its stored scores; scores it first if there are none, or those of other weights."""
    rows = []
    for title, run in titled(runs).items():
        found = current_evaluation(run)
        accuracy, attention = (
            {name: 100 * value for name, value in found[kind].items()} for kind in ("accuracy", "background_attention")
        )
        rows.append(Row(title, accuracy, attention, found))
    return rows


def titled(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by title; those that share one are distinguished by their folders."""
    titles = [run.config.title for run in runs]
    return {
        title if titles.count(title) == 1 else f"{title} ({run.home})": run
        for title, run in zip(titles, runs, strict=True)
    }


def all_tests(rows: Sequence[Row]) -> list[str]:
    """Names of the tests that any of the runs has."""
    return list(dict.fromkeys(test for row in rows for test in row.accuracy))


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """What must be read before the scores, a sentence each: of the choice of the epoch, then of the tests, the gravest first."""
    found: list[tuple[int, str]] = []
    for row in rows:
        prefix = f"{row.title}, " if len(rows) > 1 else ""
        kept = row.evaluation.get("kept") or {}
        if kept.get("warning"):
            found.append((-1, f"{row.title}: {kept['warning']}"))
        for test, cautions in row.evaluation["warnings"].items():
            found += [
                (KINDS.index(caution["kind"]), f"{prefix}{title_of_test(test)}: {caution['text']}")
                for caution in cautions
            ]
    return [text for _, text in sorted(found, key=lambda one: one[0])]


def headline(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The scores that decide, per network and test, as texts: ``{"network", "test", title: text}``."""
    several = any(worst_subgroup(row, test) for row in rows for test in row.scores)
    return [
        {
            "network": row.title,
            "test": test,
            **{titles()[key]: score_text(key, scores[""].get(key)) for key in HEADLINE},
            **({_WORST: _worst_text(worst_subgroup(row, test))} if several else {}),
        }
        for row in rows
        for test, scores in row.scores.items()
    ]


def finding(row: Row, test: str) -> str:
    """The headline of a run on a test as a sentence."""
    parts = [
        f"{titles()[key]} {score_text(key, found)}" for key, found in _known(row, test, ("auc", "balanced_accuracy"))
    ]
    told = f"{row.title}, {title_of_test(test)}: {' and '.join(parts) or 'AUC not defined'}"
    shares = {key: score_text(key, found) for key, found in _known(row, test, _PERCENT)}
    if BACKGROUND in shares:
        told += f"; {shares[BACKGROUND]} of the relevance lies in the background"
    if CHANGED in shares:
        told += f"; {shares[CHANGED]} of the answers change with swapped backgrounds"
    worst = worst_subgroup(row, test)
    if worst:
        told += f"; worst subgroup: {_worst_text(worst)}"
    return told + "."


def worst_subgroup(row: Row, test: str) -> Mapping[str, Any] | None:
    """The entry of the worst subgroup of a test (:func:`isnet.scoring.subgroups.subgroup_scores`), if there are several sources."""
    return row.evaluation.get("subgroups", {}).get(test, {}).get("worst")


def _worst_text(worst: Mapping[str, Any] | None) -> str:
    return "-" if worst is None else f"{score_text('accuracy', worst['accuracy'])}, “{worst['subgroup']}”"


def subgroup_rows(row: Row, test: str) -> list[dict[str, str]]:
    """Accuracy of a run by subgroup, the worst first, as texts; [] of a test of one source. The last row is the average."""
    found = row.evaluation.get("subgroups", {}).get(test)
    if not found:
        return []
    rows = [
        {
            "class, source": one["subgroup"],
            "images": str(one["images"]),
            "training images": "-" if one["trained_on"] is None else str(one["trained_on"]),
            "accuracy": score_text("accuracy", one["accuracy"]),
        }
        for one in sorted(found["all"], key=lambda one: one["accuracy"]["value"])[:_SHOWN_SUBGROUPS]
    ]
    average = score_text("accuracy", {"value": found["average"], "low": None, "high": None})
    return [*rows, {"class, source": _AVERAGE, "images": "", "training images": "", "accuracy": average}]


def _known(row: Row, test: str, keys: Sequence[str]) -> list[tuple[str, Any]]:
    found = row.scores[test][""]
    return [(key, found[key]) for key in keys if found.get(key) and found[key]["value"] is not None]


def score_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Every score per network, test and source, as texts: ``{"network", "test", "source", title: text}``."""
    several = any(len(sources) > 1 for row in rows for sources in row.scores.values())
    return [
        {
            "network": row.title,
            "test": test,
            **({"source": source or "all"} if several else {}),
            **{title: score_text(key, found.get(key)) for key, title in titles().items()},
        }
        for row in rows
        for test, sources in row.scores.items()
        for source, found in sources.items()
    ]


def sensitivity_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Bias sensitivity and blind spot, where they were computed: ``{"network", "test", "background", ...}``."""
    return [
        {
            "network": row.title,
            "test": test,
            "background": change,
            "accuracy before": f"{100 * found['accuracy']:.1f} %",
            "accuracy after": f"{100 * found['accuracy_after']:.1f} %",
            "answers changed": f"{100 * found['changed']:.1f} %",
            "probabilities moved": f"{100 * found['blind_spot']['distance']:.1f} %",
            "blind spot": f"{100 * found['blind_spot']['score']:.1f} %",
        }
        for row in rows
        for test, changes in row.evaluation.get("sensitivity", {}).items()
        for change, found in changes.items()
    ]


def class_rows(row: Row, test: str) -> list[dict[str, str]]:
    """Per class, or label, of a run on a test: images, AUC, recall, specificity and precision, as texts."""
    return [
        {
            "class": found["class"],
            "images": str(found["images"]),
            **{
                title: "-" if found[key] is None else f"{found[key]:.3f}"
                for key, title in (
                    ("auc", "AUC"),
                    ("recall", "recall"),
                    ("specificity", "specificity"),
                    ("precision", "precision"),
                )
            },
        }
        for found in row.evaluation["classes"][test]
    ]


def confusion_rows(row: Row, test: str) -> list[dict[str, str]] | None:
    """The confusion matrix of a run on a test; None for labels, which :func:`class_rows` tell all of, and for very many classes."""
    names = [found["class"] for found in row.evaluation["classes"][test]]
    matrix = row.evaluation["confusion"].get(test)
    if matrix is None or (matrix and isinstance(matrix[0][0], list)):
        return None
    first = "true class"
    while first in names:  # a class may be called so
        first = f"({first})"
    return [
        {first: name, **{other: str(count) for other, count in zip(names, counts, strict=True)}}
        for name, counts in zip(names, matrix, strict=True)
    ]


def most_confused(row: Row, test: str, count: int = 5) -> list[str]:
    """The commonest wrong answers of a run on a test, as sentences."""
    matrix = row.evaluation["confusion"].get(test)
    if matrix is None or isinstance(matrix[0][0], list):
        return []
    names = [found["class"] for found in row.evaluation["classes"][test]]
    wrong = [(n, names[i], names[j]) for i, line in enumerate(matrix) for j, n in enumerate(line) if i != j and n]
    return [f"{n} of class “{true}” answered “{said}”" for n, true, said in sorted(wrong, key=lambda w: -w[0])[:count]]


def fits_a_page(row: Row, test: str) -> bool:
    """Whether a test has few enough classes for a printed confusion matrix."""
    return len(row.evaluation["classes"][test]) <= _SHOWN_CLASSES


def mask_notes(rows: Sequence[Row]) -> list[str]:
    """One sentence on each test that has images without masks."""
    found = {}
    for row in rows:
        for test, masks in row.masks.items():
            if masks["missing"]:
                found[test] = (
                    f"{title_of_test(test)}: {masks['missing']} of {masks['images']} images have no mask, or none of use; they count for "
                    "all scores but relevance in the background, bias sensitivity and blind spot."
                )
    return list(found.values())


def network_rows(rows: Sequence[Row], runs: Sequence[Run]) -> list[dict[str, str]]:
    """What each network is: variant, the epoch that was kept and why, C1 and C2 as they were used."""
    return [
        {
            "network": row.title,
            "variant": run.config.network.variant,
            "weights": (row.evaluation.get("kept") or {}).get("why", "no log says which epoch"),
            "C1 and C2": range_text(run.config, run.home),
        }
        for row, run in zip(rows, runs, strict=True)
    ]


def range_text(config: RunConfig, folder: Path) -> str:
    """C1 and C2 of the heatmap loss of a run in a folder, and where they come from."""
    if not config.is_isnet:
        return "none: no heatmap loss" if config.distill.teacher is None else "none: a teacher's heatmaps"
    ranges = used_ranges(config, folder)
    if not ranges:
        return "not measured: no ranges.json"
    origin = "measured" if config.loss.is_measured else "set"
    told = [
        f"{name + ': ' if len(ranges) > 1 else ''}{_numbers(c1)} and {_numbers(c2)}"
        for name, (c1, c2) in ranges.items()
    ]
    return f"{'; '.join(told)} ({origin})"


def _numbers(value: Any) -> str:
    values = value if isinstance(value, Sequence) else (value,)
    return " / ".join(f"{number:.4g}" for number in values)


def score_text(key: str, score: Mapping[str, float | None] | None) -> str:
    """A score with its interval, a dash where it is not defined; shares in percent."""
    if score is None or score["value"] is None:
        return "-"
    factor, form, unit = (100, ".1f", " %") if key in _PERCENT else (1, ".3f", "")
    interval = ""
    if score["low"] is not None and score["high"] is not None:
        interval = f" ({factor * score['low']:{form}} to {factor * score['high']:{form}})"
    return f"{factor * score['value']:{form}}{unit}{interval}"


def markdown(table: Sequence[Mapping[str, str]]) -> str:
    """Rows of texts as a Markdown table."""
    if not table:
        return ""
    lines = [table[0], ["---"] * len(table[0]), *(line.values() for line in table)]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def markdown_table(rows: Sequence[Row]) -> str:
    """The headline as a Markdown table."""
    return markdown(headline(rows))
