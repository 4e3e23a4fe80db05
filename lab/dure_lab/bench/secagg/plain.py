"""Without encryption: float32 as it is, and the protocol's own codec without masks."""

import numpy as np
from numpy.typing import NDArray

from dure_lab.bench.secagg.arm import Arm, Case, Stopwatch


class Float32Arm(Arm):
    """float32 in the clear. `memcpy` is the yardstick of online work: one copy into memory that was touched before."""

    client_parts = ("copy", "serialise")
    server_parts = ("add",)

    def __init__(self, case: Case) -> None:
        self._case = case
        self._copy = np.ones(case.parameters, np.float32)
        self._total = np.ones(case.parameters, np.float32)
        self._weighted = [case.update(firm) * np.float32(case.weight(firm)) for firm in range(case.different)]

    def client(self, watch: Stopwatch) -> None:
        """Weigh the update into a buffer, and make bytes of it."""
        update = self._case.update(0)
        with watch("memcpy"):
            np.copyto(self._copy, update)
        with watch("copy"):
            np.multiply(update, np.float32(self._case.weight(0)), out=self._copy)
        with watch("serialise"):
            self._copy.tobytes()

    def server(self, watch: Stopwatch) -> None:
        """Add one weighted update after the other."""
        with watch("add"):
            np.copyto(self._total, self._weighted[0])
            for firm in range(1, self._case.firms):
                self._total += self._weighted[firm % len(self._weighted)]

    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """Divide by the weights."""
        with watch("decode"):
            return self._total / np.float32(sum(map(self._case.weight, range(self._case.firms))))

    @property
    def vector_bytes(self) -> int:
        """Four bytes a parameter."""
        return 4 * self._case.parameters
