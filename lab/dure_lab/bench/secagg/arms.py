"""The arms by name, and which of them a case has."""

from collections.abc import Mapping

from dure_lab.bench.secagg import ckks
from dure_lab.bench.secagg.arm import Case, MakeArm
from dure_lab.bench.secagg.flower import FlowerArm, regular_degree
from dure_lab.bench.secagg.ours import OursArm, UnmaskedArm
from dure_lab.bench.secagg.plain import Float32Arm

OURS, SAME_CODEC, FLOAT32 = "ours", "same-codec", "float32"
FLOWER, FLOWER_REGULAR, CKKS = "secagg+", "secagg+-regular", "ckks"
_REGULAR_FROM = 50
"""Firms from which a client of SecAgg+ would not share with everyone."""

ARMS: Mapping[str, MakeArm] = {
    OURS: OursArm,
    FLOWER: FlowerArm,
    FLOWER_REGULAR: lambda case: FlowerArm(case, regular_degree(case.firms)),
    FLOAT32: Float32Arm,
    SAME_CODEC: UnmaskedArm,
    CKKS: ckks.CkksArm,
}


def has(case: Case, arm: str) -> bool:
    """Whether an arm is measured in a case."""
    if arm == FLOWER_REGULAR:
        return case.firms >= _REGULAR_FROM
    if arm == CKKS:
        return ckks.is_installed() and case.parameters <= ckks.PARAMETERS
    return True
