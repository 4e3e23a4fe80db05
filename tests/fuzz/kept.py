"""Inputs that once found a failure, each by a sentence; every run and every test begins with them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """An input. says: what it is, and what it did."""

    target: str
    says: str
    data: bytes


KEPT: tuple[Kept, ...] = ()


def kept_for(target: str) -> Sequence[bytes]:
    """The kept inputs of a target."""
    return [kept.data for kept in KEPT if kept.target == target]
