"""TenSEAL's CKKS, an additively homomorphic encryption under one key that all firms share and the server lacks.

Optional: `pip install dure[bench-ckks]`. Degree 8192 and a scale of 2^40 in two primes: enough for sums, at 128 bits.
"""

import importlib
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure_lab.bench.secagg.arm import Arm, Case, Stopwatch

PARAMETERS = 1_000_000
"""The most parameters it is asked for: ten times as many take half a minute."""
_DEGREE = 8192
_MODULUS_BITS = (60, 40, 60)
_SCALE = 2.0**40


def is_installed() -> bool:
    """Whether TenSEAL can be imported."""
    return find_spec("tenseal") is not None


class CkksArm(Arm):
    """Encrypt the weighted update in chunks of half the degree, add ciphertexts, decrypt the sum."""

    client_parts = ("encrypt", "serialise")
    server_parts = ("add",)

    def __init__(self, case: Case) -> None:
        self._case = case
        self._tenseal = importlib.import_module("tenseal")
        self._context = self._tenseal.context(
            self._tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=_DEGREE, coeff_mod_bit_sizes=list(_MODULUS_BITS)
        )
        self._context.global_scale = _SCALE
        self._uploads = [self._serialised(self._encrypted(firm)) for firm in range(case.different)]
        self._total: list[Any] = []

    def client(self, watch: Stopwatch) -> None:
        """Encrypt and serialise one update."""
        with watch("encrypt"):
            chunks = self._encrypted(0)
        with watch("serialise"):
            self._serialised(chunks)

    def server(self, watch: Stopwatch) -> None:
        """Read and add every firm's ciphertexts."""
        case = self._case
        with watch("add"):
            total = self._read(self._uploads[0])
            for firm in range(1, case.firms):
                others = self._read(self._uploads[firm % case.different])
                total = [chunk + other for chunk, other in zip(total, others, strict=True)]
        self._total = total

    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """Decrypt the sum at a firm, divide by the weights."""
        with watch("decode"):
            values = np.concatenate([np.asarray(chunk.decrypt()) for chunk in self._total])
            return (values / sum(map(self._case.weight, range(self._case.firms)))).astype(np.float32)

    @property
    def vector_bytes(self) -> int:
        """Of the serialised ciphertexts."""
        return sum(map(len, self._uploads[0]))

    def _encrypted(self, firm: int) -> list[Any]:
        weighted = self._case.update(firm) * np.float32(self._case.weight(firm))
        step = _DEGREE // 2
        return [
            self._tenseal.ckks_vector(self._context, weighted[start : start + step])
            for start in range(0, weighted.size, step)
        ]

    def _serialised(self, chunks: list[Any]) -> list[bytes]:
        return [chunk.serialize() for chunk in chunks]

    def _read(self, upload: list[bytes]) -> list[Any]:
        return [self._tenseal.ckks_vector_from(self._context, data) for data in upload]
