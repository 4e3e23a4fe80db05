"""What `dure bench secagg --json` prints: ratios first, then what they are made of."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from dure_lab.bench.secagg.memory import Peak
from dure_lab.bench.spread import Spread


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Ratios(_Frozen):
    """Figures that carry from machine to machine, each pair taken in the same repetition.

    secagg_over_client: a client's whole work in SecAgg+ over ours, masks and messages included; secagg_over_masking: of
    it the quantising and the masks alone, on both sides; secagg_over_wait: over what our firm waits for after training;
    secagg_over_server: add and unmask; online_over_memcpy: quantise, add to the masks and tag, over one float32 memcpy;
    tag_share: the tag's part of that pass; tag_share_of_wait: of all that our firm waits for after training;
    client_over_same_codec: over the same codec in the clear; unmask_gb_per_second, mask_gb_per_second: keystream that
    one core removes at the server, and makes at a firm.
    None where an arm was left out.
    """

    secagg_over_client: Spread | None
    secagg_regular_over_client: Spread | None
    secagg_over_masking: Spread | None
    secagg_over_wait: Spread | None
    secagg_over_server: Spread | None
    ckks_over_client: Spread | None
    online_over_memcpy: Spread | None
    tag_share: Spread | None
    tag_share_of_wait: Spread | None
    client_over_same_codec: Spread | None
    unmask_gb_per_second: Spread | None
    mask_gb_per_second: Spread | None


class Traffic(_Frozen):
    """Our bytes of one firm in one round. Vector: packed words. Other: the words behind them and all messages.

    set_up_*: the messages of an epoch's keys, once for many rounds. Sizes are of encoded messages of a real run.
    """

    bytes_per_parameter_up: float
    vector_up: int
    other_up: int
    other_down: int
    other_up_share: float
    set_up_up: int
    set_up_down: int


class ArmResult(_Frozen):
    """One arm. Seconds by part; totals are of the parts a client or the server cannot do without.

    afterwards: what is done with the sum once it is there; with ours at every firm, with the others at the server or,
    CKKS, at the firms. largest_error: of the mean, against
    the mean in float64, over the codec's clip.
    """

    client_total: Spread
    server_total: Spread
    afterwards: Mapping[str, Spread]
    client: Mapping[str, Spread]
    server: Mapping[str, Spread]
    vector_bytes: int
    bytes_per_parameter: float
    largest_error: float
    extrapolated_from: Mapping[str, int]
    peak_client: Peak | None
    peak_server: Peak | None


class CaseResult(_Frozen):
    """One number of firms and parameters.

    sums_equal: ours unmasked and the same codec in the clear, word by word; tag_holds: what a firm checks of it.
    """

    firms: int
    parameters: int
    ratios: Ratios
    mode: str
    repetitions: int
    traffic: Traffic | None
    sums_equal: bool | None
    tag_holds: bool | None
    set_up_seconds: float | None
    arms: Mapping[str, ArmResult]


class Machine(_Frozen):
    """Where it ran."""

    processor: str
    cores: int
    python: str
    numpy: str
    flwr: str


class SecAggBenchmark(_Frozen):
    """The whole run."""

    machine: Machine
    seed: int
    cases: tuple[CaseResult, ...]
