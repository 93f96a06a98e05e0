"""Distilled and MatchingLoss: what is compared, what it costs to differ, and that only the student learns."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from isnet.distillation import map_distance
from isnet.distillation.layers import map_shapes, matching_layers
from isnet.variants import stochastic_target

B, SIDE = 6, 16


class Net(nn.Module):
    """Two stages with batch norm, and a head."""

    def __init__(
        self, width: int = 4, classes: int = 3, channels: int = 1, names: tuple[str, str] = ("first", "second")
    ) -> None:
        super().__init__()
        stages = [
            nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        ]
        self.names = names
        for name, stage in zip(names, stages, strict=True):
            self.add_module(name, stage)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.head(x.mean((2, 3)))


def net(seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def images(count: int = B, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def masks(count: int = B) -> Tensor:
    found = torch.zeros(count, 1, SIDE, SIDE)
    found[:, :, 4:12, 4:12] = 1
    return found


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def output(student: nn.Module, teacher: nn.Module, **options: Any) -> isnet.DistilledOutput:
    found = isnet.Distilled(student, teacher, generator=draws(), **options).train()(images(), masks())
    assert isinstance(found, isnet.DistilledOutput)
    return found


# ---- the loss


def test_distance_of_a_multiple_is_what_the_formula_says() -> None:
    t = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=draws())
    for k in (0.1, 0.5, 1.0, 3.0):
        expected = abs(k - 1) / math.sqrt(k) * mean_ratio(t)
        assert float(map_distance(k * t, t)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(map_distance(t, t)) == 0


def mean_ratio(t: Tensor) -> float:
    return 1.0  # |k t / n - t / n| with n = sqrt(k) mean |t| has the mean |k - 1| / sqrt(k) on every level


def test_levels_are_averages_while_sides_stay_long_enough() -> None:
    """A checkerboard beside its negative: far apart, and alike once averaged."""
    board = torch.ones(1, 1, 16, 16)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
    near = torch.full_like(board, 1e-3)
    fine, coarse = 2.0, 0.0  # of 16 x 16 and of 8 x 8
    assert float(map_distance(board + near, near - board)) == pytest.approx((fine + coarse) / 2, rel=1e-4)
    assert float(map_distance((board + near)[..., :15], (near - board)[..., :15])) == pytest.approx(
        fine, rel=1e-4
    )  # 7 < 8
    s, t = (torch.randn(2, 3, *size, generator=draws(i)) for i, size in ((0, (64, 20)), (1, (64, 20))))
    a = [map_distance_of_level(s, t, side) for side in (1, 2)]  # 20 // 4 < 8
    assert float(map_distance(s, t)) == pytest.approx(sum(a) / 2, rel=1e-5)
    assert map_distance(torch.rand(2, 3), torch.rand(2, 3)).dim() == 0  # vectors have one level
    assert map_distance(torch.rand(2, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 16)) > 0


def map_distance_of_level(s: Tensor, t: Tensor, side: int) -> float:
    s, t = (nn.functional.avg_pool2d(m, side) for m in (s, t))
    each = [(a - b).abs().mean() / (a.abs().mean() * b.abs().mean()).sqrt() for a, b in zip(s, t, strict=True)]
    return float(torch.stack(each).mean())


def test_images_of_which_the_teacher_says_nothing_are_left_out() -> None:
    s, t = torch.rand(3, 1, 8, 8, requires_grad=True), torch.rand(3, 1, 8, 8)
    t[1] = 0
    found = map_distance(s, t)
    assert float(found.detach()) == pytest.approx(float(map_distance(s[::2], t[::2]).detach()))
    found.backward()
    assert s.grad is not None and bool(s.grad.isfinite().all()) and not bool(s.grad[1].any()) and bool(s.grad[0].any())
    nothing = map_distance(s, torch.zeros_like(t))
    assert float(nothing.detach()) == 0
    nothing.backward()
    assert bool(s.grad.isfinite().all())


def test_a_student_without_relevance_has_a_finite_gradient() -> None:
    s = torch.zeros(2, 1, 8, 8, requires_grad=True)
    map_distance(s, torch.rand(2, 1, 8, 8)).backward()
    assert s.grad is not None and bool(s.grad.isfinite().all()) and bool(s.grad.any())


def test_gradient_of_the_distance_against_differences() -> None:
    s = torch.randn(2, 2, 16, 16, dtype=torch.float64, generator=draws(1)).requires_grad_()
    t = torch.randn(2, 2, 16, 16, dtype=torch.float64, generator=draws(2))
    assert torch.autograd.gradcheck(lambda m: map_distance(m, t), (s,))


def test_logits_are_compared_at_temperature_three() -> None:
    student, teacher = net(0), net(1)
    found = output(student, teacher, match="logits")
    terms = isnet.MatchingLoss()(found)
    p, q = (logits.div(3).softmax(1) for logits in (found.teacher_logits, found.logits))
    assert float(terms.total.detach()) == pytest.approx(9 * float((p * (p / q).log()).sum(1).mean().detach()), rel=1e-4)
    assert terms.layers.keys() == {"logits"} and not found.student


def test_features_are_those_of_the_last_common_layer() -> None:
    student, teacher = net(0), net(1)
    found = output(student, teacher, match="features")
    assert found.student.keys() == {"second"} and found.student["second"].shape == (B, 6, 8, 8)
    expected = teacher.second(teacher.first(images()))
    torch.testing.assert_close(found.teacher["second"], expected)
    isnet.MatchingLoss()(found).total.backward()
    assert student.first[0].weight.grad is not None and teacher.first[0].weight.grad is None


# ---- the maps


def test_maps_are_those_of_one_class_and_stabilizer_for_both() -> None:
    student, teacher = net(0), net(1).eval()
    found = output(student, teacher, eps=(-2, 0), head="free")
    generator = draws()
    eps = 10 ** (-2 + 2 * torch.rand(B, generator=generator))
    assert 0.01 <= float(eps.min()) < float(eps.max()) <= 1
    target = stochastic_target(teacher(images()), generator)
    assert len(set((target != teacher(images()).argmax(1)).tolist())) == 2  # some of each kind
    student.train()
    for model, maps in ((student, found.student), (teacher, found.teacher)):
        with lrp.record(model, images()) as tape:
            expected = tape.relevance(target, lrp.Epsilon(eps), at=["first", "second"])
        assert maps.keys() == {"input", "first", "second"}
        for name, relevance in expected.items():
            torch.testing.assert_close(maps[name], relevance, rtol=1e-4, atol=1e-7)
    assert all(m.requires_grad for m in found.student.values()) and not any(
        m.requires_grad for m in found.teacher.values()
    )


def test_parts_of_a_batch_draw_as_the_whole() -> None:
    distilled = isnet.Distilled(net(0).eval(), net(1), view="noise", generator=draws())
    whole = distilled.train()(images(), masks())
    parts = []
    for first in (0, 3):
        distilled.generator = draws()
        parts.append(distilled(images()[first : first + 3], masks()[:3], place=(first, B)))
    for name, expected in whole.teacher.items():
        torch.testing.assert_close(torch.cat([part.teacher[name] for part in parts]), expected, rtol=1e-4, atol=1e-6)


def test_only_the_student_learns_and_the_teacher_stays_in_evaluation_mode() -> None:
    student, teacher = net(0), net(1).train()
    before = copy.deepcopy(teacher.state_dict())
    distilled = isnet.Distilled(student, teacher, generator=draws())
    optimizer = torch.optim.Adam([p for p in distilled.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        assert distilled.generator is not None
        distilled.generator.manual_seed(1)  # the same classes and stabilizers: the loss must fall
        loss = isnet.MatchingLoss()(distilled.train()(images())).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert student.training and not teacher.training and not teacher.first[1].training
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(student.head.weight, teacher.head.weight) and not student.head.weight.requires_grad
    distilled.eval()
    torch.testing.assert_close(distilled(images()), student(images()))
    assert distilled.model is student


def test_a_copy_of_the_teacher_has_no_loss() -> None:
    teacher = net(1)
    distilled = isnet.Distilled(net(0), teacher, start="teacher", generator=draws())
    distilled.train()
    distilled.student.eval()  # the teacher's statistics
    terms = isnet.MatchingLoss()(distilled(images()))
    assert float(terms.total.detach()) < 1e-4 and terms.layers.keys() == {"input", "first", "second"}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_static_calls_and_less_memory_change_no_gradient(checkpoint: bool) -> None:
    student, teacher = net(0), net(1)
    found = {}
    for name, options in (("plain", {}), ("other", {"static": True, "checkpoint": checkpoint})):
        own = copy.deepcopy(student)
        distilled = isnet.Distilled(own, copy.deepcopy(teacher), generator=draws(), **options).train()  # type: ignore[arg-type]
        for _ in range(3):
            own.zero_grad()
            isnet.MatchingLoss()(distilled(images())).total.backward()
        found[name] = [p.grad for p in own.parameters() if p.grad is not None]
    for a, b in zip(found["plain"], found["other"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3 if checkpoint else 0, atol=1e-5 if checkpoint else 0)


# ---- layers


def test_auto_takes_the_last_layer_of_each_shape() -> None:
    shapes = map_shapes(net(0), images())
    assert shapes["first.0"] == shapes["first"] == (4, SIDE, SIDE) and "head" not in shapes
    assert matching_layers(shapes, shapes) == ["first", "second"]
    narrow = map_shapes(net(0, width=3), images())
    assert matching_layers(narrow, shapes) == ["second"]


def test_layers_by_name_and_in_pairs() -> None:
    student, teacher = net(0), net(1, names=("a", "b"))
    with pytest.raises(ValueError, match="no module has the same name in both") as raised:
        output(student, teacher)
    assert "\n" not in str(raised.value)
    found = output(student, teacher, layers={"second": "b"})
    assert found.student.keys() == found.teacher.keys() == {"input", "second"}
    assert output(student, teacher, layers=()).student.keys() == {"input"}
    with pytest.raises(ValueError, match="the maps at first differ in shape"):
        output(net(0, width=3), net(1), layers=["first"])


def test_a_teacher_of_another_modality() -> None:
    student, teacher = net(0), net(1, channels=2)

    def view(x: Tensor, given: Tensor | None, generator: torch.Generator | None) -> Tensor:
        assert given is not None and generator is not None
        return torch.cat([x, given], 1)

    with pytest.raises(ValueError, match="the maps at input differ in shape"):
        output(student, teacher, view=view)
    with pytest.raises(ValueError, match="view: expected 6 images for 6 of the student's, got"):
        output(student, teacher, view=lambda *_: torch.rand(5, 2, SIDE, SIDE))
    found = output(student, net(1), view=lambda x, *_: 1 - x)
    assert float(isnet.MatchingLoss()(found).total.detach()) > 0


@pytest.mark.parametrize("view", ["zeros", "ones", "noise", "swap"])
def test_views_show_the_foreground_on_another_background(view: str) -> None:
    seen: list[Tensor] = []
    teacher = net(1)
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output(net(0), teacher, view=view, match="logits", input_range=(0.0, 0.8))
    inside = masks() > 0
    assert torch.equal(seen[-1][inside], images()[inside])
    background = seen[-1][~inside]
    assert {"zeros": bool((background == 0).all()), "ones": bool((background == 0.8).all())}.get(view, True)
    assert not torch.equal(background, images()[~inside])
    with pytest.raises(ValueError, match=f"view: '{view}' shows the foreground and needs masks of shape .*, got none"):
        isnet.Distilled(net(0), net(1), view=view).train()(images())  # type: ignore[arg-type]


# ---- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"view": "mask"}, "view must be one of image, zeros, ones, noise, swap, or a callable, got 'mask'"),
        ({"eps": 0.01}, "eps must be two exponents (a, b) of 10, got 0.01"),
        ({"eps": (0, -1)}, "eps must be two finite exponents (a, b) of 10 with a <= b, got (0, -1)"),
        ({"eps": (0, float("nan"))}, "eps must be two finite exponents"),
        ({"layers": "first"}, "layers must be \"auto\", a list of module names or pairs of them, got 'first'"),
        ({"layers": ["frist"]}, "layers: the student has no module 'frist'; near matches: first"),
        ({"layers": {"first": "frist"}}, "layers: the teacher has no module 'frist'; near matches: first"),
        ({"layers": (), "match": "features"}, "layers: features are compared at a layer"),
        ({"head": "teacher"}, "head must be one of copy, free, got 'teacher'"),
        ({"start": "copy"}, "start must be one of random, teacher, got 'copy'"),
        ({"match": "input"}, "match must be one of maps, logits, features, got 'input'"),
    ],
)
def test_refuses_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as raised:
        isnet.Distilled(net(0), net(1), **options)
    assert text in str(raised.value) and "\n" not in str(raised.value)


def test_refuses_networks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected two networks, got one"):
        isnet.Distilled((one := net(0)), one)
    with pytest.raises(TypeError, match=r"teacher must be a torch\.nn\.Module, got function"):
        isnet.Distilled(net(0), images)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"head: the student's last layer head \[2, 6\] cannot be a copy of the teacher's head"
    ):
        isnet.Distilled(net(0, classes=2), net(1))
    with pytest.raises(
        ValueError, match=r"start: .* first.0.weight is \[3, 1, 3, 3\] in the student, \[4, 1, 3, 3\] in the teacher"
    ):
        isnet.Distilled(net(0, width=3), net(1), start="teacher")
    with pytest.raises(ValueError, match=r"head: Conv2d has no nn\.Linear to copy"):
        isnet.Distilled(nn.Conv2d(1, 3, SIDE), net(1))
    for match in ("maps", "logits"):
        distilled = isnet.Distilled(net(0, classes=2), net(1), head="free", match=match)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="student"):
            distilled.train()(images())
