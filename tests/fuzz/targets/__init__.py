"""One target for each decoder: all that takes bytes or text from a peer, from another process or from disk."""

from collections.abc import Callable, Iterator
from functools import cache

from tests.fuzz.target import Target
from tests.fuzz.targets.files import file_targets
from tests.fuzz.targets.heads import head_targets
from tests.fuzz.targets.keys import key_targets
from tests.fuzz.targets.link import link_targets
from tests.fuzz.targets.models import model_targets
from tests.fuzz.targets.processes import process_targets
from tests.fuzz.targets.protocol import protocol_targets
from tests.fuzz.targets.running import running_targets
from tests.fuzz.targets.statements import statement_targets
from tests.fuzz.targets.sums import sum_targets

Maker = Callable[[], Iterator[Target]]
MAKERS: tuple[Maker, ...] = (
    *(protocol_targets, sum_targets, key_targets),
    *(link_targets, file_targets, head_targets, process_targets, running_targets, model_targets, statement_targets),
)


@cache
def targets_of(make: Maker) -> tuple[Target, ...]:
    """The targets of one module, made once: seeds take a moment."""
    return tuple(make())


@cache
def all_targets() -> tuple[Target, ...]:
    """Every target."""
    targets = tuple(target for make in MAKERS for target in targets_of(make))
    names = [target.name for target in targets]
    assert len(set(names)) == len(names), "two targets have one name"
    return targets
