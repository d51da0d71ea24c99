"""Policies: when the server updates, what it discards, and whom it sends the model.

A policy is four facts and nothing about time, so that both simulation engines and real servers read the same ones:
how many gradients make an update, how stale a gradient may be, whether a worker that pushed goes on, and who is sent
the new model. `docs/trace.md` says what each of them means.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from asyncsim.spec import Count, Spec, named_field, refuse

#: Accepts any staleness.
UNLIMITED = 2**62

SendsTo = Literal["contributors", "last", "everyone"]


class Policy(Spec):
    """The four facts; a policy of your own derives from this class and says otherwise where it differs.

    This base is plain asynchrony: every gradient is an update, and its worker is sent the result.
    """

    #: Largest staleness that is accepted; a staler gradient is discarded when it arrives.
    staleness_limit: ClassVar[int] = UNLIMITED
    #: Whether a worker whose gradient completes no batch is sent the current model at once, and may contribute twice.
    goes_on: ClassVar[bool] = False
    #: Who is sent the model after an update: all who contributed, the one who completed it, or all workers.
    sends_to: ClassVar[SendsTo] = "contributors"
    #: Whether workers whose gradient under way can no longer be accepted are sent the new model as well.
    cancels: ClassVar[bool] = False

    def gradients_per_update(self, workers: int) -> int:
        """Return K, the number of gradients that one update is made of."""
        return 1

    def check(self, workers: int, reply: str) -> None:
        """Refuse a number of workers or an order of replies that the policy cannot work with."""
        gradients = self.gradients_per_update(workers)
        if gradients < 1:
            raise refuse(f"an update takes at least one gradient, got {gradients}", "policy")
        if gradients > workers and not self.goes_on:
            raise refuse(
                f"an update must not take more gradients than there are workers, {workers}, since each gives one "
                f"and waits; got {gradients}",
                "policy",
                "k",
            )
        if reply == "before_apply" and self.sends_to == "everyone":
            raise refuse(
                "'before_apply' does not go with a policy that sends the new model to every worker: "
                "they would be sent the old one again; use 'after_apply'",
                "cluster",
                "server",
                "reply",
            )


class Async(Policy):
    """Every gradient is applied as it arrives; its worker is sent the result.

    Mean staleness is M − 1 for any service law; it is geometric for exponential ones (Mitliagkas et al. 2016).
    """

    kind: Literal["async"] = "async"


class Sync(Policy):
    """Every update is the mean of one gradient from each worker, all of the same version."""

    kind: Literal["sync"] = "sync"
    staleness_limit: ClassVar[int] = 0
    sends_to: ClassVar[SendsTo] = "everyone"

    def gradients_per_update(self, workers: int) -> int:
        """Return M."""
        return workers


class _KPolicy(Policy):
    """A policy of Dutta et al. 2018 that collects `k` gradients."""

    k: Count

    def gradients_per_update(self, workers: int) -> int:
        """Return k."""
        return self.k


class KSync(_KPolicy):
    """The first `k` of M workers make the update; the others are stopped (Dutta et al. 2018)."""

    kind: Literal["k_sync"] = "k_sync"
    staleness_limit: ClassVar[int] = 0
    sends_to: ClassVar[SendsTo] = "everyone"


class KBatchSync(_KPolicy):
    """The first `k` gradients of the current version, from any workers; the others are stopped (Dutta et al. 2018)."""

    kind: Literal["k_batch_sync"] = "k_batch_sync"
    staleness_limit: ClassVar[int] = 0
    goes_on: ClassVar[bool] = True
    sends_to: ClassVar[SendsTo] = "everyone"


class KAsync(_KPolicy):
    """The first `k` gradients of different workers make the update; the others go on (Dutta et al. 2018)."""

    kind: Literal["k_async"] = "k_async"


class KBatchAsync(_KPolicy):
    """The first `k` gradients from any workers make the update; a worker goes on at once (Dutta et al. 2018)."""

    kind: Literal["k_batch_async"] = "k_batch_async"
    goes_on: ClassVar[bool] = True
    sends_to: ClassVar[SendsTo] = "last"  # the others have been sent on already


class Rennala(Policy):
    """Collect `batch` gradients of one version, drop what comes from older ones (Tyurin and Richtárik 2023)."""

    kind: Literal["rennala"] = "rennala"
    batch: Count
    staleness_limit: ClassVar[int] = 0
    goes_on: ClassVar[bool] = True
    sends_to: ClassVar[SendsTo] = "last"  # the others are never stopped

    def gradients_per_update(self, workers: int) -> int:
        """Return the size of the batch."""
        return self.batch


class Ringmaster(Policy):
    """Asynchronous, but a gradient staler than `max_staleness` is discarded (Maranjyan et al. 2025).

    The paper's threshold R accepts staleness < R, so R = max_staleness + 1. With ``on_stale = "cancel"`` a worker whose
    gradient can no longer be accepted is stopped as soon as the new model reaches it (their Algorithm with stops).
    """

    kind: Literal["ringmaster"] = "ringmaster"
    max_staleness: Annotated[int, Field(ge=0, le=UNLIMITED)]
    on_stale: Literal["discard", "cancel"] = "discard"

    @property
    def staleness_limit(self) -> int:  # type: ignore[override]
        """Return max_staleness."""
        return self.max_staleness

    @property
    def cancels(self) -> bool:  # type: ignore[override]
        """Whether hopeless gradients are stopped."""
        return self.on_stale == "cancel"


POLICIES: dict[str, type[Spec]] = {
    "async": Async,
    "sync": Sync,
    "k_sync": KSync,
    "k_batch_sync": KBatchSync,
    "k_async": KAsync,
    "k_batch_async": KBatchAsync,
    "rennala": Rennala,
    "ringmaster": Ringmaster,
}

AnyPolicy = Annotated[Any, *named_field("kind", POLICIES, "policy")]
