"""Objectives and data: what a method is run on.

Every problem is a frozen value with the functions of `Problem`. An object of your own with the same functions serves
as well, in Python or by the name ``package.module:Object`` in a scenario.
"""

from __future__ import annotations

from typing import Annotated, Any

from asyncsim.problems.autoencoder import Autoencoder
from asyncsim.problems.base import Problem
from asyncsim.problems.blind_deconvolution import BlindDeconvolution
from asyncsim.problems.conv_network import ConvNetwork
from asyncsim.problems.deep_linear import DeepLinear
from asyncsim.problems.least_squares import LeastSquares
from asyncsim.problems.logistic import Logistic
from asyncsim.problems.matrix_completion import MatrixCompletion
from asyncsim.problems.matrix_factorization import MatrixFactorization, NonNegativeFactorization
from asyncsim.problems.matrix_sensing import MatrixSensing
from asyncsim.problems.online import Online
from asyncsim.problems.phase_retrieval import PhaseRetrieval
from asyncsim.problems.pl_example import PLExample
from asyncsim.problems.quadratic import Quadratic
from asyncsim.problems.saddle import Saddle
from asyncsim.problems.saddle_chain import SaddleChain
from asyncsim.problems.softmax import Softmax
from asyncsim.problems.tanh_network import TanhNetwork
from asyncsim.problems.torch_module import TorchModule
from asyncsim.problems.tsne import TSNE
from asyncsim.spec import Spec, named_field

#: Every problem by the name that a scenario file uses.
PROBLEMS: dict[str, type[Spec]] = {
    "quadratic": Quadratic,
    "least_squares": LeastSquares,
    "softmax": Softmax,
    "logistic": Logistic,
    "pl_example": PLExample,
    "online": Online,
    "saddle": Saddle,
    "saddle_chain": SaddleChain,
    "phase_retrieval": PhaseRetrieval,
    "matrix_sensing": MatrixSensing,
    "matrix_completion": MatrixCompletion,
    "blind_deconvolution": BlindDeconvolution,
    "deep_linear": DeepLinear,
    "matrix_factorization": MatrixFactorization,
    "nmf": NonNegativeFactorization,
    "tsne": TSNE,
    "tanh_network": TanhNetwork,
    "conv_network": ConvNetwork,
    "autoencoder": Autoencoder,
    "torch": TorchModule,
}

AnyProblem = Annotated[Any, *named_field("kind", PROBLEMS, "problem")]

__all__ = [
    "PROBLEMS",
    "TSNE",
    "AnyProblem",
    "Autoencoder",
    "BlindDeconvolution",
    "ConvNetwork",
    "DeepLinear",
    "LeastSquares",
    "Logistic",
    "MatrixCompletion",
    "MatrixFactorization",
    "MatrixSensing",
    "NonNegativeFactorization",
    "Online",
    "PLExample",
    "PhaseRetrieval",
    "Problem",
    "Quadratic",
    "Saddle",
    "SaddleChain",
    "Softmax",
    "TanhNetwork",
    "TorchModule",
]
