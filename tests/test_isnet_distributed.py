"""Several gloo processes train the same network as one; a killed one ends the job and leaves a checkpoint to resume from."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from isnet import cli
from isnet.training.distributed import ProcessLostError, World, _losses_as_errors, speaks_first

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
import json, os, pathlib, socket, sys, traceback, torch
torch.set_num_threads(1)
from isnet import runs
from isnet.training.distributed import World, launched_world
from isnet.config import ImagesConfig, RunConfig
from isnet.runs.data import RunData
from isnet.training.validation import losses

batches, slow = int(sys.argv[1]), float(sys.argv[2])

if SYNC:  # as on GPUs: PyTorch's synchronised batch norm with kernels for the CPU, and neither it nor fit() looks at the device
    sys.path.append("TESTS")
    import sync_batch_norm
    import isnet.runs.plan
    import isnet.training.loop
    kernels = sync_batch_norm.on_cpu()
    sync_batch_norm.pass_device_check()
    isnet.training.loop.require_trainable = isnet.runs.plan.require_trainable = lambda *_: None

class Images(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(8 * batches, 1, 10, 10, generator=generator, dtype=torch.float64)
        self.labels = torch.arange(8 * batches) % 3
        self.masks = torch.zeros(8 * batches, 1, 10, 10, dtype=torch.float64)
        self.masks[..., 2:8, 2:8] = 1
        self.images[..., 0, 0] = self.labels.double()[:, None] / 2
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, i):
        if slow:
            import time
            time.sleep(slow)
        return self.images[i], self.labels[i], self.masks[i]

def build_model(config, **_):
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(6, 8, 3, bias=not "NORM"), NORM torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    ).double()

import isnet.runs.build, isnet.runs.folder, isnet.runs.train
for module in (isnet.runs.build, isnet.runs.folder, isnet.runs.train):
    module.build_model = build_model
config = RunConfig(data=ImagesConfig("not read")).replaced(
    variant="VARIANT", layers=("3",), epochs=2, warmup=1, batch_size=8, lr=1e-2, p=0.6, ema=0.9, save_every=1, log_every=2,
    sync_batch_norm=SYNC, balance="BALANCE", tune=1,
)

def work(folder):
    with launched_world("cpu") as (world, _):
        (pathlib.Path(folder) / f"pid-{world.rank}").write_text(str(os.getpid()))
        run = runs.train_run(folder, config, data=RunData(Images(), {"v": Images()}, {}), resume=True, progress=False)
        if world.is_main:
            net, criterion = runs.build_isnet(config, run.model), runs.build_criterion(config, run.folder)
            scores = losses(run.model, Images(), World(), isnet=net, criterion=criterion, p=0.6)
            (run.folder / "scores.json").write_text(json.dumps(scores))
            print("done", world.size, flush=True)

if "WORLD_SIZE" in os.environ:  # of torchrun
    work(sys.argv[3])
else:  # processes that share what this one has imported, which takes longer than to train; an optimizer imports as much again
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    for job in sys.argv[3:]:
        processes, folder = job.split(":", 1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        children = []
        for rank in range(int(processes)):
            children.append(os.fork())
            if children[-1] == 0:
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=processes)
                failed = 1
                try:
                    work(folder)
                    failed = 0
                except Exception:
                    traceback.print_exc()
                os._exit(failed)
        failed = [os.waitpid(child, 0)[1] for child in children]
        if any(failed):
            sys.exit(f"{job}: {failed}")
"""


def script(folder: Path, variant: str = "selective", **code: str) -> Path:
    text = TRAIN
    for name, value in {
        "VARIANT": variant,
        "NORM": "",
        "BALANCE": "fixed",
        "SYNC": "False",
        "TESTS": str(ROOT / "tests"),
        **code,
    }.items():
        text = text.replace(name, value)
    (folder / "train.py").write_text(text)
    return folder / "train.py"


