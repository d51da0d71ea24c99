"""asyncsim: a laboratory for asynchronous optimization.

A model of workers, a server and links says *when* each gradient was read and applied: the trace. Any method replays on
any trace, deterministically.

>>> import asyncsim
>>> scenario = asyncsim.load("scenarios/quickstart.toml", overrides={"run.updates": 200, "run.replicas": 1})
>>> trace = asyncsim.simulate(scenario)
>>> run = asyncsim.replay(trace, scenario.method, scenario.problem)
"""

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
