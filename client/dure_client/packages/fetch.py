"""Getting model packages from the consortium's registry, because the firm's people asked: nothing is ever pushed.

The requests go over the enrolment API and into the ledger, like every byte that leaves. The ledger has one writer:
while an agent runs on the home, the command lays its wish into `state/` and the agent runs the errand.
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dure_client.enrolment.api import EnrolmentApi
from dure_client.home import AgentHome, write_file
from dure_client.ledger import Ledger
from dure_client.link.client import EgressRecorder
from dure_client.packages.shelf import PackageError, PackageShelf
from dure_client.policy import Policy
from dure_protocols.errors import DureError
from dure_protocols.ledger import LedgerError
from dure_protocols.model_package import MAX_PACKAGE_BYTES, MAX_PUBLISHED, PublishedModels

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.1
MAX_NOTE_BYTES = 32 << 10
Note = TypeVar("Note", bound=BaseModel)


class Wish(BaseModel):
    """What a command asks the running agent to fetch: a model's name, a package's digest, or "" for all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    wanted: str = Field(max_length=64)


class Told(BaseModel):
    """What came of a wish: the digests of the packages that are here now, or why not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    digests: tuple[str, ...] = Field(default=(), max_length=MAX_PUBLISHED)
    problem: str = Field(default="", max_length=4000)


def fetch(home: AgentHome, wanted: str, recorder: EgressRecorder, environment: Mapping[str, str]) -> list[str]:
    """Fetch what the registry offers of a model's name or package digest, or all; the digests of what is here now.

    What is here already is not fetched again. Raises an EnrolmentError, HomeError, ProxyError, PackageError,
    ModelPackageError, WheelError.
    """
    config, shelf = home.config(), PackageShelf(home.models)
    allow_native_code = Policy.read(home.policy_file).allow_native_code
    route = config.route(environment)
    own = f"/certificates/{home.certificate().fingerprint}/models"
    here = {each.digest for each in shelf.all()}
    with EnrolmentApi(
        config.enrolment_url,
        recorder,
        home.root_file.read_bytes(),
        proxy=route.proxy,
        server_name=route.server_name,
    ) as api:
        offered = api.get(own, PublishedModels).models
        chosen = [each for each in offered if wanted in {"", each.name, each.digest}]
        if wanted and not chosen:
            names = ", ".join(sorted({each.name for each in offered})) or "none"
            raise PackageError(f"the registry offers no package of {wanted!r} (models offered: {names})")
        for each in chosen:
            if each.digest not in here:
                shelf.keep(
                    api.get_bytes(f"{own}/{each.digest}", MAX_PACKAGE_BYTES),
                    each.digest,
                    allow_native_code=allow_native_code,
                )
    return [each.digest for each in chosen]


def fetch_now(home: AgentHome, wanted: str, *, patience_seconds: float = PATIENCE_SECONDS) -> list[str]:
    """`fetch`, by this process, or by the agent if one runs on this home. What `dure-agent model fetch` calls.

    Raises as `fetch`, and PackageError with what the agent says.
    """
    with ExitStack() as stack:
        try:
            ledger = stack.enter_context(Ledger(home.ledger_file, home.identity()))
        except LedgerError:
            return _ask_agent(home, wanted, patience_seconds)
        return fetch(home, wanted, ledger, os.environ)


def run_errand(home: AgentHome, recorder: EgressRecorder, environment: Mapping[str, str]) -> None:
    """Fetch what a command wished for, if it did. Called by the agent, about once a second.

    Raises OSError where not even the answer can be written.
    """
    file = wish_file(home)
    if not file.exists():
        return
    wish = read_note(file, Wish)
    file.unlink(missing_ok=True)
    if wish is None:
        return
    try:
        told = Told(id=wish.id, digests=tuple(fetch(home, wish.wanted, recorder, environment)))
    except (DureError, OSError) as error:
        logger.warning("model packages could not be fetched: %s", error)
        told = Told(id=wish.id, problem=str(error)[:4000])
    write_file(told_file(home), told.model_dump_json().encode())


def wish_file(home: AgentHome) -> Path:
    """Where a command lays its wish."""
    return home.state / "models-wanted.json"


def told_file(home: AgentHome) -> Path:
    """Where the agent says what came of it."""
    return home.state / "models-told.json"


def read_note(file: Path, form: type[Note]) -> Note | None:
    """One of the two files, None if it is not there or not what it must be."""
    try:
        with file.open("rb") as opened:
            return form.model_validate_json(opened.read(MAX_NOTE_BYTES))
    except (OSError, ValidationError):
        return None


def _ask_agent(home: AgentHome, wanted: str, patience_seconds: float) -> list[str]:
    wish = Wish(id=secrets.token_hex(16), wanted=wanted)
    write_file(wish_file(home), wish.model_dump_json().encode())
    give_up_at = time.monotonic() + patience_seconds
    while (told := read_note(told_file(home), Told)) is None or told.id != wish.id:
        if time.monotonic() > give_up_at:
            raise PackageError(
                f"the agent that runs on {home.path} did not fetch within {patience_seconds:.0f} s; see its "
                "logs/agent.log, or stop it and try again"
            )
        time.sleep(_LOOK_SECONDS)
    if told.problem:
        raise PackageError(told.problem)
    return list(told.digests)
