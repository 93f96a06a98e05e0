"""The model card of an export: what the network was trained on, how well it does, where it looks, and what it is not for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from isnet.config import recipe_text
from isnet.data.names import title_of_test
from isnet.export.base import Exported, ExportFormat
from isnet.runs.data import RunData
from isnet.runs.folder import Run, load_evaluation
from isnet.runs.pixels import images_config
from isnet.scoring.scores import SCORES


def model_card(run: Run, data: RunData | None, what: Exported, kind: ExportFormat, parity: str) -> str:
    """The card, as Markdown.

    Args:
        run: The run.
        data: Its data sets; None: they are not there any more.
        what: The exported network.
        kind: Its format.
        parity: How closely the export answers as the run does.
    """
    config, scores = run.config, load_evaluation(run.folder) or {}
    network, loss = config.network, config.loss
    images = "x".join(str(side) for side in config.data.image_shape)
    trained = (
        f"ISNet, variant {network.variant}, P = {loss.p:g}: its loss penalises relevance in the background"
        if config.is_isnet
        else f"student: its {config.distill.distill} are to equal those of a teacher ({plain(config.distill.teacher)})"
        if config.distill.teacher is not None
        else "standard: nothing keeps it from using the background"
    )
    parts = [
        f"# {plain(config.title)}",
        f"A classifier of images ({images}) into {_listed(what.classes)}"
        + (", each decided on its own." if config.data.multi_label else "."),
        "## Data",
        *_data(run, data),
        "## Training",
        f"Network: {plain(network.arch)}, {sum(p.numel() for p in what.model.parameters()):,} parameters. {trained}. "
        f"{config.schedule.epochs} epochs after {config.schedule.warmup} of warm-up, "
        f"{config.train.optimizer}, learning rate {config.train.lr:g}, batches of {config.train.batch_size}, seed {config.train.seed}."
        + (f" Recipe: {plain(recipe_text(config))}." if config.recipe else ""),
        "## Scores",
        *_scores(scores),
        *_subgroups(scores),
        "## Background",
        "\n".join(_background(scores)),
        "## Limits",
        "\n".join(
            [
                "- Research use; not a medical device, and not validated for any clinical decision.",
                "- The scores hold for images like those of the tests above: same devices, same kind of patients, same preprocessing. "
                "Score it on your own images before you rely on it.",
                "- It always answers with one of its classes, for images of anything, too.",
                *_small(data, what.classes),
            ]
        ),
        "## License",
        "To be filled in by the owner of the model.",
        "## How to load",
        f"`{kind.preprocessing}` states what the network takes, `{kind.code}` does it; no other package of the training is needed. "
        + parity,
        f"```python\n{kind.usage}\n```",
        f"`images` is float32 [B, {', '.join(map(str, what.example.shape[1:]))}]; the logits are [B, {len(what.classes)}], in the order "
        f"{_listed(what.classes)}. Probabilities: {'sigmoid' if config.data.multi_label else 'softmax'} of the logits.",
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: Any) -> str:
    """A text that Markdown and HTML take as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(str(text).split()))


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(plain(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _data(run: Run, data: RunData | None) -> list[str]:
    name = plain(re.split(r"[\\/]", images_config(run.config).path.rstrip("\\/"))[-1] or "the experiment's own images")
    if data is None:
        return [f"{name}, which is not there any more to be counted."]
    lines = ["| part | images | of each class |", "| --- | ---: | --- |"]
    for part, dataset in {"training": data.train, **data.validation, **data.tests}.items():
        counts = _counts(dataset, run.config.data.classes)
        told = ", ".join(f"{plain(key)} {value}" for key, value in counts.items())
        lines.append(f"| {plain(part)} | {len(dataset)} | {told} |")  # type: ignore[arg-type]
    return [f"{name}:", "\n".join(lines)]


def _counts(dataset: Any, classes: Sequence[str]) -> dict[str, int]:
    labels = getattr(dataset, "labels", None)
    if labels is None:
        return {}
    if labels.dim() == 2:
        return {name: int(count) for name, count in zip(classes, (labels > 0).sum(0), strict=True)}
    found = Counter(labels.tolist())
    return {name: found[index] for index, name in enumerate(classes)}


def _small(data: RunData | None, classes: Sequence[str], least: int = 30) -> list[str]:
    found = []
    for test, dataset in ({} if data is None else data.tests).items():
        few = [f"{plain(name)} {count}" for name, count in _counts(dataset, classes).items() if count < least]
        if few:
            found.append(
                f"- Few images of a class in the {plain(title_of_test(test))}: {', '.join(few)}. Its scores are uncertain."
            )
    return found


def _scores(evaluation: Mapping[str, Any]) -> list[str]:
    if not evaluation.get("scores"):
        return ["Not scored yet (`isnet evaluate`)."]
    lines = ["| test | source | score | value |", "| --- | --- | --- | --- |"]
    for test, sources in evaluation["scores"].items():
        for source, scores in sources.items():
            for name, score in scores.items():
                title = SCORES[name].title if name in SCORES else name.replace("_", " ")
                lines.append(f"| {plain(test)} | {plain(source or 'all')} | {plain(title)} | {_value(score)} |")
    return ["95 % intervals, by bootstrap, in parentheses.", "\n".join(lines)]


def _subgroups(evaluation: Mapping[str, Any]) -> list[str]:
    worst = {test: found["worst"] for test, found in evaluation.get("subgroups", {}).items() if found["worst"]}
    return [
        f"Worst subgroup (class and source) of the {plain(title_of_test(test))}: {plain(one['subgroup'])}, accuracy "
        f"{_value(one['accuracy'])} on {one['images']} images."
        for test, one in worst.items()
    ]


def _value(score: Mapping[str, Any] | None) -> str:
    if score is None or score.get("value") is None:
        return "not defined"
    if score.get("low") is None or score.get("high") is None:
        return f"{score['value']:.3f} (no interval)"
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _background(evaluation: Mapping[str, Any]) -> list[str]:
    found = [
        f"- {plain(title_of_test(test))}: {100 * share:.1f} % of the absolute LRP relevance lies outside of the foreground masks, "
        f"on average over {evaluation.get('masks', {}).get(test, {}).get('looked_at', '?')} images with masks."
        for test, share in evaluation.get("background_attention", {}).items()
    ]
    for test, changes in evaluation.get("sensitivity", {}).items():
        found += [
            f"- {plain(title_of_test(test))}, background {plain(change)}: accuracy {100 * of['accuracy']:.1f} % to "
            f"{100 * of['accuracy_after']:.1f} %, {100 * of['changed']:.1f} % of the answers change."
            for change, of in changes.items()
        ]
    return found or ["No figures: no test image has a foreground mask, or the run was not scored (`isnet evaluate`)."]
