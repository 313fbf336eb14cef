"""The counter of operations by hand, and what a step at the shapes of 2B may launch and wait for.

What may only fall stands in results/step_cost.json under "most". If a test says that it fell:
`python tests/benchmarks/step_cost.py --lower`.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from tests.benchmarks.card import OnCard, card
from tests.benchmarks.operations import Operations, Tally
from tests.benchmarks.published import counted_step
from tests.benchmarks.step_cost import FILE, LENGTH, at_2b, held


def counts_of(function) -> dict[str, int]:
    with (counted := Operations()):
        function()
    return vars(counted.phases.get("other", Tally()))


def test_products_views_and_reads_by_hand():
    a, b = torch.ones(3, 4), torch.ones(5, 4)
    cases = {
        "product": (lambda: a @ b.T, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15), 1, 0),
        "in place": (
            lambda: torch.ones(3, 5).addmm_(a, b.T),
            120,
            4 * (15 + 15 + 12 + 20 + 15),
            2,
            0,
        ),
        "view": (lambda: a.view(4, 3).T[1:], 0, 0, 0, 0),
        "read": (lambda: a[0, 0].item(), 0, 0, 0, 1),
        "mask": (lambda: a[a > 0], 0, 12 * 4 + 12 + 12 + 2 * 12 * 4, 7, 1),
        "rows": (lambda: a.index_select(0, torch.tensor([1])), 0, 8 + 2 * 4 * 4, 1, 0),
        "repeated": (lambda: a.sum(0).expand(9, 4).exp(), 0, 4 * (12 + 4) + 4 * (4 + 36), 2, 0),
    }
    wrong = {}
    for name, (function, *expected) in cases.items():
        counted = counts_of(function)
        found = [counted[part] for part in ("flops", "bytes", "launches", "waits")]
        if found != expected:
            wrong[name] = (found, expected)
    assert not wrong


def test_causal_attention_has_half_the_pairs_and_a_mask_all():
    q, k = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 5, 8)
    mask = torch.zeros(3, 5)
    causal = counts_of(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    masked = counts_of(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask))
    assert causal["flops"] == 2 * 2 * 2 * (1 + 2 + 3) * 8
    assert masked["flops"] == 2 * 2 * 2 * (3 * 5) * 8


def test_an_inner_phase_takes_operations_from_the_outer_one():
    counted = Operations()
    x = torch.ones(2)
    with counted, counted.phase("outer"):
        x.exp()
        with counted.phase("inner"):
            x.exp().exp()
        x.exp()
    assert {name: tally.launches for name, tally in counted.phases.items()} == {
        "outer": 2,
        "inner": 2,
    }


def test_the_card_counts_waits_and_copies_and_not_what_the_host_does():
    counted = OnCard(drawn=7)
    with card(counted):
        host = torch.arange(4) + 1  # real, and not counted
        x = torch.ones(4, 4, device="cuda")
        assert x.device.type == "cuda"
        assert x.is_cuda
        assert not counted.places.waits
        x[host - 1].sum().item()  # an index goes over, a sum comes back
        x.cpu()
        x.copy_(torch.ones(4, 4))
        bool((x > 0).all())
        (x > 0).nonzero()
        torch.repeat_interleave(host.to(x.device))
        torch.cuda.synchronize()
    assert host.tolist() == [1, 2, 3, 4]
    assert sum(counted.places.copies.values()) == 4
    assert sum(counted.places.waits.values()) == 6


def test_the_card_takes_a_causal_mask_without_numbers_for_flash():
    counted = OnCard(drawn=1)
    with card(counted):
        q, k = (torch.ones(1, 2, t, 8, device="cuda", dtype=torch.bfloat16) for t in (3, 5))
        F.scaled_dot_product_attention(q, k, k, attn_mask=causal_lower_right(3, 5))
    assert counted.places.launches["_scaled_dot_product_flash_attention"] == 1
    assert counted.phases["other"].flops == 2 * 2 * 2 * (3 + 4 + 5) * 8


def test_the_card_refuses_tensors_of_two_places():
    with card(OnCard(drawn=1)), pytest.raises(RuntimeError):
        torch.ones(2, 2, device="cuda") @ torch.ones(2, 2)


@pytest.fixture(scope="module")
def step():
    """A step of the recipe medvlm-r1 at G 8, with two layers of the 28: all of them are alike."""
    return counted_step(8, LENGTH, 2, checkpointing=False)


@pytest.mark.slow
def test_launches_waits_and_copies_only_fall(step):
    most, found = json.loads(FILE.read_text())["most"], held(*step)
    more = {name: (found[name], "at most", n) for name, n in most.items() if found[name] > n}
    assert not more, "see `waits by line` and the others of step_cost.py"
    fell = {name: (found[name], "was", n) for name, n in most.items() if found[name] < 0.98 * n}
    assert not fell, "python tests/benchmarks/step_cost.py --lower"


@pytest.mark.slow
def test_every_operation_of_a_step_is_in_the_table_of_kernels(step):
    counted, token_step = step
    unknown = sorted(counted.places.unknown + token_step.places.unknown)
    assert unknown == [], "add them to tests/gpu/kernels.json"


@pytest.mark.slow
def test_products_are_few_and_never_fewer_than_the_least():
    phases = at_2b(8, checkpointing=False)["phases"]
    times = {name: one.get("times flops", 1.0) for name, one in phases.items()}
    assert all(1.0 <= found <= 1.1 for found in times.values()), times


@pytest.mark.slow
def test_all_layers_are_alike():
    phases = {n: counted_step(8, LENGTH, n, True)[0].phases for n in (2, 3, 5)}
    wrong = {}
    for name in ("prefill", "decode", "reference", "update"):
        two, three, five = (vars(phases[n][name]) for n in (2, 3, 5))
        expected = {part: two[part] + 3 * (three[part] - two[part]) for part in two}
        # The check of the gradient takes lists of tensors, some to a kernel.
        if any(abs(five[part] - n) > 2 for part, n in expected.items()):
            wrong[name] = (five, expected)
    assert not wrong
