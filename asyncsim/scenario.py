"""Scenario files: TOML in, one frozen, resolved, hashed `Scenario` out, or one clear error.

The sections of a file are the classes below; the laws, policies, problems and methods in them are the classes of their
own modules. `docs/scenario.md` describes the file for its users.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from asyncsim.durations import AnyLaw, Constant, Law
from asyncsim.methods import AnyMethod
from asyncsim.network import Network
from asyncsim.policies import UNLIMITED, AnyPolicy, Async
from asyncsim.problems import AnyProblem, LeastSquares, Problem
from asyncsim.problems.base import complete
from asyncsim.spec import File, Positive, Spec, closest, first_error, refuse, shown
from asyncsim.staleness_laws import AnyStaleness

MAX_WORKERS = 10_000_000
MAX_REPLICAS = 10_000_000
MAX_UPDATES = 2**48

#: What can be measured on the model at a version.
MODEL_METRICS = ("loss", "suboptimality", "grad_norm", "distance", "accuracy", "regret")
#: What can be measured on a whole run, from its replicas.
RUN_METRICS = ("momentum", "rate")


class ScenarioError(ValueError):
    """Bad input: one sentence, on one line, that names the file, the key, the value and what is allowed."""

    def __init__(self, sentence: str):
        super().__init__(" ".join(sentence.split()))


class WorkerGroup(Spec):
    """`count` workers that share a `service` law (time per gradient)."""

    count: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    service: AnyLaw


class Server(Spec):
    """The server: its `service` time per update, and whether it replies after or before it applies one."""

    service: AnyLaw = Constant(value=0.0)
    reply: Literal["after_apply", "before_apply"] = "after_apply"


class Cluster(Spec):
    """The machines: groups of workers in order, a server, and the network between them (instant if left out)."""

    time_unit: str = "s"
    workers: Annotated[tuple[WorkerGroup, ...], Field(strict=False, min_length=1)]
    server: Server = Server()
    network: Network | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Cluster:
        if self.size > MAX_WORKERS:
            raise refuse(f"at most {MAX_WORKERS:,} workers, got {self.size:,}")
        if self.network is not None and self.network.topology != "star":
            self.network.routes(self.size)
        return self

    @property
    def size(self) -> int:
        """Number of workers M."""
        return sum(group.count for group in self.workers)

    @property
    def laws(self) -> list[Law]:
        """The service law of each worker."""
        return [group.service for group in self.workers for _ in range(group.count)]


class RunSettings(Spec):
    """Where the trace comes from, and how long and how often to run.

    The run ends at `updates`, at `time`, or when `stop_when` (such as "loss < 0.1") holds, whichever comes first.
    Summaries leave out the first `warmup` updates.
    """

    source: Literal["simulate", "synthetic", "trace"] = "simulate"
    engine: Literal["auto", "simpy"] = "auto"
    staleness: AnyStaleness | None = None
    trace: File | None = None
    updates: Annotated[int, Field(ge=1, le=MAX_UPDATES)] | None = None
    time: Positive | None = None
    stop_when: str | None = None
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    warmup: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> RunSettings:
        if (self.source == "synthetic") != (self.staleness is not None):
            raise refuse("'staleness' (a law) goes with source = 'synthetic', and the other way round")
        if (self.source == "trace") != (self.trace is not None):
            raise refuse("'trace' (a file) goes with source = 'trace', and the other way round")
        if self.source != "trace" and self.updates is None and self.time is None:
            raise refuse("give 'updates' or 'time': the run must end")
        if self.source == "synthetic" and self.updates is None:
            raise refuse("a synthetic trace has no clock: give 'updates'")
        if self.updates is not None and self.warmup >= self.updates:
            raise refuse(f"warmup must be below updates = {self.updates}, got {self.warmup}")
        if self.stop_when is not None:
            parse_condition(self.stop_when)
        return self


class Metrics(Spec):
    """What to measure and when: every so many updates, or at this many points of a time grid.

    `record` names metrics of the model (loss, suboptimality, grad_norm, distance, accuracy, regret) and of the run
    (momentum: fitted from the replicas; rate: decay of the root mean square distance to the minimizer). `target`, such
    as "loss < 0.5", asks for the time and the number of updates to reach it.
    """

    every: Annotated[int, Field(ge=1)] | None = None
    at_times: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    record: Annotated[
        tuple[Literal["loss", "suboptimality", "grad_norm", "distance", "accuracy", "regret", "momentum", "rate"], ...],
        Field(strict=False),
    ] = ("loss",)
    target: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Metrics:
        if self.every is not None and self.at_times is not None:
            raise refuse("give either 'every' or 'at_times', not both")
        if self.target is not None:
            metric, _, _ = parse_condition(self.target)
            if metric not in self.record:
                raise refuse(f"target watches '{metric}', which 'record' does not list")
        return self

    @property
    def of_model(self) -> tuple[str, ...]:
        """The metrics that are measured at versions."""
        return tuple(name for name in self.record if name in MODEL_METRICS)


def parse_condition(text: str) -> tuple[str, str, float]:
    """Return (metric, "<" or ">", bound) of a condition such as "loss < 0.1"."""
    match = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([-+.\deE]+)\s*", text)
    try:
        if match and match[1] in MODEL_METRICS:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise refuse(f"must read like 'loss < 0.1', with one of {', '.join(MODEL_METRICS)}; got {text!r}")


class Sweep(Spec):
    """Many cells from one file: a grid over dotted paths.

    `grid` holds the axes (in a file they stand in [sweep] itself): lists of values, or ``{ start, stop, num }``. `zip`
    lists groups of paths that move together. `exclude` lists combinations to leave out. `tune` names swept
    paths whose best values are wanted for each combination of the others, judged `by` the final loss, suboptimality,
    distance, regret, the rate, or the time or updates to the target (the smaller the better).
    """

    grid: dict[str, Any] = Field(default_factory=dict)
    zip: Annotated[tuple[dict[str, list[Any]], ...], Field(strict=False)] = ()
    exclude: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    tune: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    by: Literal["loss", "suboptimality", "distance", "regret", "rate", "time_to_target", "updates_to_target"] | None = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def _axes_stand_in_the_section(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "grid" in data:
            return data
        own = {key: data[key] for key in data if key in ("zip", "exclude", "tune", "by")}
        return {**own, "grid": {key: _axis(key, data[key]) for key in data if key not in own}}

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        for group in self.zip:
            lengths = {path: len(values) for path, values in group.items()}
            if len(set(lengths.values())) > 1 or 0 in lengths.values():
                raise refuse(f"paths of a zip group need equally many values, at least one; got {lengths}")
        for path in (self.tune,) if isinstance(self.tune, str) else self.tune or ():
            if path not in self.paths:
                raise refuse(f"tune must name swept paths ({', '.join(self.paths)}), got '{path}'")
        if (self.tune is None) != (self.by is None):
            raise refuse("'tune' needs 'by' (what to judge by), and the other way round")
        if not self.paths:
            raise refuse("the sweep names no path")
        return self

    @property
    def paths(self) -> list[str]:
        """The swept paths, in order."""
        return [*self.grid, *(path for group in self.zip for path in group)]


def _axis(path: str, values: Any) -> list[Any]:
    """Return the values of one axis."""
    if isinstance(values, Mapping) and set(values) == {"start", "stop", "num"}:
        start, stop, number = values["start"], values["stop"], values["num"]
        good = all(isinstance(v, int | float) and abs(v) < 1e300 for v in (start, stop)) and isinstance(number, int)
        if not good or not 1 <= number <= 100_000:
            raise refuse(f"'{path}': start and stop must be numbers and num a whole number from 1 to 100000")
        step = (stop - start) / max(number - 1, 1)
        return [round(start + i * step, 12) for i in range(number)]
    if not isinstance(values, list) or not values:
        raise refuse(f"'{path}': must be a non-empty list of values or {{ start, stop, num }}, got {values!r}")
    return values


class Scenario(Spec):
    """A resolved scenario: everything that decides a result, and nothing else."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1)] = "scenario"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    cluster: Cluster | None = None
    policy: AnyPolicy = Async()
    problem: AnyProblem | None = None
    method: AnyMethod | None = None
    run: RunSettings
    metrics: Metrics = Metrics()
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.run.source == "simulate" and self.cluster is None:
            raise refuse("source = 'simulate' needs a [cluster] with workers")
        if (self.problem is None) != (self.method is None):
            raise refuse("[problem] and [method] go together (leave out both for a trace alone)")
        if self.problem is None and (self.metrics.target or self.run.stop_when):
            raise refuse("a target or stop_when needs a [problem] and a [method]")
        if self.cluster is not None:
            self.policy.check(self.cluster.size, self.cluster.server.reply)
        return self

    @property
    def workers(self) -> int:
        """Number of workers M (1 where the schedule is synthetic and no cluster is given)."""
        return 1 if self.cluster is None else self.cluster.size

    def resolved(self) -> dict[str, Any]:
        """Return the scenario as plain data, defaults filled in: what `scenario.json` holds."""
        return self.model_dump(mode="json", exclude_none=True)

    def sha256(self) -> str:
        """Return the hash of the resolved scenario, its name and description left out."""
        data = {key: value for key, value in self.resolved().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# --- reading files ---


def load(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario file.

    `overrides` maps dotted paths to values, as ``--set`` does: ``{"run.updates": 500, "cluster.workers.0.count": 4}``.
    Raises `ScenarioError` with one sentence that names the file, the key, the value and what is allowed.
    """
    return build(document(path, overrides=overrides), name=str(path), folder=Path(path).parent)


def document(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the plain data of a scenario file, `extends` and `overrides` resolved."""
    data = _read(Path(path), ())
    for key, value in (overrides or {}).items():
        try:
            set_path(data, key, value)
        except KeyError as error:
            raise ScenarioError(f"{path}: cannot set '{key}': {error.args[0]}") from None
    return data


def build(data: Mapping[str, Any], *, name: str = "scenario", folder: str | Path = ".") -> Scenario:
    """Return the scenario that plain data describe; `name` stands in errors, `folder` is where its files are."""
    try:
        return Scenario.model_validate(data, context={"folder": str(folder)})
    except ValidationError as error:
        raise ScenarioError(f"{name}: {first_error(error)}") from None


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            data = tomllib.load(handle)
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ScenarioError(f"{path}: extends: must be the name of a scenario file, got {base!r}")
    target = path.parent / base
    if target.resolve() in (*children, path.resolve()):
        raise ScenarioError(f"{path}: extends: '{base}' leads back to itself")
    return _merge(_read(target, (*children, path.resolve())), data)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it; a table that names another kind or law replaces the whole table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_choice(old, value):
            merged[key] = _merge(dict(old), value)
        else:
            merged[key] = value
    return merged


def _same_choice(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(new.get(tag, old.get(tag)) == old.get(tag) for tag in ("kind", "law", "set"))


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path (array items by index); raise KeyError with a sentence where it cannot be."""
    *parents, last = path.split(".")
    place: Any = data
    for depth, part in enumerate([*parents, last]):
        final = depth == len(parents)
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise KeyError(f"'{part}' is not an index of a list of {len(place)}")
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
            if not final:
                place.setdefault(key, {})
        else:
            raise KeyError(f"'{part}' lies inside a plain value")
        if final:
            place[key] = copy.deepcopy(value)
        else:
            place = place[key]


def parse_value(text: str) -> Any:
    """Return the TOML value that a text spells, or the text itself: 3, 0.5, true, [1, 2], { law = "constant", … }."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
