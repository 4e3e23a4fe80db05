"""policy.toml: what this firm consents to, field by field, and how commands change it. See `policy_checks`.

PolicyError: policy.toml is missing, not valid, or cannot be changed as asked.
"""

import re
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dure_client.absence import WindowText
from dure_client.consent import Agreed, Asks
from dure_client.shifts import Shift
from dure_client.trainer.sandbox import SandboxLevel
from dure_protocols.errors import DureError
from dure_protocols.identity import check_firm_name, grouped
from dure_protocols.toml import field_problems, no_such_field, parse_toml

DEFAULT_TEXT = """\
# What this firm consents to. The agent reads this file at every request and refuses whatever is outside of it.
# `dure-agent policy show` prints what is in force.

# Who says yes to a job: "ask" waits for `dure-agent approve JOB`; "allowed-models" takes part by itself in every job
# that passes all the checks below and is nothing new (ask_person).
approve_jobs = "ask"

# With "allowed-models": what a person here is still asked about each time, compared with the jobs that a person has
# approved before. "new-model": a model or version of it; "new-firm": a firm, or another key of one; "new-agreement": an
# agreement or version of it; "weaker-cohort": sums over fewer firms than in any job before. Leave one out to be asked
# about it no more.
ask_person = ["new-model", "new-firm", "new-agreement", "weaker-cohort"]

# What a model may be for, in the words that job files use. A job for anything else is refused. Empty: any purpose, but
# a person has to approve each job.
purposes = []

# The agreements between the firms under which jobs may run are listed at the end of this file, each version for itself:
#     [[agreements]]
#     name = "Valley mills data agreement"
#     version = "2"
#     sha256 = "…"                      # of the agreement's file, as `sha256sum` prints it
# A job under any other is refused. None listed: any, but a person has to approve each job.

# Fewest firms whose updates may be added up with ours. A sum of two shows each of the two what the other gave.
minimum_cohort = 3

# By how many firms a later sum of updates must differ from each earlier one, if it differs at all. With 1, every cohort
# passes, and when a firm drops out of a round the two sums show how many rows it has, and roughly what it gave. With 2,
# a cohort is also refused if some combination of sums would be one firm's; but then one drop-out can halt a job.
minimum_difference = 1

# The same for statistics, whose sums are exact. With 1, a consortium that grows by one firm, in a new job on the same
# data, shows that firm's statistics to all; let it grow by two, or lower this for that job with everybody's consent.
minimum_statistics_difference = 2

# Fewest rows of our own to train on: an update made from a handful of rows says much about them.
minimum_rows = 100

# Take any model that is installed here and whose digest is the job's. With false, only those listed at the end of this
# file (`dure-agent policy allow MODEL` adds one), and model packages that a person here approved with their job: these
# for that job alone, without being listed.
allow_any_installed_model = false

# Let model packages with compiled parts be fetched. Nobody can read what those do; with false, only Python sources.
allow_native_code = false

# How many of the accepted firms (below) have to vouch for a firm that is not accepted here, so that a job with it is
# taken all the same. They sign its fingerprint (`dure-agent vouch`), and this agent checks their signatures
# (`dure-agent vouches`). 0: nobody's word counts, each firm is accepted here. A firm that is accepted with another key
# is refused, whoever vouches.
vouchers_needed = 0

# What must hold a model's code while it trains here, or no job is taken part in; `dure-agent doctor` tries it. "full":
# no network, no files but those of data.toml, no further processes, limits (bubblewrap, on Linux). "limits": limits on
# memory, files and priority; files and network stay open to it. "off": nothing. The strongest that this machine has is
# used in any case.
require_sandbox = "full"

# The most memory that a trainer may use, in GiB. With 0, three quarters of the machine's.
trainer_memory_gib = 0

# How many of this machine's processors the trainers may use, all of them together. With 0, each of them, and they give
# way to other work. Threads beyond it share them; `dure-agent run --threads` says how many threads a trainer starts.
trainer_processors = 0

# A GPU's device files, for trainers in a full sandbox, such as ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"].
# A GPU's driver is much code that a model's can then attack.
gpu_devices = []

# When this firm takes part in no new round, in this machine's local time, such as
# ["Mon-Fri 06:00-14:00", "Sat,Sun 00:00-24:00", "Fri 22:00-06:00"]. A round that has begun is brought to its end; the
# operator is told "in maintenance" and until when. `dure-agent pause` does the same by hand.
maintenance = []

# How much may be trained in a shift, over all jobs, listed at the end of this file. Windows are written as above; each
# limit may be left out. At a limit this firm takes part in no new round until the shift ends, and the operator is told
# "at its limit" and until when; 0 rounds is a shift without training. threads: of the processor, for the trainer.
#     [[shifts]]
#     window = "Mon-Fri 06:00-14:00"
#     rounds = 4                        # rounds trained in each such shift
#     training_minutes = 30             # minutes spent on training in each such shift
#     threads = 1

# The firms we train with, each by the fingerprint of its identity key, compared over a way of your own (a contract, a
# phone call). `dure-agent accept FIRM FINGERPRINT` adds one. A job with any other firm in it is refused.
[firms]
"""

