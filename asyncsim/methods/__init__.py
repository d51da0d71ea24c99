"""Methods: what workers send and how the server turns it into updates. One file per family."""

from __future__ import annotations

from typing import Annotated, Any

from asyncsim.methods.adam import Adam
from asyncsim.methods.base import Method, State
from asyncsim.methods.compressed import CompressedSGD
from asyncsim.methods.decentralized import DecentralizedSGD
from asyncsim.methods.local import LocalSGD
from asyncsim.methods.mem_sgd import MemSGD
from asyncsim.methods.pagd import PAGD
from asyncsim.methods.perturbed import GD, PGD, PSGD, NoisyGD, SaddleNGD
from asyncsim.methods.projections import PROJECTIONS, AnyProjection, Ball, Box, NonNegativeOrthant, Projection, Simplex
from asyncsim.methods.seacd import SEACD
from asyncsim.methods.sgd import SGD
from asyncsim.methods.steps import STEP_RULES, StepRule
from asyncsim.methods.zeroth_order import ZerothOrderConditionalGradient, ZerothOrderSGD
from asyncsim.spec import Spec, named_field

#: Every method by the name that a scenario file uses.
METHODS: dict[str, type[Spec]] = {
    "sgd": SGD,
    "gd": GD,
    "pgd": PGD,
    "pagd": PAGD,
    "psgd": PSGD,
    "noisy_gd": NoisyGD,
    "saddle_ngd": SaddleNGD,
    "adam": Adam,
    "seacd": SEACD,
    "compressed_sgd": CompressedSGD,
    "mem_sgd": MemSGD,
    "local_sgd": LocalSGD,
    "decentralized_sgd": DecentralizedSGD,
    "zeroth_order_sgd": ZerothOrderSGD,
    "zeroth_order_conditional_gradient": ZerothOrderConditionalGradient,
}

AnyMethod = Annotated[Any, *named_field("kind", METHODS, "method")]

__all__ = [
    "GD",
    "METHODS",
    "PAGD",
    "PGD",
    "PROJECTIONS",
    "PSGD",
    "SEACD",
    "SGD",
    "STEP_RULES",
    "Adam",
    "AnyMethod",
    "AnyProjection",
    "Ball",
    "Box",
    "CompressedSGD",
    "DecentralizedSGD",
    "LocalSGD",
    "MemSGD",
    "Method",
    "NoisyGD",
    "NonNegativeOrthant",
    "Projection",
    "SaddleNGD",
    "Simplex",
    "State",
    "StepRule",
    "ZerothOrderConditionalGradient",
    "ZerothOrderSGD",
]
