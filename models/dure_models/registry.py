"""Finds the models that installed packages offer (entry points of group `dure.models`). Imports nothing heavy."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from dure_models.contract import DataContract
from dure_models.errors import UnknownModelError

if TYPE_CHECKING:
    from dure_models.interface import Model

GROUP = "dure.models"


def names() -> tuple[str, ...]:
    """The names of all installed models, sorted. Imports none of them."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def module_of(name: str) -> str:
    """The package that holds a model, by name, without importing it. Raises UnknownModelError."""
    return _entry(name).module


def create(name: str, contract: DataContract, options: Mapping[str, object]) -> "Model":
    """Import a model and build it for a contract; this loads torch. Raises UnknownModelError, ModelOptionsError."""
    loaded: type[Model] = _entry(name).load()
    return loaded.create(contract, options)


def _entry(name: str) -> EntryPoint:
    # A package may be seen twice on the import path; that is one offer, two different packages are two.
    found = list({point.value: point for point in entry_points(group=GROUP) if point.name == name}.values())
    if len(found) != 1:
        known = ", ".join(names()) or "none"
        what = "no installed package offers" if not found else f"{len(found)} installed packages offer"
        raise UnknownModelError(
            f"{what} a model {name!r}; models found: {known}. Install the package of that model and approve its digest"
        )
    return found[0]
