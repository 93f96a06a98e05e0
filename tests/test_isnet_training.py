"""Training loop, checkpoints and scores."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from run_files import assert_same_file
from settings import train_config
from torch import Tensor, nn

from isnet import ISNet, ISNetLoss
from isnet.config import TrainConfig
from isnet.data.backgrounds import replace_background
from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.explanation import heatmaps
from isnet.scoring.evaluation import accuracy, background_attention, background_share
from isnet.training import BEST_NAME, CHECKPOINT_NAME, fit
from isnet.training.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint, save_weights
from isnet.training.log import LOG_NAME, read_log
from isnet.training.steps import NonFiniteLossError


def blobs(count: int = 96, seed: int = 0) -> BiasedMNIST:
    """Three classes of "digits", each a bright patch at its own place, on a biased canvas of 20 x 20."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count)
    images = draw.integers(0, 60, (count, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 3] = 250
    return BiasedMNIST(images, labels, canvas=20, shift=1, num_classes=3, seed=seed)


def small_model(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, 3),
        )


def train(model: nn.Module, config: TrainConfig, variant: str | None = None, **options: Any) -> list[dict[str, Any]]:
    network: nn.Module = model
    if variant is not None:
        network = ISNet(model, variant, generator=torch.Generator())  # type: ignore[arg-type]
        options.setdefault("criterion", ISNetLoss(p=config.loss.p))
    return fit(network, options.pop("data", None) or blobs(), config, progress=False, **options)


def assert_same_model(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# ---- settings


def test_share_and_steps_of_the_heatmap_loss() -> None:
    config = train_config(epochs=4, warmup=2, p=0.8, p_ramp=2.0, heatmap_every=3)
    steps = 10  # per epoch
    assert [config.heatmap_share(step, steps) for step in (0, 19)] == [0.0, 0.0]
    assert config.heatmap_share(20, steps) == pytest.approx(0.8 / 20)
    assert config.heatmap_share(29, steps) == pytest.approx(0.4)
    assert [config.heatmap_share(step, steps) for step in (39, 59)] == [0.8, 0.8]
    assert [step for step in range(30) if config.takes_heatmap(step, steps)] == [22, 25, 28]
    assert train_config(epochs=1).heatmap_share(0, steps) == 0.7


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[
            ("epochs", -1),
            ("warmup", -1),
            ("warmup_background", "pink"),
            ("batch_size", 1),
            ("optimizer", "lion"),
            ("lr", 0.0),
            ("p", 1.5),
        ],
        *[("heatmap_every", 0), ("clip_norm", -1.0), ("lr_schedule", "linear"), ("save_every", 0), ("seed", -1)],
        *[("accumulate", 0), ("milestones", (0,)), ("gamma", 0.0), ("lr_rampup", -1.0), ("precision", "float8")],
        *[("ema", 1.0), ("monitor", "luck"), ("patience", 0), ("workers", -1), ("keep_last", -1)],
    ],
)
def test_wrong_settings_are_named(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f", got {value!r}")) as caught:
        train_config(**{setting: value})
    assert str(caught.value).startswith(f"{setting}: expected ")


# ---- the loop


