"""`dure bench round --compare unencrypted`: an encrypted round against the same codec without encryption.

One job in one consortium of real processes; in every other round no masks are made, added or removed (`unmasked`), so
both kinds of round meet the same machine at the same time. The trainer waits for a stated training time, in which the
masks of the encrypted rounds are made; it is taken off both.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dure_lab.bench.limited_link import SERVER_ADDRESS, limited_link
from dure_lab.bench.round import WARM_UP_ROUNDS, RoundsRun, run_rounds
from dure_lab.bench.spread import Spread, significant
from dure_lab.bench.unmasked.schedule import is_masked, pair_of
from dure_lab.consortium import LocalConsortium

_SERVER, _AGENT = "dure_lab.bench.unmasked.server", "dure_lab.bench.unmasked.agent"


class RoundComparison(BaseModel):
    """What `dure bench round --compare unencrypted --json` prints.

    ratio: median encrypted over median unencrypted round, the training time taken off both; pairs: the same of each
    pair of neighbouring rounds. ratio_without_release: over unencrypted rounds less their release phase, which a
    protocol without masks would not have. link_gbit_per_second: the rate asked for, and what one TCP stream had of it;
    None on loopback. Seconds: the round less the training time, and its phases as they are.
    """

    model_config = ConfigDict(frozen=True)

    ratio: float
    pairs: Spread
    ratio_without_release: float
    firms: int
    parameters: int
    pairs_measured: int
    training_seconds: float
    link_gbit_per_second: tuple[float, float] | None
    encrypted: Mapping[str, Spread]
    unencrypted: Mapping[str, Spread]


def compare_rounds(
    num_firms: int,
    num_parameters: int,
    num_pairs: int,
    *,
    training_seconds: float,
    gbit_per_second: float | None = None,
) -> RoundComparison:
    """Run it: `num_pairs` rounds of each kind after a warm-up. Raises LocalConsortiumError, NoLimitedLinkError."""
    with (
        tempfile.TemporaryDirectory(prefix="dure-bench-") as folder,
        _consortium(Path(folder), gbit_per_second) as ours,
    ):
        consortium, rates = ours
        ran = run_rounds(
            consortium,
            num_firms,
            num_parameters,
            WARM_UP_ROUNDS + 2 * num_pairs,
            training_seconds=training_seconds,
            server_module=_SERVER,
            agent_module=_AGENT,
        )
    return _comparison(ran, training_seconds, rates)


@contextmanager
def _consortium(
    folder: Path, gbit_per_second: float | None
) -> Iterator[tuple[LocalConsortium, tuple[float, float] | None]]:
    """A consortium on loopback, or with its server behind a limited link; and the rates of that link."""
    if gbit_per_second is None:
        with LocalConsortium(folder) as consortium:
            yield consortium, None
        return
    with limited_link(gbit_per_second) as link:
        rates = gbit_per_second, significant(link.measured())
        with LocalConsortium(folder, host=SERVER_ADDRESS, server_prefix=link.server_prefix) as consortium:
            yield consortium, rates


def _comparison(ran: RoundsRun, training_seconds: float, rates: tuple[float, float] | None) -> RoundComparison:
    seconds: dict[bool, dict[int, float]] = {True: {}, False: {}}
    phases: dict[bool, list[Mapping[str, float]]] = {True: [], False: []}
    for at in range(WARM_UP_ROUNDS, len(ran.rounds)):
        number = ran.rounds[at].number
        seconds[is_masked(number)][pair_of(number)] = ran.seconds(at) - training_seconds
        phases[is_masked(number)].append(ran.rounds[at].seconds)
    spreads = {
        masked: {
            "round": Spread.of(list(seconds[masked].values())),
            **{phase: Spread.of([each[phase] for each in phases[masked]]) for phase in phases[masked][0]},
        }
        for masked in seconds
    }
    encrypted, plain = spreads[True]["round"].median, spreads[False]["round"].median
    return RoundComparison(
        ratio=significant(encrypted / plain),
        pairs=Spread.of([seconds[True][pair] / seconds[False][pair] for pair in seconds[True]]),
        ratio_without_release=significant(encrypted / (plain - spreads[False]["release"].median)),
        firms=len(ran.job.firms),
        parameters=ran.job.model.parameters,
        pairs_measured=len(seconds[True]),
        training_seconds=training_seconds,
        link_gbit_per_second=rates,
        encrypted=spreads[True],
        unencrypted=spreads[False],
    )
