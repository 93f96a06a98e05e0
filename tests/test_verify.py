"""Verification at first use: complete recordings pass, whatever hides something is named, and nothing of the model changes."""

from __future__ import annotations

import copy
import gc
import os
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import isnet
import lrpkernels as lrp
from benchmarks.library_networks import NETWORKS, build
from lrpkernels.errors import RelevanceError, VerificationError


class Odd(nn.Module):
    """A module that does something unusual."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.kept = function, None

    def forward(self, u: Tensor) -> Tensor:
        return self.function(self, u)


class Net(nn.Module):
    """A convolution, the unusual module, a dense layer."""

    def __init__(
        self, function: Callable[[Any, Tensor], Tensor] = lambda self, u: u, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.odd, self.head = nn.Conv2d(2, 4, 3, padding=1), Odd(function), nn.Linear(4 * 36, 3)
        self.runs = 0
        self.to(dtype).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.head(self.odd(self.body(x).relu()).flatten(1))


def _images(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))


# -- what hides something -----------------------------------------------------------------------------------------------------------


class Rounded(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Swish(torch.autograd.Function):
    """x sigmoid(x), with its own backward as it should be."""

    factor = 1.0

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return cls.factor * grad * (s + x * s * (1 - s))


class NearlySwish(Swish):
    """One percent off."""

    factor = 1.01


@torch.jit.script
def scripted(u: Tensor) -> Tensor:
    return torch.tanh(u) * u


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()))

    def forward(self, u: Tensor) -> Tensor:
        return u + self.inner(u)


def _in_a_thread(self: Odd, u: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return u + 0.02 * pool.submit(_live_tanh, u, torch.is_grad_enabled()).result()


def _live_tanh(u: Tensor, live: bool) -> Tensor:
    with torch.set_grad_enabled(live):
        return torch.tanh(u)


def _behind_the_modes_back(self: Odd, u: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        branch = torch.tanh(u)
    return u + 0.02 * branch


def _kept_from_an_earlier_call(self: Odd, u: Tensor) -> Tensor:
    if self.kept is None:
        self.kept = u.mean((2, 3), keepdim=True)
    return u + self.kept[:1]


def _another_function_with_gradients(self: Odd, u: Tensor) -> Tensor:
    return u.tanh() if u.requires_grad else u.sigmoid()


def _own_gradient(self: Odd, u: Tensor) -> Tensor:
    with torch.enable_grad():
        z = u if u.requires_grad else u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(z.tanh().sum(), z, create_graph=True)
    return u + slope


def _hooked(self: Odd, u: Tensor) -> Tensor:
    out = u.tanh()
    if out.requires_grad:
        out.register_hook(lambda grad: 1.1 * grad)
    return out.relu()


def _twice_in_one_function(self: Odd, u: Tensor) -> Tensor:
    return u + 0.02 * Rounded.apply(u)


HIDING: dict[str, Callable[[], nn.Module]] = {
    "straight-through": lambda: Net(lambda self, u: Rounded.apply(u)),
    "straight-through branch": lambda: Net(_twice_in_one_function),
    "backward that is 1 % off": lambda: Net(lambda self, u: NearlySwish.apply(u)),
    "scripted function": lambda: Net(lambda self, u: u + scripted(u)),
    "scripted module": lambda: _with_odd(Scripted()),
    "thread": lambda: Net(_in_a_thread),
    "torch functions switched off": lambda: Net(_behind_the_modes_back),
    "tensor of an earlier call": lambda: Net(_kept_from_an_earlier_call),
    "gradient taken in the model": lambda: Net(_own_gradient),
    "hook on a gradient": lambda: Net(_hooked),
}


def _with_odd(module: nn.Module) -> nn.Module:
    net = Net()
    net.odd = module
    return net.eval()


@pytest.mark.parametrize("live", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("kind", HIDING)
def test_what_hides_something_is_named(kind: str, live: bool) -> None:
    with torch.set_grad_enabled(live), pytest.raises(RelevanceError, match=r"\bodd\b"):
        lrp.LRP(HIDING[kind]())(_images(), 1)


@pytest.mark.parametrize(
    "function",
    [_another_function_with_gradients, lambda self, u: u + torch.from_numpy(np.tanh(u.numpy()))],
    ids=["by grad mode", "numpy"],
)
def test_so_is_what_works_without_gradients_alone(function: Callable[[Any, Tensor], Tensor]) -> None:
    with torch.no_grad(), pytest.raises(VerificationError, match=r"\bodd\b"):
        lrp.LRP(Net(function))(_images(), 1)


@pytest.mark.parametrize("live", [True, False], ids=["grad", "no_grad"])
def test_inference_mode_inside_the_model_is_refused_with_the_remedy(live: bool) -> None:
    def guarded(self: Odd, u: Tensor) -> Tensor:
        with torch.inference_mode():
            made = u.tanh()
        return made.clone()

    with torch.set_grad_enabled(live), pytest.raises(VerificationError, match=r"^odd .*use torch.no_grad\(\) there"):
        lrp.LRP(Net(guarded))(_images(), 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, u: u.to_sparse().to_dense(),
        lambda self, u: u.flatten(1).to_sparse_csr().to_dense().view_as(u),
        lambda self, u: torch.nested.as_nested_tensor([*u.unbind()]).to_padded_tensor(0.0),
        lambda self, u: torch.nested.as_nested_tensor([*u], layout=torch.jagged).to_padded_tensor(0.0),
    ],
    ids=["sparse", "rows", "nested", "jagged"],
)
@pytest.mark.parametrize("check", [True, False])
def test_layouts_without_rules_are_refused_in_one_line(function: Callable[[Any, Tensor], Tensor], check: bool) -> None:
    for live in (True, False):
        with torch.set_grad_enabled(live), pytest.raises(RelevanceError, match=r"^odd.*use dense tensors") as caught:
            lrp.LRP(Net(function), check=check)(_images(), 1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["straight-through", "straight-through branch", "backward that is 1 % off"])
def test_a_backward_that_is_no_gradient_is_said_to_be_one(kind: str) -> None:
    report_of = HIDING[kind]()
    (departure,) = lrp.verify(report_of, _images()).departures
    assert departure.module == "odd" and "straight-through" in departure.reason
    with pytest.raises(VerificationError, match="check=False"):
        lrp.record(report_of, _images())
    lrp.LRP(report_of, check=False)(_images(), 1)


# -- what does not --------------------------------------------------------------------------------------------------------------------


def _two_in_place(self: Odd, u: Tensor) -> Tensor:
    gate = u.sigmoid()
    gate.mul_(u)
    return gate.add_(u)


def _guarded(self: Odd, u: Tensor) -> Tensor:
    with torch.no_grad():
        return u.tanh() * 2


def _beside_sparse_buffers(self: Odd, u: Tensor) -> Tensor:
    if not hasattr(self, "graph"):
        self.register_buffer("graph", torch.eye(6).to_sparse(), persistent=False)
        self.register_buffer("rows", torch.eye(6).to_sparse_csr(), persistent=False)
    return torch.einsum("bcij,jk->bcik", u, self.graph.to_dense()) + self.rows.to_dense()


RIGHT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "custom function": lambda self, u: Swish.apply(u),
    "detach": lambda self, u: u * u.detach().tanh() + u.data,
    "numpy of a detached tensor": lambda self, u: u + torch.from_numpy(np.tanh(u.detach().numpy())),
    "no_grad inside the model": _guarded,
    "random numbers": lambda self, u: u * torch.rand_like(u),
    "random numbers of NumPy and Python": lambda self, u: u * float(np.random.rand()) + random.random(),
    "numbers from elsewhere": lambda self, u: u * (1 + os.urandom(1)[0]),
    "dropout, always on": lambda self, u: F.dropout(u, 0.3, training=True),
    "no gradient at all": lambda self, u: (-u - 1).relu(),
    "a gradient that cancels": lambda self, u: (u.tanh() - u.tanh()).flatten(1).softmax(1),
    "saturated": lambda self, u: (1e4 * u).sigmoid() + (1e3 * u).flatten(1).softmax(1).view_as(u),
    "changes in place": _two_in_place,
    "reentrant checkpoint": lambda self, u: checkpoint(torch.tanh, u, use_reentrant=True),
    "checkpoint": lambda self, u: checkpoint(torch.tanh, u, use_reentrant=False),
    "a batch of one is squeezed": lambda self, u: u.flatten(1)[:, :, None].squeeze(),
    "layer norm of nearly equal numbers": lambda self, u: F.layer_norm(1 + 1e-4 * u, (6,)),
    "sparse buffers": _beside_sparse_buffers,
    "maximum of a batch": lambda self, u: u / u.max(),
}


@pytest.mark.filterwarnings("ignore:lrpkernels has no rule", "ignore:.*use_reentrant", "ignore:None of the inputs")
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("kind", RIGHT)
def test_what_the_recording_sees_is_no_departure(kind: str, mode: Any) -> None:
    net, x = Net(RIGHT[kind]), _images()
    with mode():
        assert not lrp.verify(net, x, 1).departures


@pytest.mark.parametrize("built_inside", [False, True])
@pytest.mark.parametrize(
    "kind", ["custom function", "detach", "no_grad inside the model", "random numbers", "changes in place"]
)
def test_nor_is_it_under_inference_mode(kind: str, built_inside: bool) -> None:
    net, x = Net(RIGHT[kind]), _images()
    with torch.inference_mode():
        assert lrp.verify(copy.deepcopy(net) if built_inside else net, x, 1).ok


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
def test_outputs_of_any_form(form: str) -> None:
    class Formed(Net):
        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            if form == "tuple":
                return logits.relu(), logits.sum(), [logits.tanh()]
            return {"other": logits} if form == "dict" else Result(logits, logits.sum())

    def pick(out: Any) -> Tensor:
        return out[0] if form == "tuple" else out["other"] if form == "dict" else out.prediction

    assert lrp.verify(Formed(), _images(), 1, output=pick).ok
    with pytest.raises(RelevanceError, match=r"\bodd\b"):
        lrp.LRP(Formed(_in_a_thread))(_images(), 1, output=pick)


@dataclass
class Result:
    prediction: Tensor
    total: Tensor


def test_a_constant_output_is_left_to_the_relevance_pass() -> None:
    with pytest.raises(lrp.UnusedInputError):
        lrp.LRP(nn.Sequential(nn.Flatten(), _Constant()))(_images(), 1)


class _Constant(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u.detach().flatten(1)[:, :3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_in_deep_networks_is_none(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(60) for layer in (nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU())]
    plain = [layer for _ in range(40) for layer in (nn.Linear(24, 24), nn.Tanh())]
    for parts in (layers, plain):
        model = nn.Sequential(*parts, nn.Linear(24, 3)).to(dtype)
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.4)
        x = torch.randn(4, 24, dtype=dtype)
        assert lrp.verify(model, x).ok


def test_under_autocast_a_branch_of_one_percent_is_seen() -> None:
    x = _images()
    with torch.autocast("cpu", torch.bfloat16):
        assert lrp.verify(Net(), x).ok
        with pytest.raises(RelevanceError, match=r"\bodd\b"):
            lrp.LRP(Net(_in_a_thread))(x, 1)


_TINY = (
    "monai Classifier",
    "monai ResNet",
    "monai DenseNet 3-D",
    "transformers ConvNext",
    "transformers ViT",
    "transformers RegNet",
)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name", [name if name in _TINY else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_every_network_of_the_libraries_is_complete(name: str, train: bool) -> None:
    model, x = build(name)
    model.train(train)
    x = torch.cat([x, torch.rand_like(x)])
    report = lrp.verify(model, x)
    assert report.ok and report.error <= 1e-10
    if not train:
        assert lrp.verify(model.float(), x.float(), static=True).ok


def _language_models() -> dict[str, Callable[[], Any]]:
    import transformers as hf

    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    grouped = {**sizes, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return {
        "BERT": lambda: hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_labels=3)),
        "GPT-2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        ),
        "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "Qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped)),
        "Gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**grouped, head_dim=8, sliding_window=4)),
    }


class FromEmbeddings(nn.Module):
    """A transformer that starts at its token embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> Any:
        return self.model(inputs_embeds=embeddings, attention_mask=mask)