def test_standard_training_learns_and_reports() -> None:
    model, data = small_model(), blobs()
    before = accuracy(model, data)
    log = train(
        model, train_config(epochs=6, batch_size=16, lr=1e-2, log_every=4), data=data, validation={"train": data}
    )
    assert before < 0.7
    assert accuracy(model, data) > 0.98
    epochs = [entry for entry in log if entry["kind"] == "epoch"]
    steps = [entry for entry in log if entry["kind"] == "step"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["accuracy"]["train"] == accuracy(model, data)
    assert [entry["step"] for entry in steps] == [4, 6, 8, 12, 16, 18, 20, 24, 28, 30, 32, 36]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(entry["heatmap"] is None and entry["p"] == 0 for entry in steps)


def test_the_log_has_every_step_once(tmp_path: Path) -> None:
    """Also where epochs are shorter than the log's intervals, and across an interruption."""
    single, sparse, resumed = (
        train_config(epochs=2, batch_size=16, log_every=every, save_every=5) for every in (1, 4, 4)
    )

    def losses(config: TrainConfig, folder: Path | None = None, **options: Any) -> list[tuple[int, float]]:
        log = train(small_model(), config, data=blobs(48), run_dir=folder, **options)
        return [(entry["step"], entry["loss"]) for entry in log if entry["kind"] == "step"]

    each = [loss for _, loss in losses(single)]
    found = losses(sparse)
    assert [step for step, _ in found] == [3, 4, 5, 6]
    assert [loss for _, loss in found] == pytest.approx([sum(each[:3]) / 3, *each[3:]])
    losses(resumed.replaced(epochs=1), tmp_path)
    assert losses(resumed, tmp_path, resume=True) == found


@pytest.mark.parametrize("variant", ["selective", "stochastic"])
def test_isnet_training_moves_relevance_into_the_foreground(variant: str) -> None:
    standard, guarded, data = small_model(), small_model(), blobs()
    config = train_config(epochs=8, batch_size=16, lr=5e-3, p=0.8)
    train(standard, config, data=data)
    train(guarded, config, variant, data=data)
    assert background_attention(guarded, data) < 0.5 * background_attention(standard, data)


def test_warmup_needs_no_heatmap_and_replaces_the_background() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_model()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.clone())
            return self.model(x)

    class Refusing(ISNetLoss):
        def __call__(self, *_: object) -> Any:
            raise AssertionError("the heatmap loss was taken during the warm-up")

    recorder, data = Recorder(), blobs()
    train(recorder, train_config(epochs=0, warmup=1, batch_size=32), "selective", data=data, criterion=Refusing())
    seen = torch.cat(recorder.seen)
    # Each image is one of the set inside its mask, and like none of them outside.
    outside = ~data.masks.bool().flatten(1)
    for image in seen.flatten(1):
        same = image == data.images.flatten(1)
        found = (same | outside).all(1)
        assert found.sum() == 1
        assert not (same & outside)[found].any()
    assert len(seen) == 96


def test_replace_background_keeps_the_foreground() -> None:
    data = blobs()
    noisy = replace_background(data.images, data.masks, torch.Generator().manual_seed(0), -1.0, 3.0)
    inside = data.masks == 1
    assert torch.equal(noisy[inside], data.images[inside])
    outside = noisy[~inside]
    assert outside.min() >= -1 and outside.max() <= 3
    spread = torch.stack([image[mask == 0].amax() for image, mask in zip(noisy, data.masks, strict=True)])
    assert spread.min() < 0 < 2 < spread.max()


