"""What a reader must know before the scores: each kind of answer that is less than it seems, and none where all is well."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isnet.scoring.cautions import KINDS, cautions
from isnet.scoring.evaluation import prior_loss
from isnet.scoring.intervals import classification_scores, mean_score
from isnet.scoring.scores import answers_of, macro_auc

TWO = ("ill", "well")


def binary(scores: Tensor) -> Tensor:
    """Logits [N, 2] whose difference is the score of the second class."""
    return torch.stack([torch.zeros_like(scores), scores], 1)


def kinds(logits: Tensor, labels: Tensor, names: tuple[str, ...] = TWO) -> list[str]:
    return [caution.kind for caution in cautions(logits, labels, names)]


LABELS = torch.arange(40) % 2
GOOD = binary((2.0 * LABELS - 1) + 0.5 * torch.sin(torch.arange(40.0)))


def test_good_answers_need_no_caution() -> None:
    assert kinds(GOOD, LABELS) == []


@pytest.mark.parametrize("sign, area", [(1, 1.0), (-1, 0.0)])
def test_the_same_accuracy_with_an_auc_of_0_and_of_1(sign: int, area: float) -> None:
    """Both networks answer one class alone, and have 50 % accuracy; only one of them can tell the classes apart."""
    logits = binary(-5 + sign * (2.0 * LABELS - 1))
    scores = classification_scores(logits, LABELS, resamples=0)
    assert scores["accuracy"].value == scores["balanced_accuracy"].value == 0.5 and scores["auc"].value == area
    found = cautions(logits, LABELS, TWO)
    assert found[0].kind == "one answer" and "all 40 answers are “ill”" in found[0].text
    assert ("inverted" in [caution.kind for caution in found]) == (sign < 0)


def test_the_gravest_comes_first() -> None:
    found = kinds(binary(-5.0 - 20 * (2.0 * LABELS[:12] - 1)), LABELS[:12])
    assert found == sorted(found, key=KINDS.index) and len(found) >= 3


def test_classes_that_are_never_answered_and_that_do_not_occur() -> None:
    labels = torch.arange(60) % 3
    logits = torch.nn.functional.one_hot(labels.clamp(max=1), 4).float()  # class 2 taken for 1, class 3 without images
    found = {caution.kind: caution.text for caution in cautions(logits, labels, ("a", "b", "c", "d"))}
    assert "“c”" in found["never answered"] and "no images of “d”" in found["undefined"]


def test_a_test_of_one_class_has_no_auc() -> None:
    labels = torch.ones(30, dtype=torch.int64)
    (caution,) = [c for c in cautions(binary(torch.ones(30)), labels, TWO) if c.kind == "undefined"]
    assert "all images are of class “well”" in caution.text
    assert math.isnan(classification_scores(binary(torch.ones(30)), labels)["auc"].value)
    assert prior_loss(GOOD, labels[:1].expand(40)) == 0
    assert "one answer" not in kinds(binary(torch.ones(30)), labels)  # it is the right one


def test_inverted_rankings() -> None:
    assert "inverted" in kinds(GOOD, 1 - LABELS)
    noise = binary(torch.rand(40, generator=torch.Generator().manual_seed(3)))
    assert "inverted" not in kinds(noise, LABELS) and "inverted" not in kinds(-noise, LABELS)  # chance is not clear
    three = torch.arange(60) % 3
    logits = torch.nn.functional.one_hot((three + 1) % 3, 3).float()
    (text,) = [c.text for c in cautions(logits, three, ("a", "b", "c")) if c.kind == "inverted"]
    assert "“a” 0.25" in text


def test_few_images_and_probabilities_without_shades() -> None:
    assert "few images" in kinds(GOOD[:18], LABELS[:18]) and "few images" not in kinds(GOOD[:20], LABELS[:20])
    assert "saturated" in kinds(100 * GOOD, LABELS) and "saturated" not in kinds(10 * GOOD, LABELS)


def test_a_ranking_survives_saturated_probabilities() -> None:
    """Softmax gives 1 for all of these; their logits still rank them."""
    scores = torch.tensor([50.0, 60.0, 70.0, 80.0])
    answers = answers_of(binary(scores), torch.tensor([0, 0, 1, 1]))
    assert (answers.probabilities[:, 1] == 1).all() and macro_auc(answers.log_odds, answers.truth) == 1
    torch.testing.assert_close(torch.tensor(answers.log_odds[:, 1]), scores.double())
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    answers = answers_of(logits, torch.zeros(50, dtype=torch.int64))
    expected = torch.logit(torch.tensor(answers.probabilities))
    torch.testing.assert_close(torch.tensor(answers.log_odds), expected, rtol=1e-6, atol=1e-6)


def test_worse_than_the_class_shares() -> None:
    labels = (torch.arange(100) < 20).long()
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert prior_loss(torch.zeros(100, 2), labels) == pytest.approx(entropy)
    wrong = binary(torch.where(labels == 1, -3.0, 3.0))
    assert "worse than the class shares" in kinds(wrong, labels)
    (text,) = [c.text for c in cautions(wrong, labels, TWO) if c.kind == "worse than the class shares"]
    assert f"{entropy:.3g}" in text


def test_no_better_than_always_the_commonest() -> None:
    labels = (torch.arange(100) < 20).long()
    logits = binary(torch.where((labels == 1) & (torch.arange(100) < 5), 1.0, -1.0))
    logits[20:40] = -logits[20:40]  # 80 right by answering "ill" always; here 65
    (text,) = [c.text for c in cautions(logits, labels, TWO) if c.kind == "no better than one answer"]
    assert "65.0 %" in text and "“ill” (80.0 %)" in text


@pytest.mark.parametrize(
    "logits, kind",
    [
        (torch.full((40, 2), -1.0), "one answer"),
        (torch.stack([torch.full((40,), 9.0), 1 - 2.0 * LABELS], 1), "never answered"),
        (torch.stack([2.0 * LABELS - 1, 1 - 2.0 * LABELS], 1), None),
    ],
)
def test_several_labels(logits: Tensor, kind: str | None) -> None:
    labels = torch.stack([LABELS, 1 - LABELS], 1).float()
    found = kinds(logits, labels, ("edema", "effusion"))
    assert found[:1] == [kind] if kind else found == []


def test_labels_that_do_not_vary() -> None:
    labels = torch.stack([LABELS, torch.zeros(40, dtype=torch.int64)], 1).float()
    (text,) = [c.text for c in cautions(labels * 2 - 1, labels, ("a", "b")) if c.kind == "undefined"]
    assert "“b”" in text and "left out" in text
    constant = torch.ones(40, 2)
    assert kinds(constant, constant, ("a", "b")) == ["undefined"]
    assert prior_loss(constant, constant) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_answers_that_are_not_finite_are_refused_in_one_line(bad: float) -> None:
    logits = GOOD.clone()
    logits[3, 1] = bad
    with pytest.raises(ValueError, match="logits: expected finite numbers, got NaN or infinity for 1 of 40 images"):
        cautions(logits, LABELS, TWO)


def test_single_images_and_a_thousand_classes() -> None:
    assert "undefined" in kinds(GOOD[:1], LABELS[:1])
    names = tuple(str(n) for n in range(1000))
    labels = torch.arange(1000)
    text = " ".join(c.text for c in cautions(torch.zeros(1000, 1000), labels, names))
    assert "all 1000 answers are “0”" in text and "and 997 more" in text and len(text) < 1000


def test_balanced_accuracy() -> None:
    labels = (torch.arange(100) < 10).long()
    always = classification_scores(binary(torch.full((100,), -1.0)), labels, resamples=50)
    assert always["accuracy"].value == 0.9 and always["balanced_accuracy"] == (0.5, 0.5, 0.5)
    several = torch.stack([labels, 1 - labels, torch.ones(100, dtype=torch.int64)], 1).float()
    logits = torch.stack([torch.full((100,), -1.0), 1 - 2.0 * labels, torch.ones(100)], 1)
    found = classification_scores(logits, several, resamples=0)["balanced_accuracy"].value
    assert found == pytest.approx((0.5 + 1) / 2)  # the last label is in all images
    assert math.isnan(classification_scores(logits[:, 2:], several[:, 2:], resamples=0)["balanced_accuracy"].value)


def test_means_of_images_have_intervals() -> None:
    values = torch.tensor([0.0, 1.0, math.nan, 1.0] * 30)
    score = mean_score(values, resamples=300)
    assert score.value == pytest.approx(2 / 3) and score.low < 2 / 3 < score.high
    assert all(math.isnan(number) for number in mean_score(torch.full((5,), math.nan)))
    groups = [f"p{i // 4}" for i in range(120)]  # each with the same values: nothing varies
    assert mean_score(values, groups=groups, resamples=50).low == pytest.approx(2 / 3)
