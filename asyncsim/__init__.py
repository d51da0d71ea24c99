"""asyncsim: a laboratory for asynchronous optimization.

A model of workers, a server and links says *when* each gradient was read and applied: the trace. Any method replays on
any trace, deterministically.

>>> import asyncsim
>>> scenario = asyncsim.load("scenarios/quickstart.toml", overrides={"run.updates": 200, "run.replicas": 1})
>>> trace = asyncsim.simulate(scenario)
>>> run = asyncsim.replay(trace, scenario.method, scenario.problem)
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncsim.calibration import calibrate
    from asyncsim.compare import compare
    from asyncsim.experiment import run
    from asyncsim.replay import replay
    from asyncsim.results import open_run
    from asyncsim.runs import Run
    from asyncsim.scenario import Scenario, ScenarioError, load
    from asyncsim.sources import simulate
    from asyncsim.sources.imported import import_trace
    from asyncsim.sources.recorded import record
    from asyncsim.trace import Trace, TraceError

__version__ = "0.1.0"

__all__ = [
    "Run",
    "Scenario",
    "ScenarioError",
    "Trace",
    "TraceError",
    "calibrate",
    "compare",
    "import_trace",
    "load",
    "open_run",
    "record",
    "replay",
    "run",
    "simulate",
]

#: Where each public name is defined. It is imported when it is first asked for: a worker process needs few of them.
_HOMES = {
    "Run": "runs",
    "Scenario": "scenario",
    "ScenarioError": "scenario",
    "Trace": "trace",
    "TraceError": "trace",
    "calibrate": "calibration",
    "compare": "compare",
    "import_trace": "sources.imported",
    "load": "scenario",
    "open_run": "results",
    "record": "sources.recorded",
    "replay": "replay",
    "run": "experiment",
    "simulate": "sources",
}


class _Package(ModuleType):
    """A package whose names and modules are there when they are asked for.

    A public name stays what it is where a module has the same name, as `replay` has.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            found = getattr(import_module(f"asyncsim.{_HOMES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"asyncsim.{name}") is not None:
            found = import_module(f"asyncsim.{name}")
        else:
            raise AttributeError(f"module 'asyncsim' has no attribute '{name}'", name=name, obj=self)
        super().__setattr__(name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set anything but a module in the place of a public name, which is where Python puts what it imports."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