_FIRMS_HEADER = re.compile(r"^[ \t]*\[firms\][ \t]*(#.*)?$", re.MULTILINE)


class PolicyError(DureError):
    """policy.toml is missing, not valid, or cannot be changed as asked."""


class ApproveJobs(StrEnum):
    """Who says yes to a job."""

    ASK = "ask"
    ALLOWED_MODELS = "allowed-models"


def _digest(value: str) -> str:
    bare = re.sub(r"[\s:]", "", value).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", bare):
        raise ValueError("must be 64 hexadecimal digits; blanks and colons between them do not count")
    return bare


def _device(path: Path) -> Path:
    if path.parts[:2] != ("/", "dev") or ".." in path.parts or len(path.parts) < 3:
        raise ValueError("must be a file in /dev")
    return path


HexDigest = Annotated[str, AfterValidator(_digest)]
DevicePath = Annotated[Path, AfterValidator(_device)]
FirmName = Annotated[str, AfterValidator(check_firm_name)]
Purpose = Annotated[str, Field(min_length=1, max_length=200)]


class AllowedModel(BaseModel):
    """A model that may be trained here: its name and the digest of its code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    digest: HexDigest


class Policy(BaseModel):
    """policy.toml, checked. Each field is explained in `DEFAULT_TEXT`, which is the file a firm starts with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approve_jobs: ApproveJobs = ApproveJobs.ASK
    minimum_cohort: int = Field(default=3, ge=2)
    minimum_difference: int = Field(default=1, ge=1)
    minimum_statistics_difference: int = Field(default=2, ge=1)
    minimum_rows: int = Field(default=100, ge=1)
    ask_person: tuple[Asks, ...] = tuple(Asks)
    purposes: tuple[Purpose, ...] = ()
    vouchers_needed: int = Field(default=0, ge=0)
    allow_any_installed_model: bool = False
    allow_native_code: bool = False
    require_sandbox: SandboxLevel = SandboxLevel.FULL
    trainer_memory_gib: float = Field(default=0, ge=0, allow_inf_nan=False)
    trainer_processors: int = Field(default=0, ge=0)
    gpu_devices: tuple[DevicePath, ...] = ()
    maintenance: tuple[WindowText, ...] = ()
    shifts: tuple[Shift, ...] = ()
    agreements: tuple[Agreed, ...] = ()
    allowed_models: tuple[AllowedModel, ...] = ()
    firms: dict[FirmName, HexDigest] = {}

    @classmethod
    def parse(cls, text: str) -> Self:
        """The policy of a file's text. Raises PolicyError naming every problem."""
        try:
            return cls.model_validate(_without_strays(parse_toml(text)))
        except tomllib.TOMLDecodeError as error:
            raise PolicyError(f"policy.toml is not valid TOML: {error}; correct that line") from error
        except ValidationError as error:
            lines = "".join(f"\n  - {problem}" for problem in field_problems(error, cls))
            raise PolicyError(f"policy.toml is not a valid policy:{lines}") from error
        except PolicyError:
            raise
        except DureError as error:  # a firm's name
            raise PolicyError(f"policy.toml, [firms]: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """The policy in force: of the file, or the default, which is strict, where there is no file."""
        return cls.parse(read_text(path))


def _without_strays(fields: dict[str, object]) -> dict[str, object]:
    """The fields as they came. Raises PolicyError for lines below [firms] that are no firm: fields appended to a file
    that ends with that table."""
    firms = fields.get("firms")
    strays = [name for name, value in firms.items() if _is_no_firm(name, value)] if isinstance(firms, dict) else []
    if strays:
        lines = "".join(f"\n  - firms.{name}: {no_such_field(Policy, ('firms', name))}" for name in strays)
        raise PolicyError(f"policy.toml is not a valid policy:{lines}")
    return fields


def _is_no_firm(name: str, value: object) -> bool:
    return not isinstance(value, str) or (name in Policy.model_fields and not _is_digest(value))


def _is_digest(value: str) -> bool:
    try:
        return bool(_digest(value))
    except ValueError:
        return False


def read_text(path: Path) -> str:
    """The text of policy.toml, or the default. Raises PolicyError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return DEFAULT_TEXT
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} cannot be read as text: {error}") from error


