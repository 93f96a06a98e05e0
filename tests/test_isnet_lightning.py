"""The LightningModule takes the steps that isnet's own loop takes, and its checkpoints hold all that is needed."""

import copy
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from run_files import SIDE, squares
from settings import train_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isnet import ISNet, ISNetLoss
from isnet.factories import FactoryError
from isnet.lightning import EpochOrder, ISNetDataModule, ISNetModule, MeasureRanges, WarmUp
from isnet.training import fit
from isnet.training.ranges import tune

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about data loader processes, and a checkpoint within the folder of another
        yield


def data(count: int = 12) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, 1, 8, 8)
    masks[..., 2:6, 2:6] = 1
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3, masks)


def model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4, 3),
    )
    return nn.Sequential(*layers)


def loader(images: Any = None, size: int = 4, **options: Any) -> DataLoader[Any]:
    images = images or data()
    return DataLoader(images, size, sampler=EpochOrder(images), drop_last=True, **options)


def trainer(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(**{"accelerator": "cpu", "devices": 1, **QUIET, "max_epochs": 1, **options})


def assert_close(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def own_loop(start: nn.Module, variant: str = "selective", **options: Any) -> nn.Module:
    """The same training by isnet's own loop."""
    trained = copy.deepcopy(start)
    config = train_config(**{"batch_size": 4, "lr": 0.01, "epochs": 2, "clip_norm": 1.0, **options})
    network = ISNet(trained, variant, generator=torch.Generator())
    fit(network, data(), config, criterion=ISNetLoss(p=config.loss.p), progress=False)
    return trained


# ---- steps


@pytest.mark.parametrize(
    ("variant", "options", "how"),
    [
        ("selective", {}, {}),
        ("stochastic", {"heatmap_every": 2, "p": 0.4}, {}),
        ("dual", {"accumulate": 2}, {"accumulate_grad_batches": 2}),
        ("original", {"precision": "bfloat16"}, {"precision": "bf16-mixed"}),
        ("selective", {"warmup": 1, "epochs": 1, "heatmap_every": 2, "warmup_background": "swap"}, {}),
        ("selective", {"warmup": 2, "lr_after_warmup": 0.5, "accumulate": 2}, {"accumulate_grad_batches": 2}),
    ],
)
def test_same_weights_as_the_own_loop(variant: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    start = model(dropout=0.3)
    expected = own_loop(start, variant, **options)
    module = ISNetModule(
        start, isnet={"variant": variant}, loss={"p": options.get("p", 0.7)}, lr=0.01, seed=0,
        heatmap_every=options.get("heatmap_every", 1),
    )  # fmt: skip
    if "warmup" in options:
        background = options.get("warmup_background", "noise")
        how = {**how, "callbacks": [WarmUp(options["warmup"], background, options.get("lr_after_warmup", 0.3))]}
    epochs = options.get("warmup", 0) + options.get("epochs", 2)
    training = trainer(max_epochs=epochs, gradient_clip_val=1.0, **how)
    training.fit(module, loader(size=4 // options.get("accumulate", 1)), DataLoader(data(), 5))
    assert_close(start, expected)
    assert module.replaced_background is None
    wanted = {"train_loss", "train_heatmap", "val_loss", "val_accuracy", "val_background_share"}
    assert wanted <= set(training.callback_metrics)
    images: Tensor = data().tensors[0]
    assert torch.equal(module.eval()(images), start.eval()(images))


@pytest.mark.parametrize("warmup", [0, 1])
def test_measured_ranges(warmup: int, tmp_path: Path) -> None:
    start = model()
    before = copy.deepcopy(start)
    callbacks: list[Any] = [MeasureRanges(2), *([WarmUp(1)] if warmup else [])]
    module = ISNetModule(start, lr=0.01, seed=3)
    training = trainer(max_epochs=2 + warmup, gradient_clip_val=1.0, callbacks=callbacks)
    training.fit(module, loader())
    if warmup:
        fit(
            ISNet(before),
            data(),
            train_config(batch_size=4, lr=0.01, epochs=0, warmup=1, seed=3, clip_norm=1.0),
            progress=False,
        )
    network = ISNet(before, generator=torch.Generator())
    config = train_config(batch_size=4, lr=0.01 * (0.3 if warmup else 1), seed=3, clip_norm=1.0)
    expected = tune(network, data(), config, epochs=2, progress=False)
    if not warmup:  # with one, the order of the images is that of another seed
        assert module.ranges == expected
    assert module.ranges["input"].c1[0] > 0 and module.ranges.keys() == expected.keys()
    training.save_checkpoint(tmp_path / "one.ckpt")
    again = ISNetModule.load_from_checkpoint(tmp_path / "one.ckpt", model=model())
    assert again.ranges == module.ranges
    found = again.criterion._loss_of("input")
    assert (found.c1, found.c2) == (module.ranges["input"].c1, module.ranges["input"].c2)
    assert_close(again.network, module.network, 0)


SCRIPT = """
import sys, torch, lightning
from test_isnet_lightning import DataLoader, ISNetModule, MeasureRanges, WarmUp, data, loader, model, trainer
module = ISNetModule(model(), lr=0.01, seed=0)
callbacks = [WarmUp(1), MeasureRanges(1)] if sys.argv[2] == "tuned" else []
training = trainer(devices=2, strategy="ddp", max_epochs=2, gradient_clip_val=1.0, callbacks=callbacks)
training.fit(module, loader(size=2), DataLoader(data(), 5))
found = {"model": module.network.model.state_dict(), "scores": {k: float(v) for k, v in training.callback_metrics.items()}}
found["ranges"] = {name: (of.c1, of.c2) for name, of in module.ranges.items()}
torch.save(found, f"{sys.argv[1]}/{training.global_rank}.pt")
"""


@pytest.mark.parametrize("how", ["plain", pytest.param("tuned", marks=pytest.mark.slow)])
def test_in_two_processes(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), how]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["scores"]["val_background_share"] == other["scores"]["val_background_share"]
    assert one["ranges"] == other["ranges"] and len(one["ranges"]) == (how == "tuned")
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name])
    if how == "plain":
        trained = model()
        trained.load_state_dict(one["model"])
        assert_close(trained, own_loop(model(), epochs=2), 1e-6)


@pytest.mark.parametrize("folder", [False, True], ids=["loader", "folder"])
def test_interrupted_and_resumed(tmp_path: Path, folder: bool) -> None:
    """Dropout, warm-up, augmentation and the heatmap on every fourth step go on where they were."""

    class Noting(ISNetLoss):
        def forward(self, out: Any, *rest: Any) -> Any:
            taken.append(bool(out.heatmaps))
            return super().forward(out, *rest)

    results: list[tuple[list[bool], ISNetModule]] = []
    root = squares(tmp_path / "set")
    for ends in ((4,), (1, 2, 4)):
        taken: list[bool] = []
        checkpoint: Path | None = None
        for end in ends:
            options: dict[str, Any] = {"size": SIDE, "channels": 1, "augment": {"flip": 0.5}, "workers": 1}
            source: dict[str, Any] = {"datamodule": ISNetDataModule(root, batch_size=6, **options)} if folder else {}
            source = source or {"train_dataloaders": loader()}
            module = ISNetModule(model(dropout=0.3), lr=0.01, seed=5, heatmap_every=4)
            module.criterion = Noting()
            training = trainer(max_epochs=end, callbacks=[WarmUp(2, "smooth")], limit_val_batches=0)
            training.fit(module, **source, ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{len(ends)}-{end}.ckpt"
            training.save_checkpoint(checkpoint)
        results.append((taken, module))
    assert results[0][0] == results[1][0] == [False] * 6 + [False, False, False, True, False, False]
    assert_close(results[0][1], results[1][1], 0)
    assert training.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.003)


def test_schedules_go_on_below_after_the_warm_up() -> None:
    class Scheduled(ISNetModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]

        def on_train_batch_start(self, *_: Any) -> None:
            rates.append(round(self.optimizers().param_groups[0]["lr"], 9))  # type: ignore[union-attr]

    rates: list[float] = []
    trainer(max_epochs=4, callbacks=[WarmUp(1, lr_factor=0.1)]).fit(Scheduled(model(), lr=0.08), loader(size=12))
    assert rates == [0.08, 0.008, 0.004, 0.004]


def test_sanity_checks_and_validation_change_nothing() -> None:
    """With a seed of the module nothing does; without, a loader's own draw of a seed is all."""
    for seed, others in ((3, [(0, True), (2, True), (0, False)]), (None, [(0, True), (2, True)])):
        trained = []
        for sanity, validated in others:
            trained.append(model(dropout=0.5))
            torch.manual_seed(1)
            sets = [loader(), *([DataLoader(data(), 5)] if validated else [])]
            trainer(max_epochs=2, num_sanity_val_steps=sanity).fit(ISNetModule(trained[-1], lr=0.01, seed=seed), *sets)
        for other in trained[1:]:
            assert_close(trained[0], other, 0)


# ---- checkpoints and scores


def test_a_named_model_is_loaded_without_arguments(tmp_path: Path) -> None:
    given: dict[str, Any] = {"image_shape": (1, 16, 16), "num_classes": 3}
    name = "monai:DenseNet"
    given["model_args"] = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}
    module = ISNetModule(name, isnet={"variant": "dual", "input_range": (0.0, 1.0)}, loss={"p": 0.3}, lr=0.02, **given)
    training = trainer(max_steps=1, max_epochs=-1)
    images = torch.rand(4, 1, 16, 16)
    masks = torch.zeros(4, 1, 16, 16)
    masks[..., 4:9] = 1
    training.fit(module, DataLoader(TensorDataset(images, torch.arange(4) % 3, masks), 4))
    training.save_checkpoint(tmp_path / "one.ckpt")
    again = ISNetModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert (again.lr, again.criterion.p, again.network.variant) == (0.02, 0.3, "dual")
    assert torch.equal(again.eval()(images), module.eval()(images))
    assert ISNetModule.load_from_checkpoint(tmp_path / "one.ckpt", lr=0.5).lr == 0.5
    found = torch.load(tmp_path / "one.ckpt", weights_only=True)  # no code of anyone's is in it
    found["hyper_parameters"]["model"] = "os:system"
    torch.save(found, tmp_path / "evil.ckpt")
    with pytest.raises(FactoryError, match="'os:system', which is no part of"):
        ISNetModule.load_from_checkpoint(tmp_path / "evil.ckpt")


def test_a_module_is_given_again(tmp_path: Path) -> None:
    module = ISNetModule(model(), loss={"p": 0.2, "d": 0.5})
    training = trainer()
    training.fit(module, loader())
    training.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, model=\.\.\.\)"):
        ISNetModule.load_from_checkpoint(tmp_path / "one.ckpt")
    again = ISNetModule.load_from_checkpoint(tmp_path / "one.ckpt", model=model())
    assert (again.criterion.p, again.hparams["loss"]) == (0.2, {"p": 0.2, "d": 0.5})
    assert_close(again.network, module.network, 0)


