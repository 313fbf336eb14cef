"""Our forward of the language model against transformers', and its derivatives against autograd."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import linear as products
from models.attention import TreeAttention
from models.layers import Layers, _RMSNorm, _SwiGLU
from models.linear import _Frozen, _WithLoRA
from tests.conftest import randomise
from tests.models.each import failures
from tests.models.plain import QUESTIONS
from tests.models.test_tree import ragged_groups


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def near(ours, theirs, tolerance=1e-5):
    for mine, other in zip(ours, theirs, strict=True):
        assert other.norm() > 1e-4, "nothing to compare"
        assert (mine - other).norm() <= tolerance * other.norm()


def embedded(policy):
    """The prompts, and the embeddings of each (P, hidden), which want a gradient."""
    prompts = policy.encode(QUESTIONS)
    return prompts, [policy.embed(p.input_ids, p.features).requires_grad_() for p in prompts]


def ours(policy, prompts, embeds, wanted=None, checkpointing=False):
    """(T, hidden), or of the wanted ones, all prompts side by side."""
    layers, x = Layers(policy.language_model, checkpointing), torch.cat(embeds)
    rope = layers.rope(torch.cat([p.position_ids for p in prompts], dim=1), x)
    return layers(x, rope, TreeAttention([[len(part)] for part in embeds]), wanted)


def theirs(policy, prompts, embeds):
    """(T, hidden): transformers' own, one prompt at a time."""
    found = [
        policy.language_model(inputs_embeds=x[None], position_ids=p.position_ids[:, None])
        for p, x in zip(prompts, embeds, strict=True)
    ]
    return torch.cat([part.last_hidden_state[0] for part in found])


def gradients(hidden, policy, embeds):
    """Of the embeddings and of all trained weights, when every number counts differently."""
    slope = normal(*hidden.shape, seed=1, dtype=torch.float32)
    return torch.autograd.grad((hidden * slope).sum(), [*embeds, *policy.parameters()])


# Against transformers


@pytest.mark.parametrize("last_alone", [False, True])
def test_hidden_states_and_gradients_are_transformers(trained, last_alone):
    prompts, embeds = embedded(trained)
    ends = torch.tensor([len(part) for part in embeds]).cumsum(0) - 1
    found = ours(trained, prompts, embeds, ends if last_alone else None)
    expected = theirs(trained, prompts, embeds)
    expected = expected[ends] if last_alone else expected
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    near(gradients(found, trained, embeds), gradients(expected, trained, embeds))


def test_without_gradients_the_numbers_are_the_same_bits(trained):
    prompts, embeds = embedded(trained)
    expected = ours(trained, prompts, embeds)
    with torch.no_grad():
        assert torch.equal(ours(trained, prompts, embeds), expected)


@torch.no_grad()
def test_without_an_adapter_it_is_the_base(fresh, trained):
    prompts, embeds = embedded(trained)
    with trained.base():
        found = ours(trained, prompts, embeds)
        torch.testing.assert_close(found, theirs(trained, prompts, embeds), atol=1e-5, rtol=1e-5)
    assert torch.equal(found, ours(fresh(), prompts, embeds))  # whose every B is zero
    assert (found - ours(trained, prompts, embeds)).abs().max() > 0.01


def test_checkpointing_changes_no_bit_and_keeps_less(trained):
    prompts, embeds = embedded(trained)
    found, kept = [], []
    for checkpointing in (False, True):
        sizes = []
        pack = lambda tensor, to=sizes: to.append(tensor.nbytes) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = ours(trained, prompts, embeds, checkpointing=checkpointing)
        kept.append(sum(sizes))
        found.append([hidden, *gradients(hidden, trained, embeds)])
    assert all(map(torch.equal, *found))
    assert kept[1] < 0.2 * kept[0]


# Derivatives against plain autograd

W, A, B, BIAS = normal(5, 7), normal(3, 7), normal(5, 3, seed=2), normal(5)
WEIGHT = normal(7, seed=3)


