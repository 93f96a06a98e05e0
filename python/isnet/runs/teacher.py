"""The teacher of a run: another run, whose network is asked for heatmaps."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from isnet.config import ImagesConfig, RunConfig
from isnet.runs.folder import load_run


def load_teacher(config: RunConfig, trust: str | Collection[str] = ()) -> nn.Module | None:
    """The teacher that a run names, on the CPU; None without one.

    Args:
        config: Of the run, with the names of its classes.
        trust: Code of the user's that the teacher's settings may name; what the run itself names is trusted, too.

    Raises:
        FileNotFoundError: no such run.
        FactoryError: its settings name code that is not trusted.
        ValueError: a run that cannot be read, of other classes, or of other images than this one.
    """
    distill = config.distill
    if distill.teacher is None:
        return None
    given = (trust,) if isinstance(trust, str) else tuple(trust)
    try:
        teacher = load_run(distill.teacher, trust=(*given, *config.named_code.values()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--teacher: {error}") from error
    ours, theirs = config.data, teacher.config.data
    if tuple(theirs.classes) != tuple(ours.classes):
        raise ValueError(
            f"teacher: {distill.teacher} knows the classes {', '.join(theirs.classes)}; expected those of the run, "
            f"{', '.join(ours.classes)}"
        )
    if distill.view_code is None:
        differences = [
            f"{name} {old} there, {new} here"
            for name, old, new in (
                ("size", theirs.image_shape, ours.image_shape),
                ("range of the pixels", theirs.pixel_range, ours.pixel_range),
                ("resize", *(data.resize if isinstance(data, ImagesConfig) else None for data in (theirs, ours))),
            )
            if old != new
        ]
        if differences:
            raise ValueError(
                f"teacher: {distill.teacher} was trained on other images ({'; '.join(differences)}); set them alike, or say how it gets "
                "its images (--view-code)"
            )
    return teacher.model
