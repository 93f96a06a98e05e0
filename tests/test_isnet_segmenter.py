"""The segmenter of the experiments and of the example, and masks with known errors."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from isnet.cli import app
from isnet.data import DataError
from isnet.experiments.mask_errors import ERRORS, MaskError, altered, dice, without_masks
from isnet.experiments.segmenter import Segmenter, train_segmenter

EXAMPLE = Path(__file__).parent.parent / "examples" / "segmenter.py"


def squares(count: int, side: int = 24) -> tuple[Tensor, Tensor]:
    """Bright squares on noise, and their masks."""
    generator = torch.Generator().manual_seed(0)
    images, masks = 0.4 * torch.rand(count, 1, side, side, generator=generator), torch.zeros(count, 1, side, side)
    for row, (top, left) in enumerate(torch.randint(2, side - 12, (count, 2), generator=generator).tolist()):
        masks[row, 0, top : top + 9, left : left + 9] = 1
    return images + 0.5 * masks, masks


def test_segmenter_learns_squares_and_is_the_same_after_loading(tmp_path: Path) -> None:
    images, masks = squares(40)
    segmenter = train_segmenter(images[:32], masks[:32], steps=40, batch_size=8)
    found = (segmenter.probabilities(images[32:]) > 0.5).float()
    assert segmenter.size == (32, 32) and found.shape == masks[32:].shape
    assert dice(found, masks[32:]) > 0.8 > dice(1 - found, masks[32:])
    segmenter.save(tmp_path / "s.pt")
    again = Segmenter.load(tmp_path / "s.pt")
    wide = torch.rand(1, 40, 33)  # any size
    assert again(wide).shape == (40, 33)
    torch.testing.assert_close(again(wide), segmenter(wide), rtol=0, atol=0)
    torch.testing.assert_close(again(images[0]), segmenter.probabilities(images[:1])[0, 0], rtol=1e-5, atol=1e-6)
    same = train_segmenter(images[:32], masks[:32], steps=2, batch_size=8, seed=1).probabilities(images[:1])
    other = train_segmenter(images[:32], masks[:32], steps=2, batch_size=8, seed=2).probabilities(images[:1])
    assert not torch.equal(same, other)


def test_segmenter_refuses_what_it_cannot_learn_from(tmp_path: Path) -> None:
    images, masks = squares(3)
    for broken, text in ((masks[:, :, 1:], "got \\[3, 1, 23, 24\\]"), (torch.zeros_like(masks), "no foreground")):
        with pytest.raises(ValueError, match=text):
            train_segmenter(images, broken)
    with pytest.raises(ValueError, match="one or more"):
        train_segmenter(images[:0], masks[:0])
    with pytest.raises(FileNotFoundError, match="train a segmenter first"):
        Segmenter.load(tmp_path / "none.pt")
    for content in (b"", b"no weights"):
        (tmp_path / "s.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"s\.pt: no segmenter"):
            Segmenter.load(tmp_path / "s.pt")


def test_isnet_train_takes_the_example_for_missing_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    run = ["train", "run", "--data", "squares/manifest.csv", "--size", "32x32", "--arch", "monai:ResNet"]
    run += ["--arch-arg", "block=basic", "--arch-arg", "layers=[1,1,1,1]", "--arch-arg", "block_inplanes=[4,4,4,4]"]
    run += ["--epochs", "1", "--batch-size", "4", "--variant", "selective", "--c1", "1", "--c2", "25"]
    without = CliRunner().invoke(app, run)
    assert without.exit_code == 1 and "16 of 24 images cannot be used" in str(without.exception)
    done = CliRunner().invoke(app, [*run, "--segmenter", "mine.py:Mine"])
    assert done.exit_code == 0, done.output
    Path("segmenter.pt").unlink()
    gone = CliRunner().invoke(app, ["train", "other", *run[2:], "--segmenter", "mine.py:Mine"])
    assert isinstance(gone.exception, DataError) and "train a segmenter first" in str(gone.exception)


def test_masks_are_grown_shrunk_and_moved_by_whole_pixels() -> None:
    _, masks = squares(6)
    area = masks.flatten(1).sum(1)
    grown, shrunk = altered(masks, MaskError("grown", 2), 0), altered(masks, MaskError("shrunk", 2), 0)
    assert (grown.flatten(1).sum(1) > area).all() and grown.flatten(1).sum(1).max() == 13 * 13
    assert shrunk.flatten(1).sum(1).tolist() == [25.0] * 6 and (masks - shrunk).min() == 0
    assert (altered(masks, MaskError("shrunk", 9), 0).flatten(1).sum(1) == 1).all()  # never empty
    moved = altered(masks, MaskError("moved", 3), 0)
    # Half of a shift of (3, 3) of a square of side 9 overlaps: 36 of 81 pixels, less what leaves the image.
    inside = [row for row in range(6) if moved[row].sum() == 81]
    assert inside and all((moved[row] * masks[row]).sum() == 36 for row in inside)
    assert torch.equal(moved, altered(masks, MaskError("moved", 3), 0))
    assert not torch.equal(moved, altered(masks, MaskError("moved", 3), 1))
    assert torch.equal(altered(masks, MaskError(), 0), masks)
    twice = altered(masks, MaskError("grown", 1), 0, scale=2.0)
    assert torch.equal(twice, grown)


def test_shares_without_masks_are_nested_and_exact() -> None:
    lacks = {amount: without_masks(200, MaskError("missing", amount), 3) for amount in (0, 10, 25, 50)}
    assert [int(lack.sum()) for lack in lacks.values()] == [0, 20, 50, 100]
    assert bool((lacks[10] <= lacks[25]).all()) and bool((lacks[25] <= lacks[50]).all())
    assert int(without_masks(200, MaskError("segmenter", 10), 3).sum()) == 180
    assert not without_masks(200, ERRORS["moved by 4"], 3).any()


def test_dice_by_hand() -> None:
    a, b = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    a[0, 0, :2], b[0, 0, 1:3] = 1, 1  # half of each in common
    a[1] = 1  # nothing to agree with
    assert dice(a, b) == pytest.approx((0.5 + 0 + 1) / 3)