def rms(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


FUNCTIONS = {
    "with LoRA": (
        lambda x, a, b: _WithLoRA.apply(x, W, BIAS, a, b),
        lambda x, a, b: x @ W.T + BIAS + x @ a.T @ b.T,
        (normal(4, 7, seed=4), A, B),
    ),
    "with LoRA, without a bias": (
        lambda x, a, b: _WithLoRA.apply(x, W, None, a, b),
        lambda x, a, b: x @ W.T + x @ a.T @ b.T,
        (normal(4, 7, seed=4), A, B),
    ),
    "with LoRA on what needs no gradient": (
        lambda a, b: _WithLoRA.apply(WEIGHT[None], W, BIAS, a, b),
        lambda a, b: WEIGHT[None] @ W.T + BIAS + WEIGHT[None] @ a.T @ b.T,
        (A, B),
    ),
    "frozen": (
        lambda x: _Frozen.apply(x, W, BIAS, False),
        lambda x: x @ W.T + BIAS,
        (normal(4, 7, seed=4),),
    ),
    "SwiGLU": (
        _SwiGLU.apply,
        lambda x: x[:, :7] * x[:, :7].sigmoid() * x[:, 7:],
        (torch.cat([3 * normal(4, 7, seed=4), normal(4, 7, seed=5)], dim=1),),
    ),
    "RMSNorm": (  # which computes in float32, whatever it is given
        lambda x: _RMSNorm.apply(x, WEIGHT.float(), 1e-3),
        lambda x: rms(x, WEIGHT.float(), 1e-3),
        (normal(4, 7, seed=4, dtype=torch.float32) * torch.tensor([[0.01], [0.1], [1], [30]]),),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_written_derivative_is_autograds(name):
    function, plain, values = FUNCTIONS[name]
    values = [value.clone().requires_grad_() for value in values]
    found, expected = function(*values), plain(*values)
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    slope = normal(*expected.shape, seed=6, dtype=expected.dtype)
    of_found, of_expected = (
        torch.autograd.grad((part * slope).sum(), values) for part in (found, expected)
    )
    for mine, other in zip(of_found, of_expected, strict=True):
        for row, correct in zip(mine, other, strict=True):  # small rows count like large ones
            near([row], [correct], tolerance)


# bfloat16


@pytest.fixture
def slow_bfloat16(monkeypatch):
    """As on a CPU without instructions for bfloat16."""
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)


class Products(TorchDispatchMode):
    """The dtypes that matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_product = "mm" in func.__name__ or "linear" in func.__name__
        # In the oldest transformers admitted RoPE's angles are products of an inner dimension of 1.
        if is_product and args[0].shape[-1] > 1:
            self.seen.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def shapes(tokens):
    return (13, 8), (tokens, 8), (tokens, 13)


def rounded(exact):
    """(number rounded once, distance between neighbours of its size) in bfloat16."""
    return exact.to(torch.bfloat16), exact.abs() * 2.0**-7


@pytest.mark.parametrize("bias", [None, normal(48, seed=9, dtype=torch.bfloat16)])
def test_bfloat16_products_are_float32_ones_rounded_once(slow_bfloat16, monkeypatch, bias):
    x, dy = (normal(40, n, seed=n, dtype=torch.bfloat16) for n in (64, 48))
    weight = normal(48, 64, seed=8, dtype=torch.bfloat16)
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    slope = dy.float() @ weight.float()
    assert torch.equal(products.linear(x, weight, bias), rounded(exact)[0])
    assert torch.equal(products.linear_backward(dy, weight), rounded(slope)[0])
    with Products() as widened:
        products.linear(x, weight, bias), products.linear_backward(dy, weight)
    monkeypatch.setattr(products, "has_bfloat16", lambda: True)
    with Products() as by_instruction:
        found = products.linear(x, weight, bias), products.linear_backward(dy, weight)
    assert (widened.seen, by_instruction.seen) == ({torch.float32}, {torch.bfloat16})
    for part, expected in zip(found, (exact, slope), strict=True):
        near_zero = 1e-5  # where terms cancel, their order shows
        assert ((part.float() - expected).abs() <= rounded(expected)[1] + near_zero).all()


def test_blocks_and_few_tokens_are_the_same_product(slow_bfloat16, monkeypatch):
    """Few tokens are 7 or less here, and a block has 5 of the 13 rows of a weight."""
    for name, value in {"FEW": 7, "LARGE": 1, "BLOCK_OF_FEW": 40, "BLOCK": 40}.items():
        monkeypatch.setattr(products, name, value)
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    assert not failures(check_products, itertools.product(dtypes, (1, 7, 20), (False, True)))


def check_products(dtype: torch.dtype, tokens: int, bias: bool) -> None:
    weight, x, dy = (normal(*part, seed=i).to(dtype) for i, part in enumerate(shapes(tokens)))
    added = normal(13, seed=4).to(dtype) if bias else None
    exact = x.double() @ weight.double().T + (added.double() if bias else 0)
    close = {"atol": 2.0**-7, "rtol": 2.0**-7} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(products.linear(x, weight, added), exact.to(dtype), **close)
    slope = (dy.double() @ weight.double()).to(dtype)
    torch.testing.assert_close(products.linear_backward(dy, weight), slope, **close)


def test_a_pass_in_bfloat16_is_the_same_either_way(fresh, monkeypatch, slow_bfloat16, trained):
    half = randomise(fresh(dtype="bfloat16"))
    groups, found, seen = ragged_groups(half), [], []
    exact = trained.logprobs(groups, 1.0)[0]
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(exact.sum(), trained.parameters())])
    for has in (False, True):
        monkeypatch.setattr(products, "has_bfloat16", lambda has=has: has)
        with Products() as mode:
            logprobs, _ = half.logprobs(groups, 1.0)
            slopes = torch.autograd.grad(logprobs.sum(), half.parameters())
        seen.append(mode.seen)
        found.append((logprobs.detach(), torch.cat([g.flatten() for g in slopes])))
    assert torch.float32 in seen[0] - seen[1]
    (wide, wide_slope), (narrow, narrow_slope) = found
    assert (wide - narrow).abs().max() < 0.05
    for logprobs, slope in found:
        assert (logprobs - exact).abs().mean() < 0.05
        assert torch.cosine_similarity(slope, truth, dim=0) > 0.99
    assert torch.cosine_similarity(wide_slope, narrow_slope, dim=0) > 0.999


@torch.no_grad()
def test_widening_reaches_the_linears_of_any_module(slow_bfloat16):
    module = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4, bias=False))
    for i, p in enumerate(module.parameters()):
        p.copy_(normal(*p.shape, seed=i))
    module, x = module.bfloat16(), normal(5, 6, 16, seed=7, dtype=torch.bfloat16)
    first, _, last = module
    inner = F.linear(x.float(), first.weight.float(), first.bias.float()).bfloat16()
    expected = F.linear(F.gelu(inner).float(), last.weight.float()).bfloat16()
    with Products() as mode, products.Widening():
        found = module(x)
    assert torch.equal(found, expected)
    assert mode.seen == {torch.float32}
    with Products() as mode:
        module(x)
    assert mode.seen == {torch.bfloat16}
