"""A rehearsal refuses what CUDA refuses: each kind of mistake is made once. It counts the rest."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sampling.cuda_graph import Graph
from tests.rehearsal import counts
from tests.rehearsal.card import rehearsed
from tests.rehearsal.claimed import CUDA, Claimed, Refused

Act = Callable[[Tensor], object]


def on_card(*shape: int) -> Tensor:
    return torch.ones(*shape, device=CUDA)


MISTAKES: dict[str, tuple[Act, str]] = {
    "two devices": (lambda x: x + torch.ones(4), "same device"),
    "two devices in a product": (lambda x: F.linear(x, torch.ones(2, 4)), "same device"),
    "two devices in one list": (lambda x: torch.cat([x, torch.ones(4)]), "same device"),
    "a mask on the CPU": (lambda x: x.masked_fill(torch.ones(4) > 0, 0.0), "same device"),
    "a CPU tensor by an index on the card": (lambda x: torch.ones(4)[x.long()], "by an index"),
    "a value on another device": (lambda x: x.__setitem__(x.long(), torch.ones(4)), "the value"),
    "numpy": (lambda x: x.numpy(), "to numpy"),
    "numpy, by itself": (lambda x: np.asarray(x), "to numpy"),
}


def test_two_devices_and_numpy_are_refused() -> None:
    with rehearsed("sm80"):
        for name, (act, message) in MISTAKES.items():
            x = on_card(4)
            with pytest.raises((Refused, TypeError), match=message):
                print(name, act(x))


ALLOWED: dict[str, Act] = {
    "a number on the CPU": lambda x: x + torch.tensor(2.0),
    "an index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "a copy from the CPU": lambda x: x.copy_(torch.ones(4)),
    "a value from the CPU": lambda x: x.__setitem__(slice(2), torch.ones(2)),
    "a copy to the CPU": lambda x: torch.ones(4).copy_(x),
    "numpy of a copy": lambda x: x.cpu().numpy(),
}


def test_what_cuda_allows_is_allowed() -> None:
    with rehearsed("sm80"):
        for act in ALLOWED.values():
            act(on_card(4))


def test_a_tensor_keeps_its_device() -> None:
    with rehearsed("sm80"):
        x, host = on_card(4), torch.ones(4)
        kept = [x + 1, x[1:], x.float(), x.to(torch.float64), x.new_zeros(2), torch.zeros_like(x)]
        kept += [host.to(x), host.to("cuda"), *x.split(2), x.max(dim=0).values, x.detach()]
        assert {(found.device, found.is_cuda, found.is_cpu) for found in kept} == {
            (CUDA, True, False)
        }
        left = [x.cpu(), x.to("cpu"), x.to(host), host + 1, host.new_zeros(2), torch.ones(2)]
        left += [torch.zeros_like(x, device="cpu")]
        assert not any(found.is_cuda or isinstance(found, Claimed) for found in left)


COUNTED: dict[str, tuple[Act, dict[str, int]]] = {
    "item": (lambda x: x[0].item(), {counts.WAITS: 1}),
    "a branch": (lambda x: bool(x[0] > 0), {counts.WAITS: 1}),
    "an int": (lambda x: int(x[0]), {counts.WAITS: 1}),
    "nonzero": (lambda x: x.nonzero(), {counts.WAITS: 1}),
    "a boolean index": (lambda x: x[x > 0], {counts.WAITS: 1}),
    "rows written by a boolean index": (lambda x: _write(x, x > 0, 2 * x), {counts.WAITS: 1}),
    "a number written by a boolean index": (lambda x: _write(x, x > 0, 2.0), {}),
    "a shape from a tensor": (
        lambda x: x.repeat_interleave(torch.tensor([1, 1, 1, 1], device=CUDA)),
        {counts.WAITS: 1, counts.TO_DEVICE: 1},
    ),
    "a row by a number on the card": (lambda x: x[x.long()[0]], {counts.WAITS: 1}),
    "tolist": (lambda x: x.tolist(), {counts.TO_HOST: 1}),
    "a text": (lambda x: f"{x[0]:.1f}", {counts.TO_HOST: 1}),
    "cpu": (lambda x: x.cpu(), {counts.TO_HOST: 1}),
    "to the CPU": (lambda x: x.to("cpu"), {counts.TO_HOST: 1}),
    "a tensor of Python numbers": (
        lambda x: torch.tensor([1, 2], device=x.device),
        {counts.TO_DEVICE: 1},
    ),
    "a tensor like one on the card": (lambda x: x.new_tensor([1.0]), {counts.TO_DEVICE: 1}),
    "a tensor of numbers on the card": (lambda x: torch.tensor([x[0], x[1]]), {counts.WAITS: 2}),
    "to the card": (lambda x: torch.ones(4).to(x.device), {counts.TO_DEVICE: 1}),
    "an index on the CPU": (lambda x: x[torch.tensor([0])], {counts.TO_DEVICE: 1}),
    "a copy from the CPU": (lambda x: x.copy_(torch.ones(4)), {counts.TO_DEVICE: 1}),
    "a synchronisation": (lambda x: torch.cuda.synchronize(), {counts.SYNCHRONISED: 1}),
}
NOT_IN_A_GRAPH = {**COUNTED, "a number on the CPU": (lambda x: x + torch.tensor(2.0), None)}
NOT_IN_A_GRAPH.pop("a number written by a boolean index")
HOST_SIDE = (counts.WAITS, counts.TO_HOST, counts.TO_DEVICE, counts.SYNCHRONISED)


def _write(x: Tensor, index: Tensor, value: object) -> None:
    x[index] = value


def test_each_wait_and_copy_is_counted_with_its_line() -> None:
    wrong = {}
    for name, (act, expected) in COUNTED.items():
        with rehearsed("sm80") as rehearsal:
            act(on_card(4))
        found = {kind: rehearsal.counts.total(kind) for kind in HOST_SIDE}
        lines = {place for kind in HOST_SIDE for place in rehearsal.counts.lines(kind)}
        if found != dict.fromkeys(HOST_SIDE, 0) | expected or "elsewhere" in lines:
            wrong[name] = found, lines
    assert wrong == {}


def test_each_wait_and_copy_is_refused_while_a_graph_is_recorded() -> None:
    missed = []
    for name, (act, _) in NOT_IN_A_GRAPH.items():
        with rehearsed("sm80"):
            x, calls = on_card(4), []

            def step(act: Act = act, x: Tensor = x, calls: list[int] = calls) -> None:
                calls.append(1)
                if len(calls) > 1:  # the run before the capture may wait
                    act(x)

            try:
                Graph(step, CUDA, None)
                said = "nothing"
            except Refused as error:
                said = str(error)
            if "capturing" not in said or "test_refusals.py" not in said:
                missed.append((name, said))
    assert missed == []


def test_a_product_has_a_wider_result_than_its_half_factors() -> None:
    with rehearsed("sm80") as rehearsal:
        x = torch.randn(3, 64, device=CUDA).bfloat16()
        found = torch.mm(x, x.T, out_dtype=torch.float32)
        torch.testing.assert_close(found.cpu(), (x.float() @ x.float().T).cpu())
        with pytest.raises(TypeError, match="out_dtype"):
            torch.mm(x.double(), x.double().T, out_dtype=torch.float32)
    assert rehearsal.counts.names(counts.KERNELS)["mm"] == 2  # that of the comparison too


def test_a_graph_runs_its_operations_on_the_same_memory_and_counts_as_one_launch() -> None:
    with rehearsed("sm80") as rehearsal:
        x = on_card(4)
        graph = Graph(lambda: x.mul_(2), CUDA, None)
        assert x.tolist() == [2.0] * 4  # the run before the capture; recording executes nothing
        graph.replay()
        graph.replay()
        assert x.tolist() == [8.0] * 4
    found = rehearsal.counts
    assert (found.total(counts.REPLAYS), found.total(counts.CAPTURED)) == (2, 1)
    assert found.names(counts.KERNELS)["mul_"] == 1


def test_a_graph_that_failed_to_record_cannot_be_replayed() -> None:
    with rehearsed("sm80"):
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(Refused), torch.cuda.graph(graph):
            on_card(4).cpu()
        with pytest.raises(RuntimeError, match="without a preceding successful capture"):
            graph.replay()


def test_a_module_moves_with_its_tied_weights_and_trains() -> None:
    with rehearsed("sm80") as rehearsal:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        second.bias = nn.Parameter(first.bias.data)  # the same memory
        module = nn.Sequential(first, second).to("cuda")
        assert module[0].weight is module[1].weight
        assert module[0].bias.data_ptr() != module[1].bias.data_ptr()
        assert all(isinstance(parameter, Claimed) for parameter in module.parameters())
        optimizer = torch.optim.AdamW(module.parameters())
        module(on_card(2, 4)).sum().backward()
        optimizer.step()
        assert isinstance(module[0].weight.grad, Claimed)
        with pytest.raises(Refused):
            module(torch.ones(2, 4))
    # One kernel for all parameters, as CUDA does it.
    launched = rehearsal.counts.names(counts.KERNELS)
    assert (launched["_foreach_addcdiv_"], launched["addcdiv_"]) == (1, 0)


def test_a_card_that_is_not_there_and_one_beside_the_models_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with rehearsed("sm80"):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.ones(1, device="cuda:2")
        module = nn.Linear(4, 4).to("cuda:1")
        assert module.weight.device == torch.device("cuda", 1)
        with pytest.raises(Refused, match="cuda:0 beside the model's cuda:1"):
            torch.ones(1, device="cuda")
        torch.cuda.set_device(1)
        assert module(torch.ones(2, 4, device="cuda")).device == torch.device("cuda", 1)


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_of_it_is_left_afterwards(failing: bool) -> None:
    def seen() -> tuple[object, ...]:
        names = [vars(torch.cuda)[name] for name in sorted(vars(torch.cuda))]
        return *names, nn.Module.to, torch.backends.cuda.cudnn_sdp_enabled(), torch.ones(1).device

    before = seen()
    try:
        with rehearsed("sm80"):
            torch.backends.cuda.enable_cudnn_sdp(False)
            if failing:
                on_card(4) + torch.ones(4)
    except Refused:
        assert failing
    assert seen() == before