def test_scores_and_predictions() -> None:
    module, images = ISNetModule(model(), explained_images=7), data()
    images.tensors[2][:3] = 1  # without a mask
    training = trainer()
    (found,) = training.test(module, DataLoader(images, 5), verbose=False)
    logits, heatmap = module.explain(images.tensors[0][3:7])
    assert found["test_accuracy"] == pytest.approx(
        (module(images.tensors[0]).argmax(1) == images.tensors[1]).float().mean()
    )
    masks = images.tensors[2][3:7]
    shares = (heatmap.abs() * (1 - masks)).sum((1, 2, 3)) / heatmap.abs().sum((1, 2, 3))
    assert found["test_background_share"] == pytest.approx(shares.mean().item(), rel=1e-5)
    several = training.test(module, [DataLoader(images, 5), DataLoader(data(), 4)], verbose=False)
    names = {name for part in several for name in part if "background" in name}
    assert names == {f"test_background_share/dataloader_idx_{number}" for number in range(2)}
    for batches in (DataLoader(images, 4), DataLoader(images.tensors[0], 4)):  # type: ignore[arg-type]
        parts = training.predict(module, batches)
        assert len(parts) == 3 and torch.equal(torch.cat([part["heatmap"] for part in parts])[3:7], heatmap)
        torch.testing.assert_close(torch.cat([part["logits"] for part in parts])[3:7], logits)
    module.explained_images = 0
    assert "test_background_share" not in training.test(module, DataLoader(images, 5), verbose=False)[0]


