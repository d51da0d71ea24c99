"""Compressors: what a worker sends in place of a vector, in bytes, and how much of the vector is surely in it."""

from __future__ import annotations

from typing import Annotated, Any

from asyncsim.compressors.base import Address, Compressor, Payload
from asyncsim.compressors.composed import Composed
from asyncsim.compressors.identity import Identity
from asyncsim.compressors.quantized import QSGD, ScaledSign
from asyncsim.compressors.sketch import SketchedTopK
from asyncsim.compressors.sparse import RandK, TopK
from asyncsim.spec import Spec, named_field

#: Every compressor by the name that a scenario file uses.
COMPRESSORS: dict[str, type[Spec]] = {
    "identity": Identity,
    "rand_k": RandK,
    "top_k": TopK,
    "sketch": SketchedTopK,
    "sign": ScaledSign,
    "qsgd": QSGD,
    "composed": Composed,
}

AnyCompressor = Annotated[Any, *named_field("kind", COMPRESSORS, "compressor")]

__all__ = [
    "COMPRESSORS",
    "QSGD",
    "Address",
    "AnyCompressor",
    "Composed",
    "Compressor",
    "Identity",
    "Payload",
    "RandK",
    "ScaledSign",
    "SketchedTopK",
    "TopK",
]
