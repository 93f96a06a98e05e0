"""Scores, intervals, paired tests and bias sensitivity."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet import ISNet
from isnet.scoring.evaluation import background_attention, background_share, spread_rows
from isnet.scoring.intervals import Score, as_json, classification_scores
from isnet.scoring.paired import compare, mcnemar, paired_difference, sign_flips
from isnet.scoring.scores import macro_auc
from isnet.scoring.sensitivity import OtherBackground, bias_sensitivity, blind_spot


def two_classes(n: int = 400, gap: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    scores = torch.randn(n, generator=generator) + gap * labels
    return torch.stack([-scores + gap / 2, scores - gap / 2], 1), labels


def test_auc_is_the_rank_statistic() -> None:
    logits, labels = two_classes()
    positive, negative = logits[labels == 1, 1].numpy(), logits[labels == 0, 1].numpy()
    expected = stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert classification_scores(logits, labels, resamples=0)["auc"].value == pytest.approx(expected, abs=1e-12)


def test_scores_of_several_classes_by_hand() -> None:
    logits = torch.eye(3)[[0, 1, 2, 0, 1, 1]] * 4
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    scores = classification_scores(logits, labels, resamples=0)
    assert scores["accuracy"].value == pytest.approx(5 / 6)
    assert scores["macro_f1"].value == pytest.approx((1 + 4 / 5 + 2 / 3) / 3)
    assert math.isnan(scores["accuracy"].low)
    assert as_json(scores)["accuracy"] == {"value": pytest.approx(5 / 6), "low": None, "high": None}


def test_a_class_that_a_resample_misses_does_not_count() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 2)
    assert classification_scores(torch.eye(3)[labels], labels)["macro_f1"] == Score(1, 1, 1)


def test_several_labels_per_image() -> None:
    logits = torch.tensor([[2.0, -1.0], [-1.0, -1.0], [1.0, 3.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = classification_scores(logits, labels, resamples=0)
    assert scores["accuracy"].value == pytest.approx(4 / 6)
    assert scores["auc"].value == pytest.approx((0.5 + 1) / 2)


def test_classes_that_do_not_occur_have_no_curve() -> None:
    chances = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    assert macro_auc(chances, np.array([0, 1])) == 1.0
    assert math.isnan(macro_auc(chances, np.array([0, 0])))


def test_intervals_cover_the_true_value_about_as_often_as_promised() -> None:
    covered = 0
    for seed in range(40):
        right = torch.rand(120, generator=torch.Generator().manual_seed(seed)) < 0.8
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        score = classification_scores(logits, torch.zeros(120, dtype=torch.int64), resamples=100, seed=seed)["accuracy"]
        assert score.low <= score.value <= score.high
        covered += score.low <= 0.8 <= score.high
    assert 34 <= covered <= 40


def test_paired_tests() -> None:
    logits, labels = two_classes(gap=2.0)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    found = compare(logits, logits, labels, resamples=50)
    assert found["accuracy_difference"] == Score(0, 0, 0) and found["mcnemar_p"] == 1
    worse = compare(logits, 0.3 * logits + noise, labels, resamples=200)
    assert worse["accuracy_difference"].high < 0 and worse["auc_difference"].high < 0 and worse["mcnemar_p"] < 1e-3


def test_mcnemar_is_the_sign_test_on_disagreements() -> None:
    a = torch.tensor([True] * 8 + [False] * 2 + [True] * 5)
    b = torch.tensor([False] * 8 + [True] * 2 + [True] * 5)
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(8, 10).pvalue)


class Corners(Dataset):
    """A class in the middle of the image (foreground) and, alike, in its corner (background)."""

    def __init__(self) -> None:
        self.labels = torch.arange(40) % 2

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        label = self.labels[index]
        image, mask = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
        image[:, 3:5, 3:5] = image[:, 0, 0] = 0.2 + 0.6 * label
        mask[:, 2:6, 2:6] = 1
        return image, label, mask


class Looks(nn.Module):
    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.place, self.gain = (row, column), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        pixel = self.gain * x[:, 0, self.place[0], self.place[1]]
        return torch.stack([0.5 - pixel, pixel - 0.5], 1)


def test_sensitivity_tells_where_a_network_looks() -> None:
    at_foreground, at_corner = (bias_sensitivity(Looks(*place), Corners()) for place in ((3, 3), (0, 0)))
    assert at_foreground["removed"] == at_foreground["swapped"] == (1.0, 1.0, 0.0)
    assert at_corner["swapped"] == (1.0, 0.0, 1.0)
    assert at_corner["removed"].changed > 0.2


class Corner(Dataset):
    """A bright foreground pixel, and a corner that is bright or not."""

    def __init__(self, corner: float, count: int = 5) -> None:
        self.corner, self.labels = corner, torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, mask = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
        image[0, 1, 1], image[0, 0, 0], mask[0, 1, 1] = 1, self.corner, 1
        return image, self.labels[index], mask


def inhibited() -> nn.Sequential:
    """Two units see the bright pixel; the corner switches the first one off and has no other effect."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-5.0, 0, 0, 1], [0, 0, 0, 1]]))
        model[3].weight.copy_(torch.tensor([[4.0, 0], [0, 2]]))
    return model