def test_no_masks_and_several_labels() -> None:
    images, labels, masks = data().tensors
    several = TensorDataset(images, nn.functional.one_hot(labels, 3).float(), masks)
    training, module = trainer(), ISNetModule(model())
    training.fit(module, loader(several), DataLoader(TensorDataset(images, several.tensors[1], 0 * masks), 6))
    assert "val_background_share" not in training.callback_metrics
    assert math.isfinite(training.callback_metrics["val_loss"])


# ---- data


class Told(TensorDataset):
    """Says of each item in which epoch it was asked for."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        seen.append(self.epoch)
        return super().__getitem__(index)


seen: list[int] = []


def test_the_training_set_is_told_the_epoch() -> None:
    trainer(max_epochs=3).fit(ISNetModule(model()), DataLoader(Told(*data().tensors), batch_size=6))
    assert seen == 12 * [0] + 12 * [1] + 12 * [2]


def test_faulty_settings(tmp_path: Path) -> None:
    for make, text in (
        (lambda: ISNetModule(model(), lr=0.1, heatmap_every=0), r"heatmap_every >= 1 .* got 0\.1, 0"),
        (lambda: ISNetModule("monai:DenseNet121"), "needs image_shape"),
        (lambda: ISNetModule(model(), loss={"p": 2}), "p must be"),
        (lambda: ISNetModule(), "model: expected"),
        (lambda: WarmUp(0), "epochs >= 1"),
        (lambda: WarmUp(1, "fog"), "got 1, 'fog'"),  # type: ignore[arg-type]
        (lambda: MeasureRanges(0), "expected >= 1, got 0"),
        (lambda: ISNetDataModule(tmp_path, colour=3), None),
    ):
        with pytest.raises(ValueError if text else (ValueError, TypeError), match=text):
            make()
    with pytest.raises(TypeError, match="got an ISNet"):
        ISNetModule(ISNet(model()))
    with pytest.raises(ValueError, match="nothing to measure"):
        trainer(callbacks=[MeasureRanges()]).fit(ISNetModule(model(), loss={"c1": 1.0, "c2": 2.0}), loader())
    with pytest.raises(ValueError, match="expected one DataLoader"):
        trainer(callbacks=[MeasureRanges()]).fit(ISNetModule(model()), [data()[:4]])
