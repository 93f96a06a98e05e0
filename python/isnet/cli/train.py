"""isnet train, isnet tune."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

import typer

from isnet._text import say
from isnet.architectures.find import find
from isnet.cli.options import is_first, takes_options
from isnet.cli.request import Request
from isnet.cli.scores import print_scores
from isnet.config import AUTO, RunConfig, recipe_text, require_use
from isnet.config.files import to_yaml
from isnet.factories import is_known
from isnet.runs.build import best_device, device_text
from isnet.runs.contents import contents, require_same_data
from isnet.runs.data import RunData, load_run_data, settled
from isnet.runs.evaluate import evaluate_run, log_scores
from isnet.runs.folder import CONFIG_NAME, require_data, require_room, what_to_resume
from isnet.runs.plan import plan_run, plan_text
from isnet.runs.tables import range_text
from isnet.runs.train import goes_on, require_epoch, require_measurable, train_run, tune_run
from isnet.training.distributed import ProcessLostError, World, launched_world
from isnet.training.stop import STOPPING, Interrupted, on_signals

app = typer.Typer()
_NAMED = 5  # of the images that are left out


def _train(request: Request) -> None:
    """Trains a network on your own images (--data) and scores it; several processes with torchrun."""
    if _only_told(request):
        return
    folder = request.run
    if not request.resume:  # else the error names what was trained
        require_epoch(request.config)
    with _stoppable(request, "train"):
        with _joined(request) as (world, device):
            config, data = _prepared(request, world, device)
            if data is None:
                return
            trained = train_run(folder, config, data=data, device=device, trust=request.trust, **request.how)
        # Scoring may take longer than processes wait for each other: the others have left.
        if world.is_main and data.tests:
            log_scores(trained, evaluate_run(trained, data, progress=not request.quiet))
            if not request.quiet:
                print_scores([trained])
    if world.is_main and not request.quiet:
        say(f"Run: {folder}")
        say(f"Next: {_line(request, 'report')}")


def _tune(request: Request) -> None:
    """Measures C1 and C2, the natural range of relevance, in plain training; `isnet train RUN --resume` then uses them."""
    if _only_told(request):
        return
    if request.config.network.variant != AUTO:
        require_measurable(request.config)
    folder = request.run
    with _stoppable(request, "tune"), _joined(request) as (world, device):
        config, data = _prepared(request, world, device)
        if data is None:
            return
        path = tune_run(folder, config, data=data, device=device, **request.how)
    if world.is_main and not request.quiet:
        say(f"C1 and C2: {range_text(config, folder)}; {path}")
        say(f"Next: {resuming(request, 'train')}")


def _only_told(request: Request) -> bool:
    """Whether the settings were all that was wanted."""
    if request.print_config and is_first():
        say(to_yaml(request.config), nl=False)
    return request.print_config


def _prepared(request: Request, world: World, device: str) -> tuple[RunConfig, RunData | None]:
    """Settings and data of a run that is to be trained; no data if only the plan was wanted.

    What cannot be used ends the run here, not in its last minute.
    """
    config = request.config
    if request.resume and (request.run / CONFIG_NAME).exists():
        require_data(request.run, config)
    auto = config.network.variant == AUTO and config.distill.teacher is None
    find(config.network.arch)  # before the images are read
    config = settled(config)
    require_use(config, request.typed)
    require_room(request.run, config, resume=request.resume, overwrite=request.overwrite)
    if world.is_main and not request.quiet:
        say(f"Device: {device_text(device)}")
        if config.recipe:
            say(f"Recipe: {recipe_text(config)}")
        if config.distill.teacher is not None:
            say(f"Student: {config.kind}")
        if auto:
            why = (
                "training images have masks"
                if config.is_isnet
                else "no training image has the mask that an ISNet needs"
            )
            alone = config.is_isnet and not (config.schedule.warmup or config.schedule.keep_replacing)
            advice = "; without a warm-up it may follow the background: see --recipe best" if alone else ""
            say(f"Variant: {config.network.variant} ({why}){advice}")
    data = load_run_data(config, check=True, progress=world.is_main and not request.quiet)
    if data.dropped and world.is_main and not request.quiet:
        more = f"; and {len(data.dropped) - _NAMED} more" if len(data.dropped) > _NAMED else ""
        say(f"Left out (--mask-policy skip): {len(data.dropped)} images: {'; '.join(data.dropped[:_NAMED])}{more}")
    if world.is_main and not request.quiet:
        for finding in data.findings:
            if finding.severity != "note":
                say(f"Warning: {finding.line}")
    if request.dry_run:
        if request.resume:
            require_same_data(request.run, config, contents(config))
        if world.is_main:
            fresh = not goes_on(request.run, request.resume)
            plan = plan_run(config, data, world=world, device=device, pretrained=fresh, trust=request.trust)
            say(plan_text(plan, config, device, world))
        return config, None
    return config, data


@contextlib.contextmanager
def _joined(request: Request) -> Iterator[tuple[World, str]]:
    """The processes of a training; if one is lost, the others say what training can resume from."""
    try:
        with launched_world(request.device) as joined:
            yield joined
    except ProcessLostError as error:
        raise ProcessLostError(f"{error}; {what_to_resume(request.run)}") from error


@contextlib.contextmanager
def _stoppable(request: Request, command: str) -> Iterator[None]:
    """A signal that asks to stop ends the command, whatever it is at, with the line that goes on."""

    def stop(number: int) -> None:
        raise Interrupted(number)

    settings = request.run / CONFIG_NAME
    before = settings.stat().st_mtime_ns if settings.exists() else None
    try:
        with on_signals(stop, *STOPPING):
            yield
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        step = error.step if isinstance(error, Interrupted) else None
        saved = "at once" if step is None else f"after step {step}, which is saved"
        how = f"go on with: {resuming(request, command)}"
        if not settings.exists() or (not request.resume and settings.stat().st_mtime_ns == before):
            saved, how = "before the run began", "begin again with the same command"
        if is_first():
            say(f"isnet: stopped {saved} ({signal.Signals(signum).name}); {how}", err=True)
        raise SystemExit(128 + signum) from error


def resuming(request: Request, command: str) -> str:
    """The command line that goes on with a run: its settings are in its folder."""
    launcher = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "isnet"]
    elif "SLURM_STEP_ID" in os.environ:
        launcher = ["srun", *_program()]
    device = ["--device", request.device] if request.device != best_device() else []
    return _line(request, command, "--resume", *device, *(["--quiet"] if request.quiet else []), launcher=launcher)


def _program() -> list[str]:
    return ["isnet"] if os.path.basename(sys.argv[0]) == "isnet" else ["python", "-m", "isnet"]


def _line(request: Request, command: str, *options: str, launcher: Sequence[str] = ()) -> str:
    """A command line on the run, which trusts the code that it was trained with."""
    words = [*(launcher or _program()), command, str(request.run), *options]
    for name in request.config.named_code.values():
        words += [] if is_known(name) else ["--trust", name]
    return shlex.join(words)


takes_options(app, "train", _train)
takes_options(app, "tune", _tune)
