"""Scenario files: TOML in, one frozen, resolved, hashed `Scenario` out, or one clear error.

The sections of a file are the classes below and in `asyncsim.cluster`; the laws, policies, problems and methods in them
are the classes of their own modules. `docs/scenario.md` describes the file for its users.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from asyncsim.cluster import Cluster
from asyncsim.documents import ScenarioError as ScenarioError
from asyncsim.documents import read
from asyncsim.durations import Constant
from asyncsim.methods import AnyMethod
from asyncsim.policies import UNLIMITED, AnyPolicy, Async
from asyncsim.problems import PROBLEMS, AnyProblem, LeastSquares, Problem
from asyncsim.problems.base import complete
from asyncsim.problems.empirical_risk import EmpiricalRisk
from asyncsim.spec import File, Positive, Spec, closest, first_error, refuse, shown
from asyncsim.staleness_laws import AnyStaleness

MAX_REPLICAS = 10_000_000
MAX_UPDATES = 2**48
MAX_BLOCKS = 100_000

#: Time units of real runs, in seconds.
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

LONGEST_AXIS = 100_000

#: What can be measured on the model at a version.
MODEL_METRICS = ("loss", "suboptimality", "grad_norm", "distance", "accuracy", "regret", "lambda_min")
#: What only some methods can tell about the model and what they keep beside it, and which methods these are.
METHOD_METRICS = {
    "energy": "a method that keeps one",
    "perturbations": "a method that perturbs the model when it must",
    "consensus": "method.kind = 'decentralized_sgd'",
    "memory": "method.kind = 'compressed_sgd' with 'reset_after' or 'reset_radius'",
    "resets": "method.kind = 'compressed_sgd' with 'reset_after' or 'reset_radius'",
}
#: What the schedule tells of the way to a version: the bytes that a worker has sent on average.
TRACE_METRICS = ("bytes",)
#: Where the model is: its first two coordinates, which are all there is of a model in the plane.
PLANE_METRICS = ("x1", "x2")
#: What can be measured on a whole run, from its replicas.
RUN_METRICS = ("momentum", "rate")


def parse_condition(text: str) -> tuple[str, str, float]:
    """Return (metric, "<" or ">", bound) of a condition such as "loss < 0.1"."""
    match = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([-+.\deE]+)\s*", text)
    try:
        if match and match[1] in MODEL_METRICS and math.isfinite(float(match[3])):
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    near = closest(match[1], list(MODEL_METRICS)) if match and match[1] not in MODEL_METRICS else ""
    raise refuse(f"must read like 'loss < 0.1', with one of {', '.join(MODEL_METRICS)}; got {shown(text)}{near}")


def _condition(text: str) -> str:
    parse_condition(text)
    return text


#: A metric of the model and its bound, such as "loss < 0.1".
Condition = Annotated[str, AfterValidator(_condition)]


class RunSettings(Spec):
    """Where the trace comes from, and how long and how often to run.

    The run ends at `updates`, at `time`, or when `stop_when` (such as "loss < 0.1") holds, whichever comes first.
    Summaries leave out the first `warmup` updates. With source = "record", real workers run: on a `backend`, with a
    `consistency` of what they read (of `blocks` blocks), which `wait` until the service law's time is over or not,
    each pinned to a core or not, and with a rule for the death of one.
    """

    source: Literal["simulate", "synthetic", "trace", "record"] = "simulate"
    engine: Literal["auto", "compiled", "simpy"] = "auto"
    staleness: AnyStaleness | None = None
    trace: File | None = None
    backend: Literal["threads", "shared_memory", "queue", "manager", "mpi"] | None = None
    consistency: Literal["locked", "block", "hogwild"] = "locked"
    blocks: Annotated[int, Field(ge=2, le=MAX_BLOCKS)] | None = None
    wait: Literal["none", "sleep", "spin"] = "none"
    on_worker_death: Literal["continue", "restart", "stop"] = "continue"
    pin: bool = False
    updates: Annotated[int, Field(ge=1, le=MAX_UPDATES)] | None = None
    time: Positive | None = None
    stop_when: Condition | None = None
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    warmup: Annotated[int, Field(ge=0, le=MAX_UPDATES)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> RunSettings:
        if (self.source == "synthetic") != (self.staleness is not None):
            raise refuse("'staleness' (a law) goes with source = 'synthetic', and the other way round")
        if (self.source == "trace") != (self.trace is not None):
            raise refuse("'trace' (a file) goes with source = 'trace', and the other way round")
        if (self.source == "record") != (self.backend is not None):
            allowed = "threads, shared_memory, queue, manager, mpi"
            raise refuse(f"'backend' ({allowed}) goes with source = 'record', and the other way round")
        self._real_settings()
        if self.source == "synthetic" and self.updates is None:
            raise refuse("a synthetic trace has no clock: give 'updates'")
        if self.source != "trace" and self.updates is None and self.time is None:
            raise refuse("give 'updates' or 'time': the run must end")
        if self.updates is not None and self.warmup >= self.updates:
            raise refuse(f"must be below updates = {self.updates}, got {self.warmup}", "warmup")
        if self.source not in ("simulate", "record") and self.stop_when is not None:
            said = f"a '{self.source}' schedule is made before the model"
            raise refuse(f"needs source = 'simulate' or 'record': {said}", "stop_when")
        return self

    def _real_settings(self) -> None:
        """Refuse settings of real runs that do not go together, or that nothing would heed."""
        if self.source != "record":
            for name in ("consistency", "blocks", "wait", "on_worker_death", "pin"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise refuse("belongs to source = 'record'", name)
        elif self.consistency != "locked" and self.backend != "shared_memory":
            raise refuse(f"'{self.consistency}' needs backend = 'shared_memory', not '{self.backend}'", "consistency")
        elif self.blocks is not None and self.consistency != "block":
            raise refuse("belongs to consistency = 'block'", "blocks")
        elif self.backend == "threads" and (self.pin or self.on_worker_death == "restart"):
            name = "pin" if self.pin else "on_worker_death"
            raise refuse("threads can neither be pinned nor started again: use another backend", name)
        elif self.backend == "mpi" and self.on_worker_death == "restart":
            raise refuse("an MPI rank cannot be started again: 'continue' or 'stop'", "on_worker_death")
        elif self.backend == "mpi" and self.pin:
            raise refuse("ranks are pinned by mpiexec, not here", "pin")
        elif self.backend == "shared_memory" and self.stop_when is not None:
            raise refuse("needs a server, and shared memory has none: use another backend", "stop_when")


class Metrics(Spec):
    """What to measure and when: every so many updates, or at this many points of a time grid.

    `record` names metrics of the model (loss, suboptimality, grad_norm, distance, accuracy, regret, lambda_min: the
    Hessian's smallest eigenvalue; x1 and x2: its first coordinates), of the method (energy, perturbations, consensus,
    memory, resets), of the schedule (bytes: what a worker has sent by then, on average) and of the run (momentum,
    fitted from the replicas; rate, the decay of the root mean square distance to the minimizer). `target`, such as
    "loss < 0.5", asks for the time and the number of updates to reach it.
    """

    every: Annotated[int, Field(ge=1, le=MAX_UPDATES)] | None = None
    at_times: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    record: Annotated[
        tuple[Literal[(*MODEL_METRICS, *METHOD_METRICS, *TRACE_METRICS, *PLANE_METRICS, *RUN_METRICS)], ...],  # type: ignore[valid-type]
        Field(strict=False),
    ] = ("loss",)
    target: Condition | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Metrics:
        if self.every is not None and self.at_times is not None:
            raise refuse("give either 'every' or 'at_times', not both")
        if len(set(self.record)) < len(self.record):
            raise refuse(f"lists a metric twice: {', '.join(self.record)}", "record")
        if self.target is not None:
            metric, _, _ = parse_condition(self.target)
            if metric not in self.record:
                raise refuse(f"watches '{metric}', which record does not list", "target")
        return self

    @property
    def of_model(self) -> tuple[str, ...]:
        """The metrics that are measured at versions."""
        return tuple(name for name in self.record if name not in RUN_METRICS)


class Search(Spec):
    """A positive number of the method that each cell of a sweep has at its best: `path`, between `low` and `high`."""

    path: str
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _between(self) -> Search:
        if not self.path.startswith("method."):
            raise refuse(f"must be a number of the method, such as method.step; got '{self.path}'", "path")
        if self.high <= self.low:
            raise refuse(f"must exceed low = {self.low:g}, got {self.high:g}", "high")
        return self


class Sweep(Spec):
    """Many cells from one file: a grid over dotted paths.

    `grid` holds the axes (in a file they stand in [sweep] itself): lists of values, or ``{ start, stop, num }``. `zip`
    lists groups of paths that move together. `exclude` lists combinations to leave out. `tune` names swept
    paths whose best values are wanted for each combination of the others, judged `by` the final loss, suboptimality,
    distance, regret, the rate, or the time or updates to the target (the smaller the better). `search` gives every cell
    its own best value, by the same measure, of one number of the method. A cell that takes longer than `timeout`, in
    seconds of the real clock, has failed.
    """

    grid: dict[str, Any] = Field(default_factory=dict)
    zip: Annotated[tuple[dict[str, list[Any]], ...], Field(strict=False)] = ()
    exclude: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    tune: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    search: Search | None = None
    by: Literal["loss", "suboptimality", "distance", "regret", "rate", "time_to_target", "updates_to_target"] | None = (
        None
    )
    timeout: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _axes_stand_in_the_section(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if "grid" in data:  # as a resolved scenario has it
            own = dict(data)
            axes = own.pop("grid")
            if not isinstance(axes, Mapping):
                raise refuse(f"must be a table of axes, got {shown(axes)}", "grid")
        else:
            own = {key: data[key] for key in data if key in ("zip", "exclude", "tune", "search", "by", "timeout")}
            axes = {key: data[key] for key in data if key not in own}
        return {**own, "grid": {key: _axis(key, values) for key, values in axes.items()}}

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        for place, group in enumerate(self.zip):
            lengths = {path: len(values) for path, values in group.items()}
            if len(set(lengths.values())) != 1 or 0 in lengths.values():
                said = ", ".join(f"{path}: {length}" for path, length in lengths.items()) or "no path"
                raise refuse(f"needs equally many values for each path, at least one; got {said}", "zip", place)
        twice = [path for path in self.paths if self.paths.count(path) > 1]
        if twice:
            raise refuse(f"'{twice[0]}' is swept twice")
        if not self.paths:
            raise refuse("names no path to sweep")
        for place, out in enumerate(self.exclude):
            self._swept(out, "exclude", place)
            for path, value in out.items():
                if value not in self._values(path):
                    raise refuse(f"{shown(value)} is not among the values of '{path}'", "exclude", place)
        self._swept((self.tune,) if isinstance(self.tune, str) else self.tune or (), "tune")
        if self.search is not None and self.by is None:
            raise refuse("'search' needs 'by' (what to judge by)")
        if self.search is None and (self.tune is None) != (self.by is None):
            raise refuse("'tune' needs 'by' (what to judge by), and the other way round")
        if self.search is not None and self.search.path in self.paths:
            raise refuse(f"'{self.search.path}' is swept already", "search", "path")
        return self

    def _swept(self, paths: Iterable[str], *where: str | int) -> None:
        for path in paths:
            if path not in self.paths:
                raise refuse(f"must name swept paths ({', '.join(self.paths)}), got '{path}'", *where)

    def _values(self, path: str) -> list[Any]:
        return self.grid[path] if path in self.grid else next(group[path] for group in self.zip if path in group)

    @property
    def paths(self) -> list[str]:
        """The swept paths, in order."""
        return [*self.grid, *(path for group in self.zip for path in group)]


def _axis(path: str, values: Any) -> list[Any]:
    """Return the values of one axis."""
    if isinstance(values, Mapping) and set(values) == {"start", "stop", "num"}:
        start, stop, number = values["start"], values["stop"], values["num"]
        ends = all(isinstance(v, int | float) and abs(v) < 1e300 for v in (start, stop))
        if not ends or not isinstance(number, int) or not 1 <= number <= LONGEST_AXIS:
            said = f"start and stop must be numbers and num a whole number from 1 to {LONGEST_AXIS:,}"
            raise refuse(f"{said}, got {shown(dict(values))}", path)
        gaps = max(number - 1, 1)
        if isinstance(start, int) and isinstance(stop, int) and (stop - start) % gaps == 0:
            return [start + i * (stop - start) // gaps for i in range(number)]
        return [float(f"{start + i * (stop - start) / gaps:.12g}") for i in range(number)]
    if not isinstance(values, list) or not 1 <= len(values) <= LONGEST_AXIS:
        raise refuse(f"must be a list of values, or {{ start, stop, num }}; got {shown(values)}", path)
    return values


class Scenario(Spec):
    """A resolved scenario: everything that decides a result, and nothing else."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=100)] = "scenario"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    cluster: Cluster | None = None
    policy: AnyPolicy = Async()
    problem: AnyProblem | None = None
    method: AnyMethod | None = None
    run: RunSettings
    metrics: Metrics = Metrics()
    sweep: Sweep | None = None
    _folder: str = PrivateAttr(default=".")

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.name in (".", "..") or set(self.name) & set("/\\\0\n"):
            raise refuse(f"names the run's folder, so it must not contain a slash; got {shown(self.name)}", "name")
        if self.run.source == "simulate" and self.cluster is None:
            raise refuse("source = 'simulate' needs a [cluster] with workers", "run")
        if (self.problem is None) != (self.method is None):
            raise refuse("[problem] and [method] go together (leave out both for a trace alone)")
        if self.cluster is not None and hasattr(self.run.staleness, "workers"):
            raise refuse("'staleness' says how many workers there are: leave the cluster out", "run")
        if self.run.source == "synthetic" and self.metrics.at_times is not None:
            raise refuse("needs a clock, and a synthetic trace has none: use 'every'", "metrics", "at_times")
        if self.run.source == "record":
            self._can_be_recorded()
        if self.cluster is not None:
            self.policy.check(self.cluster.size, self.cluster.server.reply)
            self._not_all_are_waited_for(self.cluster)
            self._clock_advances(self.cluster)
        self._divide_data()
        self._method_fits()
        for metric, where in self._watched():
            lack = _what_lacks(self.problem, self.method, metric)
            if lack:
                raise refuse(f"'{metric}' needs {lack}", *where)
        return self

    def _can_be_recorded(self) -> None:
        """Refuse what a real run has no use for, or cannot do."""
        if self.cluster is None or self.problem is None:
            raise refuse("source = 'record' needs a [cluster] with workers, a [problem] and a [method]", "run")
        if self.sweep is not None:
            raise refuse("real runs would compete for the cores: record them one by one, with --set", "sweep")
        if self.cluster.network is not None:
            raise refuse("a real run has the links of the machine: leave the network out", "cluster", "network")
        if self.cluster.server.service != Constant(value=0.0):
            raise refuse("a real run has the server of the machine: leave it out", "cluster", "server", "service")
        if self.cluster.crashes:
            raise refuse("workers of a real run crash by themselves: leave 'crash' out", "cluster", "workers")
        if self.cluster.time_unit not in SECONDS:
            said = f"a real run knows {', '.join(SECONDS)}; got '{self.cluster.time_unit}'"
            raise refuse(said, "cluster", "time_unit")
        if self.run.backend == "shared_memory":
            policy = self.policy
            facts = policy.gradients_per_update(self.cluster.size), policy.goes_on, policy.sends_to, policy.cancels
            if facts != (1, False, "contributors", False):
                said = "each gradient is an update: 'async', or 'ringmaster' without cancel; other backends can more"
                raise refuse(f"in shared memory there is no server, and {said}", "policy")
            if self.cluster.server.reply != "after_apply":
                said = "in shared memory there is no server that could reply before"
                raise refuse(said, "cluster", "server", "reply")
            asks = getattr(self.method, "makes_requests", False)
            if asks and getattr(self.method, "asks_for_barriers", True):
                said = "in shared memory there is no server to hold the workers at a barrier: use another backend"
                instead = ", or phase_boundary = 'continue'" * hasattr(self.method, "phase_boundary")
                raise refuse(said + instead, "method")

    def _divide_data(self) -> None:
        """Give the problem the division of its data among the workers; a trace alone needs none."""
        groups = () if self.cluster is None else self.cluster.workers
        for place, group in enumerate(groups):
            if group.data != groups[0].data:
                said = "'data' must be the same for every group of workers, or left out everywhere"
                raise refuse(said, "cluster", "workers", place)
        data, where = groups[0].data if groups else None, ("cluster", "workers", 0, "data")
        if isinstance(self.problem, EmpiricalRisk):
            shares = None if data is None else data.among(self.workers, seed=self.seed)
            try:
                object.__setattr__(self, "problem", self.problem.shared_out(shares))
            except PydanticCustomError as error:
                raise refuse(error.message(), *where) from error
        elif data is not None and self.problem is not None:
            kinds = ", ".join(kind for kind, known in PROBLEMS.items() if issubclass(known, EmpiricalRisk))
            kind = getattr(self.problem, "kind", type(self.problem).__name__)
            raise refuse(f"needs a problem with a data set: {kinds}; got '{kind}'", *where)
        if data is not None and getattr(self.method, "takes_whole_gradients", False):
            said = f"'{getattr(self.method, 'kind', '')}' takes gradients of the whole objective"
            raise refuse(f"{said}, for which no worker has all data: leave 'data' out, or take 'sgd'", "method")

    def _method_fits(self) -> None:
        """Refuse a method whose parameters do not go together with the problem and the number of workers."""
        check = getattr(self.method, "check", None)
        if check is not None and self.problem is not None:
            try:
                check(complete(self.problem), self.workers)
            except ValueError as error:
                raise refuse(str(error), "method") from error
        if self.run.source == "record":
            self._nothing_kept_is_lost()

    def _nothing_kept_is_lost(self) -> None:
        """Refuse a method that keeps what this real run would lose."""
        if getattr(self.method, "remembers", False) and self.run.on_worker_death == "restart":
            said = "a worker that is started again has lost its memory, which this method relies on"
            raise refuse(f"{said}: 'continue' or 'stop'", "run", "on_worker_death")
        if self.run.consistency == "hogwild":
            problem = complete(self.problem)
            state, _ = self.method.init(problem, problem.initial(self.seed, 0), self.workers)  # type: ignore[union-attr]
            if state.extra is not None:
                said = "without locks nobody can keep what this method's server keeps beside the model"
                raise refuse(f"{said}: 'locked' or 'block'", "run", "consistency")

    def _not_all_are_waited_for(self, cluster: Cluster) -> None:
        """Refuse workers that crash for good where every update needs all of them."""
        if self.policy.goes_on or self.policy.gradients_per_update(cluster.size) < cluster.size:
            return
        for place, group in enumerate(cluster.workers):
            if group.crash is not None and group.crash.mean_down is None:
                every = f"{cluster.size} workers" if cluster.size > 1 else "one worker"
                kind = getattr(self.policy, "kind", type(self.policy).__name__)
                raise refuse(
                    f"without mean_down a worker never returns, and with policy.kind = '{kind}' every update waits for "
                    f"all {every}, a deadlock: give mean_down, or take a policy that waits for fewer",
                    *("cluster", "workers", place, "crash"),
                )

    def _clock_advances(self, cluster: Cluster) -> None:
        """Refuse workers that keep a server busy for ever at one moment of time."""
        worker = cluster.instant_worker(self.run.time)
        if worker is None:
            return
        busy = cluster.server.service.mean > 0
        discards = self.policy.staleness_limit < UNLIMITED and self.policy.sends_to != "everyone"
        if busy and (cluster.server.reply == "before_apply" or discards):
            raise refuse(f"worker {worker} takes no time, so it pushes for ever while the server works", "cluster")
        if not busy and self.run.updates is None:
            raise refuse(f"the clock need not advance, as worker {worker} takes no time: give 'updates' too", "run")

    def _watched(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield every metric that is asked for, and where."""
        if self.problem is not None or self.metrics.record != Metrics().record:
            yield from ((name, ("metrics", "record")) for name in self.metrics.record)
        if self.metrics.target is not None:
            yield parse_condition(self.metrics.target)[0], ("metrics", "target")
        if self.run.stop_when is not None:
            metric = parse_condition(self.run.stop_when)[0]
            if metric == "regret":
                raise refuse("'regret' cannot be watched while the simulation runs", "run", "stop_when")
            yield metric, ("run", "stop_when")

    @property
    def folder(self) -> str:
        """Where relative names of files and modules are looked up: the folder of the scenario's file."""
        return self._folder

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Any:
        """Return a checked copy with some fields changed; it is at home in the same folder."""
        copied = super().model_copy(update=update, deep=deep)
        copied._folder = self._folder
        return copied

    @property
    def workers(self) -> int:
        """Number of workers M (1 where no cluster is given, unless the synthetic schedule says how many)."""
        return getattr(self.run.staleness, "workers", 1) if self.cluster is None else self.cluster.size

    def resolved(self) -> dict[str, Any]:
        """Return the scenario as plain data, defaults filled in: what `scenario.json` holds."""
        return self.model_dump(mode="json", exclude_none=True)

    def sha256(self) -> str:
        """Return the hash of what affects the answer: all of the scenario but its name, description and engine."""
        data = {key: value for key, value in self.resolved().items() if key not in ("name", "description")}
        data["run"] = {key: value for key, value in data["run"].items() if key != "engine"}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _what_lacks(problem: Any, method: Any, metric: str) -> str | None:
    """Return what a metric needs and the problem has not, found without reading data or solving anything."""
    if problem is None:
        return "a [problem] and a [method]"
    if metric == "accuracy" and getattr(type(problem), "accuracy", Problem.accuracy) is Problem.accuracy:
        return "a problem of classification"
    if metric == "regret" and not hasattr(problem, "played_loss"):
        return "problem.kind = 'online'"
    if metric in METHOD_METRICS and metric not in getattr(method, "measures", ()):
        return METHOD_METRICS[metric]
    if metric == "lambda_min" and getattr(type(problem), "hessian_vector", None) in (None, Problem.hessian_vector):
        return "a problem with Hessian-vector products"
    if metric == "x2" and complete(problem).dimension < 2:
        return "a problem with two coordinates"
    # The minimizers of regression problems take a while to compute, and it is known beforehand which of them have one.
    if isinstance(problem, LeastSquares) or getattr(problem, "l2", 0.0) > 0:
        return None
    if metric == "suboptimality" and complete(problem).minimum is None:
        return "a problem that knows its smallest value"
    if metric in ("distance", "rate") and complete(problem).minimizer is None:
        return "a problem that knows its minimizer"
    return None


def load(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario file.

    `overrides` maps dotted paths to values, as ``--set`` does: ``{"run.updates": 500, "cluster.workers.0.count": 4}``.
    Raises `ScenarioError` with one sentence that names the file, the key, the value and what is allowed.
    """
    return build(read(path, overrides=overrides), name=str(path), folder=Path(path).parent)


def build(data: Mapping[str, Any], *, name: str = "scenario", folder: str | Path = ".") -> Scenario:
    """Return the scenario that plain data describe; `name` stands in errors, `folder` is where its files are."""
    try:
        scenario = Scenario.model_validate(data, context={"folder": str(folder)})
    except ValidationError as error:
        raise ScenarioError(f"{name}: {first_error(error, data)}") from None
    scenario._folder = str(folder)
    return scenario