@pytest.mark.filterwarnings("ignore:lrpkernels has no rule")
@pytest.mark.parametrize("form", ["eager, left-padded", "fused", "fused, left-padded"])
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "Qwen2", "Gemma3"])
def test_language_models_are_complete(name: str, form: str) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = _language_models()[name]().eval()
    model.set_attn_implementation("eager" if "eager" in form else "sdpa")
    padded = torch.ones(3, 7, dtype=torch.int64)
    padded[0, :3] = padded[1, :1] = 0
    mask = padded if "padded" in form else None
    x = torch.randn(3, 7, 32)

    def last(logits: Tensor) -> Tensor:
        return logits.reshape(len(logits), -1)[:, -1].clone()

    report = lrp.verify(FromEmbeddings(model), x, last, mask=mask)
    assert report.ok and report.error <= 1e-5, report


# -- nothing changes, and it happens once ---------------------------------------------------------------------------------------------


def test_nothing_of_the_model_changes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    net.train()
    net[3].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    x = _images(4)
    twin = copy.deepcopy(net)
    torch.manual_seed(5)
    expected = lrp.LRP(twin, check=False)(x, 1)
    draws = torch.rand(3)
    torch.manual_seed(5)
    random.seed(0)
    np.random.seed(0)
    before = x.clone()
    found = lrp.LRP(net, check="always")(x, 1)
    assert torch.equal(torch.rand(3), draws) and torch.equal(x, before)
    assert random.random() == random.Random(0).random() and np.random.rand() == np.random.RandomState(0).rand()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    state = net.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in twin.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight)) and net[5].weight.grad is None
    assert [module.training for module in net] == [module.training for module in twin]