def test_blind_spot_exposes_inhibition() -> None:
    model = inhibited()
    found = blind_spot(model, Corner(0), Corner(1), input_range=None)
    distance = torch.tensor([2.0, -2.0]).sigmoid().diff().abs().item()  # logits [4, 2] become [0, 2]
    assert found.changed == 1 and found.background == 0
    assert found.distance == found.score == pytest.approx(distance, abs=1e-6)
    assert blind_spot(model, Corner(1), Corner(1), input_range=None)[:2] == (0, 0)
    maps = ISNet(model, "original", input_range=None).train()(Corner(1)[0][0][None]).heatmaps["input"]
    assert maps[0, 0, 0, 0, 0].item() == 0
    with pytest.raises(ValueError, match="before, after: expected the same images, got 5 and 4"):
        blind_spot(model, Corner(0), Corner(0, count=4))


def test_blind_spot_of_a_network_that_shows_what_it_uses() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, 1]]))
    found = blind_spot(model, Corner(1), Corner(0), input_range=None, max_images=3)
    assert found.changed == 1 and found.background == pytest.approx(
        0.5
    )  # all of the first answer's, none of the second's
    assert found.score == pytest.approx(found.distance / 2)
    several = Corner(1), Corner(0)
    for data in several:
        data.labels = torch.ones(5, 2)
    expected = (torch.tensor([3.0, 1.0]).sigmoid() - torch.tensor([0.0, 1.0]).sigmoid()).abs().mean()
    assert blind_spot(model, *several, input_range=None).distance == pytest.approx(expected.item())


def test_other_backgrounds_leave_the_foreground() -> None:
    plain = Corners()
    for change in ("removed", "swapped"):
        changed = OtherBackground(plain, change)
        for index in (0, 7):
            (image, label, mask), (other, same, unmoved) = plain[index], changed[index]
            assert label == same and mask.equal(unmoved) and other.equal(changed[index][0])
            assert torch.equal(image * mask, other * mask) and not torch.equal(image, other)
    with pytest.raises(ValueError, match="change: expected"):
        OtherBackground(plain, "moved")


class Sorted(Dataset):
    """Six hundred images of one class, then as many of another."""

    def __init__(self) -> None:
        self.labels, self.seen = torch.arange(1200) // 600, set[int]()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.add(index)
        return torch.ones(1, 2, 2), self.labels[index], torch.tensor([[[1.0, 1], [0, 0]]])


def test_a_sorted_set_is_looked_at_from_end_to_end() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    data, other = Sorted(), Sorted()
    background_attention(model, data, max_images=100)
    blind_spot(model, other, Sorted(), max_images=100)
    assert data.seen == other.seen and len(data.seen) == 100
    assert sum(row >= 600 for row in data.seen) == 50
    assert 30 < sum(row % 2 for row in data.seen) < 70  # where classes take turns, either of two
    assert spread_rows(range(7), 7) == spread_rows(range(7), None) == list(range(7))
    assert len(set(spread_rows(range(13), 9))) == 9


