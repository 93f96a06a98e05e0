"""Options of the training loop, each against a plain training that does the same by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import assert_same_file
from safetensors.torch import load_file
from settings import train_config
from test_isnet_training import Dying, KilledError, assert_same_model, blobs, small_model, train
from torch import Tensor, nn

from isnet import ISNet, ISNetLoss
from isnet.config import TrainConfig
from isnet.data.backgrounds import replace_background
from isnet.scoring.evaluation import accuracy
from isnet.training import BEST_NAME, CHECKPOINT_NAME, fit
from isnet.training.checkpoints import CheckpointError, load_checkpoint, load_state, load_weights
from isnet.training.distributed import World
from isnet.training.log import RunLog, read_log
from isnet.training.steps import NonFiniteLossError, build_scheduler, require_trainable
from isnet.training.validation import Watch, losses


def plain_model() -> nn.Sequential:
    """Without batch norm and dropout: the batch's images do not meet."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
    )


def assert_close_models(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


# ---- schedules


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """As docs and options say: a ramp from 0, a factor after the warm-up, and a cosine or milestones over the epochs after it."""
    schedule = config.schedule
    rate, after = config.train.lr, step - schedule.warmup * steps_per_epoch
    if schedule.lr_rampup:
        rate *= min(1.0, (step + 1) / (schedule.lr_rampup * steps_per_epoch))
    if after >= 0 and schedule.warmup:
        rate *= schedule.lr_after_warmup
    if after >= 0 and schedule.lr_schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * after / (schedule.epochs * steps_per_epoch)))
    if after >= 0 and schedule.lr_schedule == "step":
        for epoch in schedule.milestones:
            rate *= schedule.gamma if after >= epoch * steps_per_epoch else 1.0
    return rate


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("ramp", [0.0, 0.5, 2.7])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_learning_rates_and_where_a_resumed_run_takes_them_up(schedule: Any, ramp: float, warmup: int) -> None:
    config = train_config(
        epochs=5, warmup=warmup, lr=0.1, lr_rampup=ramp, lr_after_warmup=0.3, lr_schedule=schedule, milestones=(2, 4), gamma=0.2
    )  # fmt: skip
    steps, weight = 7, [torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.SGD(weight, lr=config.train.lr)
    scheduler, rates = build_scheduler(optimizer, config, steps), []
    for _ in range((warmup + 5) * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([learning_rate(config, step, steps) for step in range(len(rates))], rel=1e-12)
    for step, rate in enumerate(rates):
        other = torch.optim.SGD(weight, lr=9.0)  # as if of another schedule
        build_scheduler(other, config, steps, step)
        assert other.param_groups[0]["lr"] == rate


def test_steps_are_taken_and_logged_at_their_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config(
        epochs=2, warmup=1, batch_size=32, log_every=1, lr_schedule="cosine", lr_rampup=1.5, optimizer="sgd"
    )
    taken, step = [], torch.optim.SGD.step

    def noted(optimizer: torch.optim.SGD, *args: Any) -> Any:
        taken.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    log = train(small_model(), config, "selective")
    expected = pytest.approx([learning_rate(config, step, 3) for step in range(9)], rel=1e-12)
    assert taken == expected and [entry["lr"] for entry in log if entry["kind"] == "step"] == expected


def test_p_schedule() -> None:
    config = train_config(epochs=5, warmup=1, p=0.2, p_schedule=((1, 0.5), (3, 0.9)))
    assert [config.heatmap_share(10 * epoch, 10) for epoch in range(6)] == [0, 0.2, 0.5, 0.5, 0.9, 0.9]
    assert train_config(p_schedule=["3=0.9", "1=0.5"]).loss.p_schedule == ((1, 0.5), (3, 0.9))
    for wrong in (((1, 0.5), (1, 0.6)), ((-1, 0.5),), ((1, 1.5),), ["3:0.5"]):
        with pytest.raises(ValueError, match="p_schedule: expected"):
            train_config(p_schedule=wrong)


def test_what_keeps_a_run_from_being_continued() -> None:
    config = train_config(milestones=(2,), lr_schedule="step", p_schedule=((0, 0.5),))
    assert config.differences(json.loads(json.dumps(config.training_json()))) == []
    saved = train_config().training_json()
    del saved["train"]["accumulate"]  # an option that came later counts as its default
    assert train_config().differences(saved) == []
    assert train_config(accumulate=2).differences(saved) == ["train.accumulate: 1 there, 2 now"]
    assert train_config(workers=2, tensorboard=True, keep_last=3).differences(saved) == []
    assert train_config(epochs=9).differences(saved) == []
    assert train_config(lr_after_warmup=0.5).differences(saved, past_warmup=False) == []
    assert train_config(lr_after_warmup=0.5).differences(saved) == ["schedule.lr_after_warmup: 0.3 there, 0.5 now"]
    saved["loss"]["fraction"] = 0.5
    assert train_config().differences(saved) == ["loss.fraction: 0.5 there, not an option now"]
    cosine = train_config(lr_schedule="cosine")
    assert cosine.replaced(epochs=9).differences(cosine.training_json()) == ["schedule.epochs: 8 there, 9 now"]
    with pytest.raises(ValueError, match="an older version's"):
        config.differences({"epochs": 8, "lr": 2e-3})


# ---- parts of a batch


@pytest.mark.parametrize(("variant", "warmup"), [("selective", 0), ("selective", 1), ("stochastic", 0)])
def test_accumulated_parts_equal_the_whole_batch(variant: str, warmup: int) -> None:
    models = []
    for parts in (1, 4):
        torch.manual_seed(0)
        models.append(plain_model().double())
        data = blobs(32)
        data.images, data.masks = data.images.double(), data.masks.double()
        config = train_config(epochs=1, warmup=warmup, batch_size=16, accumulate=parts, log_every=1, p=0.5)
        log = train(models[-1], config, variant, data=data)
    assert_close_models(*models, tolerance=1e-9)
    assert [entry["step"] for entry in log if entry["kind"] == "step"] == list(range(1, 3 + 2 * warmup))


@pytest.mark.parametrize("kind", ["noise", "smooth", "swap"])
def test_background_of_parts_is_the_batchs(kind: Any) -> None:
    data = blobs(12)

    def replaced(rows: slice, seed: int = 1, **place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return replace_background(data.images[rows], data.masks[rows], generator, kind=kind, **place)

    whole = replaced(slice(12))
    assert torch.equal(whole[4:8], replaced(slice(4, 8), first=4, total=12))
    assert torch.equal(whole, replaced(slice(12))) and torch.equal(whole, replaced(slice(12), seed=2)) == (
        kind == "swap"
    )
    inside = data.masks > 0
    assert torch.equal(whole[inside], data.images[inside])


def test_swapped_background_is_the_neighbours() -> None:
    """Its mean where the neighbour has foreground; the last of an odd number takes the first one's."""
    images = torch.rand(5, 2, 6, 8)
    masks = torch.zeros(5, 1, 6, 8)
    masks[:, :, 2:4, 3:6] = 1
    masks[1, :, :3] = 1
    masks[4] = 0
    found = replace_background(images, masks, torch.Generator(), kind="swap")
    hole = masks[1, 0] > 0
    mean = images[1][:, ~hole].mean(1)[:, None, None]
    expected = torch.where(masks[0] > 0, images[0], torch.where(hole, mean, images[1]))
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[4][:, masks[0, 0] == 0], images[0][:, masks[0, 0] == 0])
    masks[3] = 1
    found = replace_background(images, masks, torch.Generator(), kind="swap")
    assert torch.equal(found[3], images[3])
    whole_mean = images[3].mean((1, 2))[:, None].expand(-1, int((masks[2] == 0).sum()))
    torch.testing.assert_close(found[2][:, masks[2, 0] == 0], whole_mean)
    with pytest.raises(ValueError, match="images: backgrounds can be swapped among two or more at a time, got 1"):
        replace_background(images[:1], masks[:1], torch.Generator(), kind="swap")


def test_smooth_noise_is_smooth_and_white_noise_is_not() -> None:
    images, masks = torch.zeros(64, 1, 40, 48), torch.zeros(64, 1, 40, 48)

    def correlation(kind: Any) -> float:
        """Of horizontal neighbours, within the images: grey levels do not count."""
        noisy = replace_background(images, masks, torch.Generator().manual_seed(0), kind=kind)
        noisy = noisy - noisy.mean((1, 2, 3), keepdim=True)
        left, right = noisy[..., :-1], noisy[..., 1:]
        return float((left * right).sum() / (left.square().sum() * right.square().sum()).sqrt())

    assert abs(correlation("noise")) < 0.05 and correlation("smooth") > 0.8
    with pytest.raises(ValueError, match="kind: expected one of noise, smooth, swap, got 'pink'"):
        correlation("pink")


def test_background_noise_throughout_may_branch_from_a_warmup(tmp_path: Path) -> None:
    """After the warm-up, noise as in more of it; the learning rate, too, where nothing lowers it."""
    longer, branched = small_model(), small_model()
    warmup = train_config(epochs=0, warmup=1, batch_size=32, lr_after_warmup=1.0)
    train(longer, warmup.replaced(warmup=3))
    train(small_model(), warmup, run_dir=tmp_path)
    config = warmup.replaced(epochs=2, keep_replacing=True)
    train(branched, config, run_dir=tmp_path, resume=True)
    assert_same_model(longer, branched)
    with pytest.raises(CheckpointError, match="keep_replacing: True there, False now"):
        train(small_model(), config.replaced(keep_replacing=False), run_dir=tmp_path, resume=True)


def test_every_background_is_trained_on() -> None:
    white, *others = (small_model() for _ in range(3))
    for model, kind in zip((white, *others), ("noise", "smooth", "swap"), strict=True):
        train(model, train_config(epochs=0, warmup=1, batch_size=16, warmup_background=kind))  # type: ignore[arg-type]
    assert not any(torch.equal(white[0].weight, other[0].weight) for other in others)


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_noise_range_per_channel(kind: Any) -> None:
    images, masks = torch.full((8, 2, 8, 12), 7.0), torch.zeros(8, 1, 8, 12)
    noisy = replace_background(images, masks, torch.Generator().manual_seed(0), [0.0, -2.0], [1.0, -1.0], kind=kind)
    assert noisy[:, 0].min() >= 0 and noisy[:, 0].max() <= 1
    assert noisy[:, 1].min() >= -2 and noisy[:, 1].max() <= -1


def test_single_images_have_nothing_to_swap() -> None:
    config = train_config(warmup=1, batch_size=16, accumulate=16, warmup_background="swap")
    with pytest.raises(
        ValueError, match="batch_size: backgrounds are swapped among two or more images, got 16 among 1"
    ):
        train(small_model(), config)
    train(small_model(), config.replaced(warmup=0, epochs=1), "selective", data=blobs(16))


def test_static_calls_do_not_go_with_synchronised_batch_norm() -> None:
    config, network = train_config(sync_batch_norm=True), ISNet(small_model(), static=True)
    with pytest.raises(ValueError, match="sync_batch_norm: what processes tell each other cannot be repeated"):
        require_trainable(config, World(0, 2), 96, network, torch.device("cuda"))


def test_indivisible_batch_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch_size: 16 images cannot be shared out evenly among 1 processes, each in 3"
    ):
        train(small_model(), train_config(batch_size=16, accumulate=3))


# ---- precision


@pytest.mark.parametrize(("precision", "variant"), [("bfloat16", "selective"), ("float16", None)])
def test_half_precision_follows_float32(precision: Any, variant: str | None) -> None:
    results = []
    for chosen in ("float32", precision):
        torch.manual_seed(0)
        model = plain_model()
        config = train_config(epochs=2, batch_size=16, lr=1e-2, precision=chosen, log_every=1, p=0.5)
        log = train(model, config, variant)
        assert next(model.parameters()).dtype == torch.float32
        results.append(torch.tensor([entry["loss"] for entry in log if entry["kind"] == "step"]))
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.02)
    assert not torch.equal(results[0], results[1])