class FakeTerms(ISNetLoss):
    """A heatmap loss of 2 x (mean weight of the last layer), and a record of its calls."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__(p=0.5)
        self.model, self.calls = model, 0

    def __call__(self, out: Any, labels: Tensor, masks: Tensor) -> Any:
        self.calls += 1
        heatmap = 2 * self.model[-1].weight.mean()
        return SimpleNamespace(
            classification=nn.functional.cross_entropy(out.logits, labels), heatmap=heatmap, layers={}
        )


def test_lazy_heatmap_loss_is_taken_every_kth_step_and_weighted_k() -> None:
    model = small_model()
    criterion = FakeTerms(model)
    reference = small_model()
    data, config = blobs(48), train_config(
        epochs=1, batch_size=16, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, p=0.25, heatmap_every=3,
        clip_norm=None, log_every=1,
    )  # fmt: skip
    log = train(model, config, "selective", data=data, criterion=criterion)
    assert criterion.calls == 1
    assert [entry["heatmap"] is None for entry in log if entry["kind"] == "step"] == [True, True, False]
    # The same three steps by hand: 0.75 x cross-entropy each, and 0.25 x 3 x heatmap loss in the third.
    batches: list[tuple[Tensor, Tensor]] = []
    train(small_model(), config, data=Spy(data, batches))
    for step in range(3):
        rows = batches[16 * step : 16 * step + 16]
        images, labels = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        loss = 0.75 * nn.functional.cross_entropy(reference.train()(images), labels)
        if step == 2:
            loss = loss + 0.25 * 3 * 2 * reference[-1].weight.mean()
        reference.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.1 * parameter.grad
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Spy(torch.utils.data.Dataset[Any]):
    """Passes items through and remembers them."""

    def __init__(self, data: BiasedMNIST, seen: list[Any]) -> None:
        self.data, self.seen = data, seen

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.seen.append(self.data[index])
        return self.data[index]


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(small_model(dropout=0.3), train_config(epochs=1, batch_size=32, warmup=1), "stochastic")
    assert torch.equal(before, torch.get_rng_state())


def test_seed_decides_the_result() -> None:
    results = []
    for seed in (0, 0, 1):
        model = small_model(dropout=0.3)
        torch.rand(seed + len(results))  # the global state must not matter
        train(model, train_config(epochs=1, batch_size=32, seed=seed), "stochastic")
        results.append(model)
    assert_same_model(results[0], results[1])
    assert not torch.equal(results[0][-1].weight, results[2][-1].weight)


def test_wrong_calls_are_explained() -> None:
    with pytest.raises(ValueError, match="96 images do not fill one batch of 100"):
        train(small_model(), train_config(batch_size=100))
    with pytest.raises(ValueError, match="criterion"):
        fit(ISNet(small_model(), "selective"), blobs(), train_config())
    with pytest.raises(ValueError, match="run_dir"):
        train(small_model(), train_config(), resume=True)


def test_non_finite_loss_stops_and_keeps_the_batch(tmp_path: Path) -> None:
    class Bad(ISNetLoss):
        def __call__(self, out: Any, labels: Tensor, masks: Tensor) -> Any:
            terms = super().__call__(out, labels, masks)
            return SimpleNamespace(classification=terms.classification, heatmap=terms.heatmap * math.inf, layers={})

    model = small_model()
    with pytest.raises(NonFiniteLossError, match="step 3: the loss is inf"):
        train(
            model,
            train_config(epochs=1, batch_size=16, heatmap_every=3),
            "selective",
            criterion=Bad(),
            run_dir=tmp_path,
        )
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    from safetensors.torch import load_file

    batch = load_file(tmp_path / "non-finite-batch.safetensors")
    assert {name: list(value.shape) for name, value in batch.items()} == {
        "images": [16, 1, 20, 20],
        "labels": [16],
        "masks": [16, 1, 20, 20],
    }


# ---- checkpoints and resuming


class KilledError(Exception):
    pass


class Dying(Spy):
    """Dies after a number of items, as a process may at any moment."""

    def __init__(self, data: BiasedMNIST, items: int) -> None:
        super().__init__(data, [])
        self.items = items

    def __getitem__(self, index: int) -> Any:
        if len(self.seen) == self.items:
            raise KilledError
        return super().__getitem__(index)


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", [CHECKPOINT_NAME, BEST_NAME, "epoch-0003.safetensors"])
def test_killed_between_two_checkpoints_it_keeps_the_same_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: bool
) -> None:
    """The third epoch is the best one, and the last two are kept; the run dies as it writes them."""
    config = train_config(epochs=3, batch_size=16, lr=1e-2, monitor="loss", keep_last=2)
    options: dict[str, Any] = {"data": blobs(48), "validation": {"held out": blobs(24, seed=3)}}
    expected = train(small_model(), config, run_dir=tmp_path / "whole", **options)
    assert [entry["best"] for entry in expected if entry["kind"] == "epoch"][-1]

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def writes(path: Path, *args: Any, **note: Any) -> None:
            last = path.name == name and (note["step"] if note else args[0].step) == 9
            if written or not last:
                write(path, *args, **note)
            if last:
                raise KilledError

        return writes

    with monkeypatch.context() as patch:
        for write in (save_checkpoint, save_weights):
            patch.setattr(f"isnet.training.loop.{write.__name__}", dying(write))
        with pytest.raises(KilledError):
            train(small_model(), config, run_dir=tmp_path / "killed", **options)
    train(small_model(), config, run_dir=tmp_path / "killed", resume=True, **options)
    files = [sorted(path.name for path in (tmp_path / run).glob("*.safetensors")) for run in ("whole", "killed")]
    assert files[0] == files[1] == [BEST_NAME, "epoch-0002.safetensors", "epoch-0003.safetensors", CHECKPOINT_NAME]
    for file in files[0]:
        assert_same_file(tmp_path / "whole" / file, tmp_path / "killed" / file)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("save_every", "died_at_step"), [(None, 7), (None, 12), (4, 10)])
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, optimizer: str, save_every: int | None, died_at_step: int
) -> None:
    data = blobs()
    config = train_config(
        epochs=2, warmup=1, batch_size=16, optimizer=optimizer, heatmap_every=2, log_every=2, save_every=save_every,
        lr_schedule="cosine",
    )  # fmt: skip
    whole = small_model(dropout=0.2)
    expected = train(whole, config, "stochastic", data=data, run_dir=tmp_path / "whole", validation={"train": data})

    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        train(
            small_model(dropout=0.2),
            config,
            "stochastic",
            data=Dying(data, 16 * died_at_step),
            run_dir=folder,
            validation={"train": data},
        )
    with (folder / LOG_NAME).open("a") as file:
        file.write('{"kind": "st')  # a line cut short
    resumed = small_model(seed=5, dropout=0.2)  # its own initial weights must not matter
    torch.manual_seed(99)
    log = train(resumed, config, "stochastic", data=data, run_dir=folder, resume=True, validation={"train": data})

    assert_same_model(whole, resumed)
    final = [load_checkpoint(tmp_path / name / CHECKPOINT_NAME) for name in ("whole", "killed")]
    assert final[0].optimizer is not None and final[1].optimizer is not None
    for index, state in final[0].optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(value, final[1].optimizer["state"][index][name])

    def timeless(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in entry.items() if not key.endswith("seconds")} for entry in entries]

    assert timeless(log) == timeless(expected)
    assert timeless(read_log(folder / LOG_NAME)) == timeless(expected)


def test_warmup_can_be_shared(tmp_path: Path) -> None:
    straight, branched = small_model(), small_model()
    config = train_config(epochs=1, warmup=1, batch_size=32)
    train(straight, config, "selective")
    train(small_model(), train_config(epochs=0, warmup=1, batch_size=32), run_dir=tmp_path)
    train(branched, config, "selective", run_dir=tmp_path, resume=True)
    assert_same_model(straight, branched)
    other = config.replaced(p=0.9, lr_schedule="cosine", lr_after_warmup=1.0, heatmap_every=2)
    assert not other.differences(train_config(warmup=1, batch_size=32).training_json(), past_warmup=False)
    with pytest.raises(CheckpointError, match=r"lr_after_warmup: 0.3 there, 1.0 now.* loss.p: 0.7 there, 0.9 now"):
        train(small_model(), other, "selective", run_dir=tmp_path, resume=True)


def test_resuming_under_other_settings_is_refused(tmp_path: Path) -> None:
    train(small_model(), train_config(epochs=1, batch_size=32), run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"lr: 0\.002 there, 0\.1 now"):
        train(small_model(), train_config(epochs=2, batch_size=32, lr=0.1), run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="training images: 96 there, 64 now"):
        train(small_model(), train_config(epochs=1, batch_size=32), run_dir=tmp_path, resume=True, data=blobs(64))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(small_model()[:6], train_config(epochs=2, batch_size=32), run_dir=tmp_path, resume=True)
    assert len(train(small_model(), train_config(epochs=1, batch_size=32), run_dir=tmp_path, resume=True)) == 2


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = small_model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 + 0.2)
    model(torch.rand(4, 1, 20, 20)).sum().backward()
    optimizer.step()
    saved = Checkpoint(7, model.state_dict(), optimizer.state_dict(), {"note": "ü", "values": [1, None]})
    save_checkpoint(tmp_path / "c.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert (loaded.step, loaded.settings) == (7, saved.settings)
    assert all(torch.equal(value, loaded.model[name]) for name, value in saved.model.items())
    fresh = torch.optim.AdamW(small_model().parameters())
    assert loaded.optimizer is not None
    fresh.load_state_dict(loaded.optimizer)
    assert fresh.param_groups[0]["lr"] == 0.1 + 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(FileNotFoundError, match=str(path)):
        load_checkpoint(path)
    save_checkpoint(path, Checkpoint(1, small_model().state_dict()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="expected format isnet-checkpoint"):
        load_checkpoint(path)


# ---- scores


def test_accuracy_counts_right_answers() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return self.answer.expand(len(x), 3)

    model, data = Constant().train(), blobs()
    assert accuracy(model, data, batch_size=7) == pytest.approx((data.labels == 1).double().mean().item())
    assert model.training


def test_background_share_by_hand() -> None:
    heatmap = torch.tensor([[[[1.0, -2.0], [3.0, 0.0]]], [[[0.0, 0.0], [0.0, 5.0]]]])
    mask = torch.tensor([[[[1, 0], [0, 0]]], [[[0, 0], [0, 1]]]])
    assert background_share(heatmap, mask).tolist() == pytest.approx([5 / 6, 0.0])
    assert background_share(heatmap * 0, mask).isnan().all()


def test_heatmaps_explain_the_predicted_class_by_default() -> None:
    model, data = small_model().train(), blobs(6)
    logits, heatmap = heatmaps(model, data.images)
    assert model.training and not heatmap.requires_grad
    _, chosen = heatmaps(model, data.images, target=logits.argmax(1))
    _, every = heatmaps(model, data.images, target="all")
    assert torch.equal(heatmap, chosen)
    assert list(every.shape) == [6, 3, 1, 20, 20]
    torch.testing.assert_close(every[torch.arange(6), logits.argmax(1)], heatmap)