def test_images_without_masks_are_left_out_of_what_masks_tell() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    data = Sorted()
    data.masked = list(range(600, 1200))
    assert not math.isnan(background_attention(model, data, max_images=50)) and min(data.seen) >= 600
    changed = OtherBackground(data, "removed")
    assert len(changed) == 600 and changed[0][1] == 1
    assert set(bias_sensitivity(model, data)) == {"removed"}  # those with masks are of one class
    data.masked = []
    assert bias_sensitivity(model, data) == {} and math.isnan(background_attention(model, data))
    shares = background_share(torch.ones(3, 1, 1, 2), torch.tensor([[[[0, 0]]], [[[0, 1]]], [[[1, 1]]]]))
    assert shares.isnan().tolist() == [True, False, True]  # with nothing but foreground there is no background either


def test_images_of_a_patient_are_drawn_together() -> None:
    """Each patient's images are all right or all wrong: there is as much to learn from as there are patients."""
    right = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.5
    logits = torch.stack([right.float(), 1 - right.float()], 1).repeat_interleave(25, 0)
    labels, patients = torch.zeros(1000, dtype=torch.int64), [f"p{i // 25}" for i in range(1000)]

    def width(groups: list[str] | None, rows: slice = slice(None)) -> float:
        chosen = right.repeat_interleave(25)[rows].numpy()
        share = paired_difference(
            lambda counts: 0.0, lambda counts: np.average(chosen, weights=counts), len(chosen), groups=groups
        )
        return share.high - share.low

    assert width(patients) == pytest.approx(5 * width(None), rel=0.3)
    assert width(patients) == pytest.approx(width(None, slice(None, None, 25)))
    assert width([str(i) for i in range(1000)]) == width([""] * 1000) == width(None)
    assert width([f"p{i // 200}" for i in range(1000)]) == width(None)  # too few to draw from
    scored = classification_scores(logits, labels, groups=patients, resamples=20)["accuracy"]
    assert scored.high - scored.low > 3 * width(None)
    better = logits.clone()
    better[:100] = torch.tensor([1.0, 0.0])  # four patients more, at the most
    found = compare(logits, better, labels, groups=patients, resamples=10)
    assert (
        "mcnemar_p" not in found
        and found["sign_flips_p"] > 0.05 > compare(logits, better, labels, resamples=10)["mcnemar_p"]
    )
    assert compare(logits, logits, labels, groups=patients, resamples=10)["sign_flips_p"] == 1


def test_sign_flips_of_single_images_are_mcnemars_test() -> None:
    a = torch.tensor([True] * 8 + [False] * 2 + [True] * 5)
    b = torch.tensor([False] * 8 + [True] * 2 + [True] * 5)
    assert sign_flips(a, b, np.arange(15)) == pytest.approx(mcnemar(a, b))  # 2 ** 10 exchanges: all of them


def test_sign_flips_are_the_share_of_exchanges_that_differ_as_much() -> None:
    """All exchanges of few groups, and as many random ones as a count by hand of many."""
    generator = torch.Generator().manual_seed(0)
    groups, labels = np.repeat(np.arange(40), 3), 2
    a, b = (torch.rand(120, labels, generator=generator) < share for share in (0.5, 0.63))
    few = torch.from_numpy(groups) < 8
    per_group = torch.zeros(8).index_add_(0, torch.from_numpy(groups[few]), (a.long() - b.long())[few].sum(1).float())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 8)
    exact = ((signs @ per_group).abs() >= per_group.sum().abs()).float().mean().item()
    assert 0 < exact < 1 and sign_flips(a[few], b[few], groups[few]) == pytest.approx(exact)

    per_group = np.bincount(groups, weights=(a.long() - b.long()).sum(1).numpy())
    signs = np.random.default_rng(1).integers(2, size=(50000, 40)) * 2 - 1
    drawn = (np.abs(signs @ per_group) >= abs(per_group.sum())).mean()
    found = sign_flips(a, b, groups)
    assert found == pytest.approx(drawn, abs=0.02) and found == sign_flips(a, b, groups) != sign_flips(
        a, b, groups, seed=1
    )
    assert sign_flips(a, a, groups) == 1
