"""What a scenario is said to take, against processor times that were measured, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncsim.cells import cells
from asyncsim.cost import cost
from asyncsim.scenario import Scenario, build, load

SCENARIOS = Path(__file__).parent.parent / "scenarios"

#: Seconds of processor time on a core of the machine for which the constants of `asyncsim.cost` are rough.
MEASURED = {
    "quickstart": 0.83,
    "deep_linear": 5.0,
    "gossip": 25.7,
    "autoencoder_noise": 70.2,
    "compression_digits": 95.2,
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_within_a_factor_of_two_of_what_was_measured(name: str) -> None:
    scenario = load(SCENARIOS / f"{name}.toml")
    every = [cell.scenario for cell in cells(scenario, name=name)] if scenario.sweep else [scenario]
    said = sum(cost(one).seconds for one in every)
    assert MEASURED[name] / 2 <= said <= MEASURED[name] * 2
    per_update = scenario.policy.gradients_per_update(scenario.workers)
    if per_update > 1:  # the companion: were an update a single gradient, it would be far too little
        assert said / per_update < MEASURED[name] / 2


DIGITS = {"kind": "softmax", "dataset": "digits", "batch": 16}
ALONE = {"kind": "compressed_sgd", "step": 0.1, "compressor": {"kind": "identity"}}


def made(
    *,
    policy: str = "sync",
    workers: int = 10,
    problem: Any = DIGITS,
    method: Any = None,
    every: int = 10**6,
    **run: Any,
) -> Scenario:
    """Return a scenario that measures next to nothing, unless asked to."""
    return build(
        {
            "cluster": {"workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}]},
            "policy": {"kind": policy},
            "problem": problem,
            "method": method or {"kind": "sgd", "step": 0.1},
            "run": {"updates": 5000, **run},
            "metrics": {"every": every},
        }
    )


#: Two scenarios, and how many times as long the second takes, at least and at most.
COMPARED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[float, float]]] = {
    "gradients of an update": ({"policy": "async"}, {"policy": "sync"}, (9.0, 11.0)),
    "replicas of a batch": ({}, {"replicas": 10}, (1.5, 6.0)),
    "replicas one by one": ({"method": ALONE}, {"method": ALONE, "replicas": 10}, (9.9, 10.1)),
    "one by one": ({"replicas": 100}, {"replicas": 100, "method": ALONE}, (3.0, 100.0)),
    "samples of a gradient": ({}, {"problem": {**DIGITS, "batch": 1600}}, (3.0, 50.0)),
    "the whole data set": ({}, {"problem": {"kind": "softmax", "dataset": "digits"}}, (3.0, 50.0)),
    "steps of a message": (
        {"method": {"kind": "local_sgd", "step": 0.1, "local_steps": 1}},
        {"method": {"kind": "local_sgd", "step": 0.1, "local_steps": 20}},
        (10.0, 20.0),
    ),
    "metrics": ({}, {"every": 1}, (1.2, 10.0)),
}


@pytest.mark.parametrize("what", COMPARED)
def test_the_estimate_grows_with(what: str) -> None:
    one, other, (least, most) = COMPARED[what]
    ratio = cost(made(**other)).seconds / cost(made(**one)).seconds
    assert least <= ratio <= most