def test_keyword_arguments_stay_what_they_are() -> None:
    class Cache:
        def __init__(self) -> None:
            self.calls = 0

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, cache: Cache, bias: Tensor) -> Tensor:
            cache.calls += 1
            return self.head(x + bias.mul_(2.0))

    cache, bias = Cache(), torch.ones(3, 4)
    lrp.record(Cached(), torch.rand(3, 4), cache=cache, bias=bias).clear()
    assert cache.calls == 1 and torch.equal(bias, torch.full((3, 4), 2.0))


def _runs(net: Net, *args: Any, check: Any = True, **options: Any) -> int:
    """How often the model runs for one recording."""
    before = net.runs
    lrp.record(net, *args, check=check, **options).clear()
    return net.runs - before


def test_each_form_of_input_is_verified_once() -> None:
    net = Net()
    x = _images()
    assert _runs(net, x) == 3 and _runs(net, x) == 1 and _runs(net, _images(5)) == 1
    with torch.no_grad():
        assert _runs(net, x) == 3 and _runs(net, x) == 1
    assert _runs(net, x, check="always") == 3
    net.train()
    assert _runs(net, x) == 3 and _runs(net, x) == 1
    net.odd = Odd(lambda self, u: 2 * u)
    assert _runs(net, x) == 3 and _runs(net, x) == 1
    net.odd.register_forward_hook(lambda module, args, out: out)
    assert _runs(net, x) == 3 and _runs(net, x) == 1
    assert _runs(net.double(), x.double()) == 3 and _runs(net, x.double()) == 1
    assert _runs(Net(), x, check=False) == 1
    assert _runs(copy.deepcopy(net), x.double()) == 3


