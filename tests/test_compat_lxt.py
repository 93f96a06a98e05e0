"""lrpkernels.compat.lxt: gradients times inputs as AttnLRP relevance, against LRP and against lxt's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lxt_block import Lxt
from test_composite_choices import Block
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat.lxt import monkey_patch


def _net() -> Block:
    torch.manual_seed(0)
    return Block(False, nn.LayerNorm, F.silu).double().eval()


def _relevance(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    net(x)[:, 1].sum().backward()
    assert x.grad is not None
    return x.detach() * x.grad


@pytest.mark.parametrize("method", ["AttnLRP", "CPLRP"])
def test_relevance_equals_lxts(method: str) -> None:
    net, x = _net(), torch.randn(3, 5, 6, dtype=torch.float64)
    plain = _relevance(net, x)
    handle = monkey_patch(net, attention=getattr(lrp, method)())
    found = _relevance(net, x)
    handle.remove()
    leaf = x.clone().requires_grad_()
    logits = Lxt(net, cp=method == "CPLRP")(leaf)
    expected = torch.autograd.grad(logits, leaf, F.one_hot(torch.tensor([1] * 3), 4) * logits.detach())[0]
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-4 * scale  # lxt stabilizes norms by 1e-6, whatever their sign
    assert float((plain - expected).abs().max()) > 0.1 * scale
    assert torch.equal(_relevance(net, x), plain) and "forward" not in vars(net)


def test_a_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    model = transformers.LlamaForCausalLM(config).double().eval()
    ids = torch.tensor([[3, 14, 15, 9, 26]])
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    handle = monkey_patch(model)
    model(inputs_embeds=embeds, use_cache=False).logits[0, -1, 7].backward()
    found = (embeds * embeds.grad).sum(-1).detach()
    expected = lrp.LRP(model, lrp.Epsilon(1e-10))({"inputs_embeds": embeds.detach()}, [(-1, 7)], use_cache=False)[1]
    handle.remove()
    torch.testing.assert_close(found, expected["inputs_embeds"][:, 0].sum(-1).detach())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module, got module"):
        monkey_patch(torch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patch_map"):
        monkey_patch(nn.ReLU(), {nn.ReLU: print})