def test_isnet_in_float16_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        train(small_model(), train_config(precision="float16"), "selective")


def test_float16_overflow_skips_the_step_and_shrinks_the_scale(tmp_path: Path) -> None:
    class Steep(nn.Module):
        """A gradient that overflows float32 once it is multiplied by the loss scale of 65536."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * 1e17 * 1e17).expand(len(x), 3).float() * 3e3 + 0 * x.flatten(1)[:, :3]

    model = Steep()
    train(model, train_config(epochs=1, batch_size=32, precision="float16", save_every=1), run_dir=tmp_path)
    scaler = load_checkpoint(tmp_path / CHECKPOINT_NAME).settings["scaler"]
    assert scaler["scale"] == 65536 / 2**3
    assert torch.equal(model.weight, torch.zeros(3))


# ---- moving average


def test_moving_average_by_hand(tmp_path: Path) -> None:
    snapshots: list[Tensor] = []

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            snapshots.append(self[-1].weight.detach().clone())
            return super().forward(x)

    torch.manual_seed(0)
    model, data = Watched(*plain_model()), blobs(48)
    config = train_config(epochs=1, batch_size=16, lr=1e-2, ema=0.8)
    log = train(model, config, data=data, run_dir=tmp_path, validation={"train": data})
    after = [*snapshots[1:3], model[-1].weight.detach()]  # the weights after each of the three steps
    expected = after[0]
    for weight in after[1:]:
        expected = 0.8 * expected + 0.2 * weight
    state = load_checkpoint(tmp_path / CHECKPOINT_NAME)
    assert state.ema is not None
    torch.testing.assert_close(state.ema["4.weight"], expected)
    assert torch.equal(state.model["4.weight"], model[-1].weight)
    averaged = plain_model()
    load_state(averaged, state.ema, "")
    best, note = load_weights(tmp_path / BEST_NAME)
    assert note["averaged"] and all(torch.equal(value, state.ema[name]) for name, value in best.items())
    assert log[-1]["accuracy"]["train"] == accuracy(averaged, data)


# ---- validation, best checkpoint, early stopping


def test_watch() -> None:
    watch = Watch("loss", 2)
    assert [watch.see(score) for score in (3.0, 2.0, 2.0)] == [True, True, False]
    other = Watch("loss", 2)
    other.restore(json.loads(json.dumps(watch.state())))
    assert not other.is_over and not other.see(2.5) and other.is_over
    rising = Watch("accuracy", None)
    assert [rising.see(score) for score in (0.5, 0.4, 0.6)] == [True, False, True]
    assert not rising.is_over


def test_validation_losses_are_those_of_training() -> None:
    model, data = small_model().train(), blobs(40)
    network, criterion = ISNet(model, "selective"), ISNetLoss(p=0.6)
    found = losses(model, data, World(), isnet=network, criterion=criterion, p=0.6, batch_size=16)
    assert model.training and all(module.training for module in model.modules())
    network.train()
    model.eval()
    sums = torch.zeros(3)
    for start, stop in ((0, 16), (16, 32), (32, 40)):
        rows = slice(start, stop)
        terms = criterion(network(data.images[rows]), data.labels[rows], data.masks[rows])
        sums += (stop - start) * torch.stack([terms.total, terms.classification, terms.heatmap]).detach()
    assert [found["loss"], found["classification"], found["heatmap"]] == pytest.approx((sums / 40).tolist(), rel=1e-5)
    plain = losses(model, data, World(), p=0.0)
    assert plain["heatmap"] == 0 and plain["loss"] == plain["classification"]


def test_own_classification_loss_counts_in_every_step_and_in_validation() -> None:
    """Ten times the cross-entropy: the same network before the first step has ten times the loss, with and without a heatmap."""

    def ten(logits: Tensor, labels: Tensor) -> Tensor:
        return 10 * nn.functional.cross_entropy(logits, labels)

    data, config = (
        blobs(32),
        train_config(epochs=1, batch_size=16, lr=1e-12, heatmap_every=2, log_every=1, monitor="loss"),
    )
    logs = [
        train(small_model(), config, "selective", data=data, validation={"val": data}, **options)
        for options in ({}, {"classification_loss": ten})
    ]
    for one, other in zip(*logs, strict=True):
        one, other = (entry.get("validation", entry) for entry in (one, other))
        assert other["classification"] == pytest.approx(10 * one["classification"], rel=1e-4)
        share, heatmap = (0.7, other["heatmap"] or 0) if "p" not in other else (other["p"], 2 * (other["heatmap"] or 0))
        assert other["loss"] == pytest.approx((1 - share) * other["classification"] + share * heatmap, rel=1e-5)
    assert [entry["heatmap"] is None for entry in logs[1][:2]] == [True, False]


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    data, held_out = blobs(48), blobs(24, seed=3)
    # A quarter of the held-out labels are wrong: once the network is sure of itself, its loss rises there.
    held_out.labels[::4] = (held_out.labels[::4] + 1) % 3
    config = train_config(epochs=30, batch_size=16, lr=1e-2, monitor="loss", patience=3)
    folder = tmp_path / "run"
    log = train(small_model(), config, "selective", data=data, validation={"val": held_out}, run_dir=folder)
    epochs = [entry for entry in log if entry["kind"] == "epoch"]
    assert len(epochs) < 30
    scores = [math.inf if entry["score"] is None else entry["validation"]["loss"] for entry in epochs]
    best = scores.index(min(scores))
    assert len(epochs) == best + 1 + 3
    assert load_weights(folder / BEST_NAME)[1]["step"] == epochs[best]["step"]
    assert [entry["best"] for entry in epochs][best:] == [True, False, False, False]
    # Taken up again, it stays stopped.
    again = train(
        small_model(), config, "selective", data=data, validation={"val": held_out}, run_dir=folder, resume=True
    )
    assert again == log


def test_monitor_needs_validation() -> None:
    with pytest.raises(ValueError, match="monitor: needs validation images"):
        train(small_model(), train_config(monitor="loss"))
    with pytest.raises(ValueError, match="patience: needs monitor"):
        train_config(patience=2)


def test_last_checkpoints_are_kept(tmp_path: Path) -> None:
    train(small_model(), train_config(epochs=4, batch_size=48, keep_last=2), run_dir=tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == [BEST_NAME, "epoch-0003.safetensors", "epoch-0004.safetensors", CHECKPOINT_NAME]
    assert load_checkpoint(tmp_path / kept[1]).step == 6


# ---- everything at once, killed and resumed


@pytest.mark.parametrize(
    ("variant", "precision", "died_at"),
    [("stochastic", "bfloat16", 5), ("stochastic", "bfloat16", 9), ("balanced", "float32", 7), (None, "float16", 13)],
)
def test_resumed_run_with_every_option_equals_an_uninterrupted_one(
    tmp_path: Path, variant: str | None, precision: Any, died_at: int
) -> None:
    data, held_out = blobs(64), blobs(24, seed=3)
    config = train_config(
        epochs=3, warmup=1, batch_size=16, accumulate=2, precision=precision, ema=0.9, monitor="loss", patience=9,
        keep_last=2, save_every=3, log_every=1, lr_rampup=1.0, p_schedule=((1, 0.4),), deterministic=True, lr=0.1,
    )  # fmt: skip
    if variant == "balanced":
        variant = "selective"
        config = config.replaced(balance="auto", p_schedule=(), heatmap_every=2)
    options: dict[str, Any] = {"validation": {"val": held_out}}
    whole = train(small_model(dropout=0.2), config, variant, data=data, run_dir=tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        train(small_model(dropout=0.2), config, variant, data=Dying(data, 16 * died_at), run_dir=folder, **options)
    resumed = train(
        small_model(seed=7, dropout=0.2), config, variant, data=data, run_dir=folder, resume=True, **options
    )
    timeless = {"seconds": 0, "cpu_seconds": 0}
    assert [{**entry, **timeless} for entry in whole] == [{**entry, **timeless} for entry in resumed]
    for name in (CHECKPOINT_NAME, BEST_NAME, "epoch-0003.safetensors"):
        assert_same_file(tmp_path / "whole" / name, folder / name)
    assert not torch.are_deterministic_algorithms_enabled()


# ---- logs


def test_log_as_table(tmp_path: Path) -> None:
    data = blobs(48)
    log = train(
        small_model(), train_config(epochs=1, batch_size=16, log_every=2), "selective", data=data, run_dir=tmp_path,
        validation={"train": data},
    )  # fmt: skip
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(log) == 3
    assert float(rows[0]["layers.input.background"]) == log[0]["layers"]["input"]["background"]
    assert set(log[0]["layers"]["input"]) == {"background", "foreground", "foreground_relevance"}
    assert float(rows[2]["accuracy.train"]) == log[2]["accuracy"]["train"]
    assert rows[0]["accuracy.train"] == ""


def test_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = train_config(epochs=1, batch_size=16, log_every=2, tensorboard=True)
    log = train(small_model(), config, data=blobs(64), run_dir=tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = events.Scalars("step/loss")
    assert [event.step for event in written] == [2, 4]
    assert [event.value for event in written] == pytest.approx([entry["loss"] for entry in log[:2]])


def test_log_of_a_future_that_did_not_happen_is_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.start()
    for step in (1, 2, 3):
        log.add({"kind": "step", "step": step, "loss": 0.5})
    other = RunLog(tmp_path)
    other.restore(2)
    other.start()
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl")] == [1, 2]


# ---- several labels per image


def test_multi_label_training_from_end_to_end() -> None:
    data = blobs(48)
    classes = data.labels
    data.labels = torch.stack([classes == 0, classes >= 1, classes == 2], 1).float()
    model, criterion = small_model(), ISNetLoss(p=0.5)
    before = accuracy(model, data)
    log = fit(
        ISNet(model, "original"), data, train_config(epochs=12, batch_size=16, lr=2e-2, p=0.3), criterion=criterion,
        validation={"train": data}, progress=False,
    )  # fmt: skip
    assert accuracy(model, data) == log[-1]["accuracy"]["train"] > max(0.9, before)


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_non_finite_gradient_stops(tmp_path: Path, clip_norm: float | None) -> None:
    class Root(nn.Module):
        """Finite at zero, with an infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.sqrt().expand(len(x), 3)

    with pytest.raises(NonFiniteLossError, match=r"step 1: the gradient norm is (inf|nan)\. The batch is in"):
        train(Root(), train_config(batch_size=16, accumulate=2, clip_norm=clip_norm), run_dir=tmp_path)
    # Any of the parts may have been the cause.
    assert len(load_file(tmp_path / "non-finite-batch.safetensors")["images"]) == 16


def test_models_of_the_same_seed_are_the_same() -> None:
    one, other = small_model(), small_model()
    for model in (one, other):
        train(model, train_config(epochs=1, batch_size=32, workers=0, deterministic=True))
    assert_same_model(one, other)
