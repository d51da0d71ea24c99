"""Closed forms about asynchronous optimization: numbers in, numbers out. `docs/theory.md` lists them."""

from asyncsim.theory.conservation import conservation_residual
from asyncsim.theory.expected import expected_iterates, expected_iterates_exponential
from asyncsim.theory.momentum import (
    GeometricStaleness,
    geometric_staleness,
    implicit_momentum,
    momentum_from_mean_staleness,
    staleness_pmf,
    staleness_pmf_at,
)
from asyncsim.theory.optimum import Optimum, optimal_momentum, optimal_step
from asyncsim.theory.polyak_lojasiewicz import (
    SINE_CONSTANT,
    SINE_SMOOTHNESS,
    contraction,
    sine_best_constant,
    smallest_gradient_bound,
)
from asyncsim.theory.rates import histogram_rate, mean_rate
from asyncsim.theory.regret import (
    CONVEX_BOUND,
    CONVEX_TUNED,
    GrowthExponents,
    block_regret,
    independent_regret,
)
from asyncsim.theory.roots import largest_root_modulus
from asyncsim.theory.runtime import (
    OptimalTime,
    asynchronous_throughput,
    harmonic,
    optimal_time,
    order_statistic_mean,
    time_per_update,
)
from asyncsim.theory.second_moment import mean_square_rate, second_moment_matrix, second_moments
from asyncsim.theory.stability import (
    almost_sure_limit,
    constant_delay_limit,
    heavy_ball_limit,
    mean_limit,
    mean_square_limit,
    nesterov_limit,
)

__all__ = [
    "CONVEX_BOUND",
    "CONVEX_TUNED",
    "SINE_CONSTANT",
    "SINE_SMOOTHNESS",
    "GeometricStaleness",
    "GrowthExponents",
    "OptimalTime",
    "Optimum",
    "almost_sure_limit",
    "asynchronous_throughput",
    "block_regret",
    "conservation_residual",
    "constant_delay_limit",
    "contraction",
    "expected_iterates",
    "expected_iterates_exponential",
    "geometric_staleness",
    "harmonic",
    "heavy_ball_limit",
    "histogram_rate",
    "implicit_momentum",
    "independent_regret",
    "largest_root_modulus",
    "mean_limit",
    "mean_rate",
    "mean_square_limit",
    "mean_square_rate",
    "momentum_from_mean_staleness",
    "nesterov_limit",
    "optimal_momentum",
    "optimal_step",
    "optimal_time",
    "order_statistic_mean",
    "second_moment_matrix",
    "second_moments",
    "sine_best_constant",
    "smallest_gradient_bound",
    "staleness_pmf",
    "staleness_pmf_at",
    "time_per_update",
]
