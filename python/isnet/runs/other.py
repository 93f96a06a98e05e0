"""A trained run on data that it was not made with: another hospital's images, or the same with other masks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from isnet._files import read_json
from isnet.config import ImagesConfig
from isnet.config.run import kind_of
from isnet.data import DataError, ImageTable, apply_policy, audit, read_table, with_validation
from isnet.data.sources import relabelled
from isnet.data.table import TRAIN, VALIDATION
from isnet.runs.contents import image_name
from isnet.runs.data import RunData, image_set, load_data, progress_bar
from isnet.runs.folder import DATA_NAME, Run
from isnet.runs.pixels import images_config
from isnet.runs.portions import fingerprint

OTHER_FOLDER = "evaluations"


@dataclass(frozen=True)
class OtherImages(ImagesConfig):
    """Images for a trained run, all of which are tests.

    Attributes:
        own: Whether they are those that the run was made with.
        split: The only one that counts; None: those that are neither training nor validation, or, without such, all.
    """

    split: str | None = None
    own: bool = False


def on_data(run: Run, data: Path | None, masks: Path | None, split: str | None = None) -> Run:
    """The run with other images in place of its own, and a folder within its own for their scores.

    Images of the same names as those that it was made with are its own, which have moved: they keep their splits. So are
    its own images with other masks.

    Args:
        run: The run.
        data: Folder, manifest or shards; labels are matched by the names of the classes. None: its own.
        masks: Folder of the masks.
        split: See :class:`OtherImages`.

    Raises:
        ValueError: masks or a split for a run that is not on images of files.
    """
    own = data is None or (isinstance(run.config.data, ImagesConfig) and _is_own(run, data, masks))
    if own and split is None:
        moved = {key: os.fspath(path) for key, path in (("path", data), ("masks", masks)) if path is not None}
        if moved and not isinstance(run.config.data, ImagesConfig):
            raise ValueError(f"--masks: the run is on {kind_of(run.config.data)}, whose masks are its own")
        return run._replace(config=run.config.moved(moved)) if moved else run
    config = images_config(run.config)
    path = str(data or config.path)
    if not config.path and data is None:
        raise ValueError(f"--split: the run is on {kind_of(run.config.data)}, whose tests all count")
    masks = masks if masks is not None or not own or config.masks is None else Path(config.masks)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings |= {"path": path, "masks": None if masks is None else str(masks), "split": split, "own": own}
    policy = getattr(run.config.data, "mask_policy", "error")
    other = OtherImages(**{**settings, "mask_policy": policy})
    state = (part for key, value in run.model.state_dict().items() for part in (key, repr(value.double().sum().item())))
    name = f"{Path(path).name or 'data'}-{fingerprint([str(Path(path).resolve()), str(masks), str(split), *state])[:8]}"
    return run._replace(folder=run.folder / OTHER_FOLDER / name, config=replace(run.config, data=other))


def _is_own(run: Run, data: Path, masks: Path | None) -> bool:
    """Whether the images have the names of those that the run began with."""
    note = run.folder / DATA_NAME
    if not note.exists():
        return False
    try:
        table = read_table(data, masks, getattr(run.config.data, "labels", ()))
    except ValueError:  # said where the images are read
        return False
    root = data if data.is_dir() else data.parent
    names = {image_name(record.image, root) for record in table.records}
    known = read_json(note)
    return isinstance(known, dict) and len(table.records) == len(known) and names <= known.keys()


@load_data.register(OtherImages)
def _load_other(
    config: OtherImages,
    *,
    seed: int = 0,
    need_masks: Collection[str] = (),
    check: bool = False,
    progress: bool = True,
) -> RunData:
    labels = config.labels or (config.classes if config.multi_label and Path(config.path).is_file() else ())
    if Path(config.path).suffix.lower() == ".tar":
        labels = ()
    table = read_table(config.path, config.masks, labels)
    unknown = [name for name in table.classes if name not in config.classes]
    if unknown or table.multi_label != config.multi_label:
        told = f"classes that the run does not have: {', '.join(unknown)}" if unknown else "another kind of labels"
        raise DataError(f"--data: {config.path} has {told}; the run knows {', '.join(config.classes)}")
    table = replace(table, records=tuple(relabelled(table, config.classes)), classes=config.classes)
    if config.own:
        table = with_validation(table, config.validation, seed)
    dropped: tuple[str, ...] = ()
    if config.mask_policy != "error":
        problems = audit(image_set(config, table, need_masks=()), progress_bar("checking images and masks", progress))
        dropped = tuple(problem.text for problem in problems) if config.mask_policy == "skip" else ()
        table = apply_policy(table, problems, config.mask_policy)
    tests = {name: image_set(config, part, need_masks=()) for name, part in _tests(config, table).items()}
    return RunData(next(iter(tests.values())), {}, tests, dropped)


def _tests(config: OtherImages, table: ImageTable) -> dict[str, ImageTable]:
    if config.split is not None:
        if config.split not in table.splits:
            raise DataError(
                f"--split: expected one of {', '.join(table.splits)} of {config.path}, got {config.split!r}"
            )
        return {config.split: table.part(config.split)}
    found = [name for name in table.splits if name not in (TRAIN, VALIDATION)]
    return {name: table.part(name) for name in found} or {Path(config.path).stem or "data": table}
