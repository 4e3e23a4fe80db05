"""Lists of faults that have found a failure, each by what it found. (mode, faults)"""

from collections.abc import Mapping, Sequence

from tests.chaos.faults import Fault

FOUND: Mapping[str, tuple[str, Sequence[Fault]]] = {}