def pin_firm(text: str, firm: str, came: str, *, replace: bool = False) -> str:
    """policy.toml's text with a firm pinned to a fingerprint; comments and order stay. Pure.

    Raises PolicyError if the fingerprint is none, or another is pinned and `replace` is false.
    """
    policy = Policy.parse(text)
    check_firm_name(firm)
    try:
        wanted = _digest(came)
    except ValueError as error:
        raise PolicyError(
            f"{came!r} is no fingerprint: 64 hexadecimal digits were expected, in any grouping"
        ) from error
    pinned = policy.firms.get(firm)
    if pinned == wanted:
        return text
    if pinned is not None and not replace:
        raise PolicyError(
            f"{firm!r} is already accepted with {grouped(pinned)}. If {firm} itself confirmed that it has a new key, "
            "repeat the command with --replace"
        )
    line = f'{firm} = "{wanted}"'
    changed = _without_pin(text, firm) if pinned is not None else text
    header = _FIRMS_HEADER.search(changed)
    if header is None:
        changed = f"{changed.rstrip()}\n\n[firms]\n{line}\n"
    else:
        changed = f"{changed[: header.end()]}\n{line}{changed[header.end() :]}"
    return _checked(changed, policy.model_copy(update={"firms": {**policy.firms, firm: wanted}}))


def allow_model(text: str, name: str, digest: str) -> str:
    """policy.toml's text with a model on the allow-list. Pure. Raises PolicyError."""
    policy = Policy.parse(text)
    try:
        model = AllowedModel(name=name, digest=digest)
    except ValidationError as error:
        raise PolicyError(f"{name!r} with digest {digest!r} is no model that could be allowed") from error
    if model in policy.allowed_models:
        return text
    changed = f'{text.rstrip()}\n\n[[allowed_models]]\nname = "{model.name}"\ndigest = "{model.digest}"\n'
    return _checked(changed, policy.model_copy(update={"allowed_models": (*policy.allowed_models, model)}))


def _without_pin(text: str, firm: str) -> str:
    return re.sub(rf"""^[ \t]*["']?{re.escape(firm)}["']?[ \t]*=.*\n?""", "", text, flags=re.MULTILINE)


def _checked(text: str, expected: Policy) -> str:
    """`text` if it says what it should: it was changed as text, so that the firm's comments stay."""
    try:
        is_right = Policy.parse(text) == expected
    except PolicyError:
        is_right = False
    if not is_right:
        raise PolicyError("policy.toml is laid out in a way that this command cannot change; edit it by hand")
    return text
