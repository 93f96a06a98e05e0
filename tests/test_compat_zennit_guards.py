"""lrpkernels.compat.zennit, crp, lxt and cam: what they refuse and warn of, threads, copies and pickles, texts of objects."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import zennit
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat import crp
from lrpkernels.compat import zennit as ours
from lrpkernels.compat.cam import LRPCAM
from lrpkernels.compat.lxt import monkey_patch
from lrpkernels.compat.quantus import explain
from lrpkernels.errors import InputWarning, UnsupportedOperationError

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ONE = torch.eye(4)[[1, 1]]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()  # fmt: skip


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, X)], ids=["script", "trace"])
def test_torchscript_is_refused_and_not_explained_by_plain_gradients(make: Callable[[nn.Module], nn.Module]) -> None:
    for model in (make(_net()), nn.Sequential(make(_net()))):
        for attempt in (
            lambda model=model: ours.Gradient(model, ours.EpsilonPlus())(X, ONE),
            lambda model=model: ours.Gradient(model, lrp.Epsilon(1e-2))(X, ONE),
            lambda model=model: ours.EpsilonPlus().register(model),
            lambda model=model: monkey_patch(model),
        ):
            with pytest.raises(UnsupportedOperationError, match="a TorchScript module hides its operations"):
                attempt()
        assert torch.equal(model(X), _net()(X))
    assert ours.Gradient(make(_net()))(X, ONE)[1].shape == X.shape  # a plain gradient is what is asked for


def test_training_mode_is_told_once_for_each_composite() -> None:
    model = _net().train()
    attributor, composite = ours.Gradient(model, ours.EpsilonPlus()), ours.EpsilonPlusFlat()

    def told(call: Callable[[], Any], times: int = 3) -> list[type[Warning]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(times):
                call()
        assert all("training mode" in str(warning.message) for warning in caught)
        return [warning.category for warning in caught]

    def context() -> None:
        with composite.context(model):
            pass

    conditional = crp.CondAttribution(model)
    native = ours.Gradient(model, lrp.Epsilon(1e-2))
    assert told(lambda: attributor(X, ONE)) == [InputWarning]
    assert told(lambda: native(X, ONE)) == [InputWarning]
    assert told(context) == [InputWarning] and told(context) == []
    assert told(lambda: conditional(X[:1], [{"y": [1]}])) == [InputWarning]
    assert told(lambda: list(crp.CondAttribution(model).generate(X[:1], [{"y": [1]}], verbose=False)), 1) == [
        InputWarning
    ]
    assert told(lambda: ours.Gradient(model)(X, ONE)) == []  # its own gradient
    assert told(lambda: ours.Gradient(_net(), ours.EpsilonPlus())(X, ONE)) == []


def test_outputs_that_are_no_tensor_are_named() -> None:
    with pytest.raises(TypeError, match="model: it returns dict, expected a tensor"):
        ours.Gradient(_Named(), ours.EpsilonPlus())(X, ONE)
    with pytest.raises(TypeError, match="model: it returns dict, expected a tensor"):
        crp.CondAttribution(_Named())(X, [{"y": [1]}], ours.EpsilonPlus())
    with pytest.raises(TypeError, match="attr_output: expected a tensor or a function that returns one, got int"):
        ours.Gradient(_net(), ours.EpsilonPlus())(X, lambda output: 3)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    "make", [LRPCAM, crp.CondAttribution, lambda m: explain(m, X.numpy(), 1)], ids=["cam", "crp", "quantus"]
)
def test_what_is_no_model_is_named(make: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        make(lambda x: x)


def test_a_model_without_parameters() -> None:
    attribution = crp.CondAttribution(nn.Sequential(nn.Flatten()))
    assert attribution.device == torch.device("cpu")


def _in_threads(work: Callable[[int], None]) -> list[BaseException]:
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("shared", [False, True])
def test_attributors_of_several_threads_wait_for_each_other(shared: bool) -> None:
    model = _net()
    one = ours.Gradient(model, ours.EpsilonPlus())
    expected = [one(X + n, torch.eye(4)[[n, n]])[1] for n in range(4)]
    logits = model(X)

    def work(number: int) -> None:
        for _ in range(8):
            attributor = one if shared else ours.Gradient(model, ours.EpsilonPlus())
            assert _close(attributor(X + number, torch.eye(4)[[number, number]])[1], expected[number], 1e-4)
            assert _close(model(X), logits)

    assert _in_threads(work) == []
    assert "forward" not in vars(model) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with one:
        assert _in_threads(work if shared else lambda number: None) == []  # registered by this thread, called by others


def test_a_context_refuses_a_second_thread_and_leaves_nothing_behind() -> None:
    model, second = _net(), ours.EpsilonPlusFlat()
    with ours.EpsilonPlus().context(model):
        raised = _in_threads(lambda number: second.register(model))
        assert len(raised) == 4 and all(isinstance(error, RuntimeError) for error in raised)
        assert "has registered one to this Sequential; give each thread a copy of the model" in str(raised[0])
        assert not second.handles
        with second.context(model):  # nested in one thread, as in zennit
            pass
    assert "forward" not in vars(model) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_composite_that_fails_to_register_leaves_nothing_behind() -> None:
    class Failing(ours.Canonizer):
        def apply(self, root_module: nn.Module) -> list[Any]:
            raise ValueError("no")

    model, changed = _net(), ours.AttributeCanonizer(lambda name, module: {"marked": 1} if name == "0" else None)
    with pytest.raises(ValueError, match="no"):
        ours.EpsilonPlus(canonizers=[changed, Failing()]).register(model)
    assert not hasattr(model[0], "marked")


def test_basic_hooks_have_the_arguments_of_zennits() -> None:
    layer, x = nn.Linear(5, 3).double(), torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    def relevance(hook: Any) -> Tensor:
        handles = hook.register(layer)
        output = layer(x)
        (found,) = torch.autograd.grad(output, x, torch.ones_like(output))
        handles.remove()
        return found

    assert torch.equal(relevance(ours.BasicHook()), relevance(zennit.core.BasicHook()))
    assert torch.equal(relevance(ours.BasicHook(stabilizer=0.2)), relevance(ours.Epsilon(0.2)))
    clip = ours.Stabilizer(0.2, clip=True)
    assert torch.equal(relevance(ours.BasicHook(stabilizer=clip).copy()), relevance(ours.Epsilon(clip)))
    with pytest.raises(TypeError, match="stabilizer must be a number or a callable"):
        ours.BasicHook(stabilizer="a")  # type: ignore[arg-type]
    positional = ours.BetaSmooth(10.0, None, "bias", [ours.SequentialMergeBatchNorm()])
    assert len(positional.canonizers) == 1
    assert type(zennit.composites.BetaSmooth(10.0, None, "bias", [])).__name__ == "BetaSmooth"


def test_converted_composites_go_with_copies_of_the_model() -> None:
    model = _net()
    names = ours.NameMapComposite([(["0", "3"], ours.ZPlus()), (["7"], ours.Epsilon()), (["2", "4"], ours.Pass())])
    for composite in (ours.EpsilonGammaBox(low=0.0, high=1.0), names):
        converted = ours.convert(composite, model)
        attribution = lrp.LRP(model, converted)
        expected = attribution(X, 1)[1].detach()
        assert not _close(lrp.LRP(model)(X, 1)[1].detach(), expected, 1e-2)
        copies = {
            "deepcopy": copy.deepcopy(attribution),
            "pickle": pickle.loads(pickle.dumps(attribution)),
            "copied model": lrp.LRP(copy.deepcopy(model), converted),
            "parallel": lrp.LRP(nn.DataParallel(model), converted),
            "inside": lrp.LRP(nn.Sequential(model), converted),
        }
        for name, copied in copies.items():
            assert torch.equal(copied(X, 1)[1].detach(), expected), name


def test_composites_of_maps_can_be_pickled_when_converted() -> None:
    model = _net()
    converted = ours.convert(ours.EpsilonPlus())
    again = pickle.loads(pickle.dumps(converted))
    assert torch.equal(lrp.LRP(model, again)(X, 1)[1], lrp.LRP(model, converted)(X, 1)[1])


def test_cams_can_be_copied() -> None:
    model = _net()
    cam = LRPCAM(model, [model[3]])
    for copied in (copy.deepcopy(cam), pickle.loads(pickle.dumps(cam))):
        assert copied.model is not model and abs(copied(X) - cam(X)).max() < 1e-6


def test_names_of_layers() -> None:
    assert crp.get_layer_names(_net(), [nn.Conv2d, nn.Linear]) == ["0", "3", "7"]
    assert crp.get_layer_names(_net(), []) == []


def test_objects_tell_what_they_are() -> None:
    model = _net()
    assert repr(ours.Gamma(0.5, zero_params="bias")) == "Gamma(gamma=0.5, stabilizer=1e-06, zero_params='bias')"
    assert repr(ours.ZBox(torch.zeros(1, 3, 1, 1), 1.0)).startswith("ZBox(low=<tensor of shape (1, 3, 1, 1)>, high=1.0")
    assert repr(ours.Epsilon(ours.Stabilizer(1e-3, clip=True))).startswith(
        "Epsilon(stabilizer=Stabilizer(epsilon=0.001, clip=True"
    )
    assert repr(ours.BasicHook()) == "BasicHook()"
    names = ours.NameMapComposite([(["0", "3"], ours.Flat())])
    assert repr(names) == "NameMapComposite(name_map={'0'|'3': Flat(stabilizer=1e-06)})"
    assert "Activation: Pass(), Sum: Norm(stabilizer=1e-06), AvgPool: Norm" in repr(ours.EpsilonPlus())
    mixed = ours.MixedComposite([names, ours.EpsilonPlus()])
    assert repr(mixed) == f"MixedComposite({names!r}, {ours.EpsilonPlus()!r})"
    assert repr(ours.Gradient(model)) == "Gradient(Sequential, None)"
    assert repr(ours.Gradient(model, names)) == f"Gradient(Sequential, {names!r})"
    assert "zennit" not in repr(ours.Gradient(model, zennit.composites.EpsilonPlus()))[:30]
    assert repr(crp.CondAttribution(model)) == "CondAttribution(Sequential)"
    assert repr(LRPCAM(model)) == "LRPCAM(Sequential, input)"
    assert repr(LRPCAM(model, [model[3], model])) == "LRPCAM(Sequential, 3, (model))"