def launch(script: Path, *runs: str, torchrun: int = 0, slow: float = 0) -> subprocess.Popen[str]:
    """One run after the other, "2:name" in two processes; or, with ``torchrun``, one, "name", in so many that it starts."""
    places = []
    for run in runs:
        processes, _, name = run.rpartition(":")
        (script.parent / name).mkdir(exist_ok=True)
        places.append(f"{processes}:{script.parent / name}" if processes else str(script.parent / name))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
    return subprocess.Popen(
        [sys.executable, *(launcher if torchrun else []), str(script), "4", str(slow), *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output[-3000:]
    return output


NORM = "torch.nn.BatchNorm2d(8),"


@pytest.mark.parametrize(
    ("variant", "processes", "code"),
    [
        ("selective", 2, {"NORM": NORM, "SYNC": "True", "BALANCE": "auto"}),
        ("selective", 4, {}),
        ("dual", 2, {"NORM": NORM, "SYNC": "True"}),
        ("stochastic", 2, {}),
    ],
    ids=["selective, batch norm, automatic P", "selective in four", "dual, batch norm", "stochastic"],
)
def test_processes_train_the_network_of_one(tmp_path: Path, variant: str, processes: int, code: dict[str, str]) -> None:
    output = finish(launch(script(tmp_path, variant, **code), "1:one", f"{processes}:many"))
    assert output.index("done 1") < output.index(f"done {processes}")
    # Batch norm divides by deviations that PyTorch sums up in another order; AdamW's first steps blow the difference up.
    tolerance = 1e-5 if code else 1e-8
    names = [sorted(path.name for path in (tmp_path / part).glob("*.safetensors")) for part in ("one", "many")]
    assert names[0] == names[1] and "last.safetensors" in names[0]
    for name in names[0]:
        one, many = (load_file(tmp_path / part / name) for part in ("one", "many"))
        assert one.keys() == many.keys() and any(key.startswith("ema.") for key in one) == (name == "last.safetensors")
        for key in one:
            torch.testing.assert_close(
                many[key], one[key], rtol=tolerance, atol=tolerance / 100, msg=lambda text, key=key: f"{key}: {text}"
            )
    logs = [
        [json.loads(line) for line in (tmp_path / part / "log.jsonl").read_text().splitlines()]
        for part in ("one", "many")
    ]
    assert len(logs[0]) == len(logs[1])
    for a, b in zip(*logs, strict=True):
        assert (a["kind"], a["epoch"]) == (b["kind"], b["epoch"])
        if a["kind"] == "step":
            assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        else:
            assert a["validation"] == pytest.approx(b["validation"], rel=tolerance)


def test_processes_score_the_network_that_is_kept(tmp_path: Path) -> None:
    """Batch norm's running statistics are each process's own in training; the scores are of those of the first, which is saved."""
    finish(launch(script(tmp_path, NORM=NORM), "2:run"))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scored = [entry for entry in log if "validation" in entry]
    kept = [entry["validation"] for entry in scored if entry.get("best")] or [entry["validation"] for entry in scored]
    expected = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {name: kept[-1][name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_scoring_begins_when_the_other_processes_have_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    @contextlib.contextmanager
    def world(device: str) -> Iterator[tuple[World, str]]:
        yield World(0, 2), device
        order.append("left")

    tests = SimpleNamespace(tests={"test": None}, dropped=())
    monkeypatch.setattr("isnet.cli.train.launched_world", world)
    monkeypatch.setattr("isnet.cli.train._prepared", lambda request, *_: (request.config, tests))
    monkeypatch.setattr("isnet.cli.train.train_run", lambda *_, **__: order.append("trained"))
    monkeypatch.setattr("isnet.cli.train.evaluate_run", lambda *_, **__: order.append("scored"))
    monkeypatch.setattr("isnet.cli.train.log_scores", lambda *_: None)
    monkeypatch.setattr("isnet.cli.train.print_scores", lambda *_: None)
    assert CliRunner().invoke(cli.app, ["train", str(tmp_path / "run"), "--data", "not read"]).exit_code == 0
    assert order == ["trained", "left", "scored"]


def test_a_killed_process_ends_the_job_and_its_checkpoint_is_taken_up(tmp_path: Path) -> None:
    train = script(tmp_path)
    job = launch(train, "killed", torchrun=2, slow=0.01)
    checkpoint = tmp_path / "killed" / "last.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert checkpoint.exists()
    os.kill(int((tmp_path / "killed" / "pid-1").read_text()), signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0 and "Signal 9 (SIGKILL)" in output
    assert "done" not in output and "ProcessLostError: " in output
    finish(launch(train, "2:killed", "2:whole"))
    whole, resumed = (load_file(tmp_path / part / "last.safetensors") for part in ("whole", "killed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_broken_connections_and_sigterm_become_one_error_and_no_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    gloo = "[/build/third_party/gloo/gloo/transport/tcp/pair.cc:1] Read error: Connection reset by peer. This might ..."
    try:
        with pytest.raises(ProcessLostError, match="SIGTERM"), _losses_as_errors():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # for the last words
        with pytest.raises(ProcessLostError, match="SIGTERM"), _losses_as_errors():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                raise RuntimeError("DataLoader worker is killed by signal: Terminated")
        with pytest.raises(ProcessLostError, match=r"\(Read error: Connection reset by peer\)$"), _losses_as_errors():
            raise RuntimeError(gloo)
        signal.signal(signal.SIGTERM, before)
        with pytest.raises(RuntimeError, match=r"^shape") as caught, _losses_as_errors():
            raise RuntimeError("shape")
        assert not isinstance(caught.value, ProcessLostError) and signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)
    assert speaks_first("x") and speaks_first("x")  # alone
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [speaks_first(text) for text in ("x", "x", "y", None)] == [True, False, True, False]