def test_a_failed_verification_is_not_remembered() -> None:
    net = HIDING["straight-through"]()
    for _ in range(2):
        with pytest.raises(VerificationError):
            lrp.record(net, _images())


def test_a_replaced_module_is_verified() -> None:
    net = Net()
    lrp.LRP(net)(_images(), 1)
    net.odd = Odd(lambda self, u: Rounded.apply(u))
    with pytest.raises(VerificationError):
        lrp.LRP(net)(_images(), 1)


def test_no_model_is_kept() -> None:
    net = Net()
    lrp.LRP(net)(_images(), 1)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_model_for_one_batch_size_is_verified_on_it() -> None:
    net = Net(lambda self, u: u.view(5, 4, 36).tanh())
    assert _runs(net, _images(5)) > 1 and _runs(net, _images(5)) == 1


def test_many_lengths_are_a_few_verifications() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    calls = []
    net.register_forward_pre_hook(lambda module, args: calls.append(1))
    for length in range(1, 41):
        lrp.record(net, torch.rand(2, length, 4)).clear()
    assert len(calls) == 40 + 2 * 16


def test_an_unknown_kind_of_check_is_refused() -> None:
    with pytest.raises(ValueError, match="check must be True, False"):
        lrp.record(Net(), _images(), check="once")


def test_isnet_verifies_its_model() -> None:
    net = HIDING["straight-through"]()
    with pytest.raises(VerificationError, match="odd"):
        isnet.ISNet(net).train()(_images())
    assert isnet.ISNet(net, check=False).train()(_images()).heatmaps


def test_static_calls_that_depend_on_the_input_are_refused() -> None:
    def which(self: Odd, u: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            first = bool(u[0].sum() > u[1].sum())
        return u.tanh() if first else 2 * u

    net = Net(which)
    assert lrp.verify(net, _images()).ok
    assert not lrp.verify(net, _images(), static=True).ok
    with pytest.raises(VerificationError, match="leave `static` out"):
        lrp.LRP(net, static=True)(_images(), 1)
    lrp.LRP(Net(), static=True)(_images(), 1)


# -- the report -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [None, lrp.ZBox(0.0, 1.0, eps=1e-12)], ids=["epsilon", "box"])
def test_relevance_is_conserved_block_by_block_without_biases(first: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(4, 3, bias=False),
    ).double()  # fmt: skip
    x = _images(dtype=torch.float64)
    report = lrp.verify(net, x, 1, composite=lrp.Epsilon(1e-12, first=first))
    score = float(net(x)[:, 1].sum())
    assert [block.module for block in report.blocks] == ["0", "2", "3", "5", "6"]
    for block in report.blocks:
        assert abs(block.arrived - score) <= 1e-8 * abs(score) and abs(block.handed_on - score) <= 1e-8 * abs(score)
    with_bias = lrp.verify(Net(dtype=torch.float64), x, 1).blocks[-1]
    assert with_bias.operation == "linear" and abs(with_bias.arrived - with_bias.handed_on) > 1e-3


def test_the_report_names_what_is_not_finite_and_is_short() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[1].weight[0, 0] = 3e38
    report = lrp.verify(net, 10 * _images() + 5, 1)
    assert not report.ok and report.non_finite[0].module in ("0", "1") and len(repr(report)) < 300
    good = lrp.verify(Net(), _images())
    assert good.ok and repr(good).startswith("Report(ok=True") and len(repr(good)) < 120
