"""The policy of models/ and those of the tests have the signatures that the algorithm relies on."""

import inspect
from collections.abc import Callable
from typing import Any

from grpo.interfaces import Policy
from models import policy as models_policy
from tests.grpo.shared import replay
from tests.grpo.test_oracle import Table


def members() -> dict[str, Any]:
    """The public methods of the protocol, by name."""
    return {
        name: member
        for name, member in vars(Policy).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def parameters(function: Callable[..., Any]) -> list[tuple[str, str, Any]]:
    """Name, kind and default of each parameter, without self."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, p.default) for p in found if p.name != "self"]


def differences(policy: Any) -> list[str]:
    """The members of a policy whose parameters are not those of the protocol."""
    return [
        f"{name}: {parameters(getattr(policy, name))}, not {parameters(member)}"
        for name, member in members().items()
        if hasattr(policy, name) and parameters(getattr(policy, name)) != parameters(member)
    ]


def test_the_protocol_names_all_that_the_loop_calls():
    assert {"encode", "sample", "logprobs", "reference", "passes", "decode"} <= members().keys()


def test_the_policy_has_every_member_with_the_protocols_parameters(trained):
    assert [name for name in Policy.__annotations__ if not hasattr(trained, name)] == []
    assert [name for name in members() if not hasattr(models_policy.Policy, name)] == []
    assert differences(models_policy.Policy) == []


def test_the_policies_of_the_tests_have_the_protocols_parameters(fresh):
    replayed = fresh()
    replay(replayed, {})
    assert differences(Table) == []
    assert differences(replayed) == []


def test_another_name_kind_or_default_is_a_difference():
    class Renamed:
        def encode(self, questions, max_completion_length=0): ...

    class Positional:
        def sample(self, prompts, group_size, keys, temperature, max_completion_length): ...

    class Without:
        def encode(self, examples, max_completion_length): ...

    assert [len(differences(policy)) for policy in (Renamed, Positional, Without)] == [1, 1, 1]
