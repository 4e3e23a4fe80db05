"""Vouches that this firm was given, and its own: files in vouches/ of its home, `FIRM-by-VOUCHER.vouch`.

They come as files, over any way: what counts is the signature, and whether the signer is pinned
(`policy_checks.check_job`).
"""

import logging
from pathlib import Path

from dure_client.home import AgentHome, write_file
from dure_client.policy import PolicyError
from dure_protocols.errors import DureError
from dure_protocols.vouching import MAX_VOUCH_TEXT, Vouch

logger = logging.getLogger(__name__)

SUFFIX = ".vouch"


def read_vouches(home: AgentHome) -> list[Vouch]:
    """All that were taken in, by name of file. One that is damaged counts for nothing, and the log says so."""
    found = []
    for file in sorted(home.vouches.glob(f"*{SUFFIX}")):
        try:
            found.append(read_vouch(file))
        except DureError as error:
            logger.warning("%s", error)
    return found


def read_vouch(file: Path) -> Vouch:
    """A vouch from its file. Raises PolicyError."""
    try:
        with file.open("rb") as opened:
            return Vouch.from_text(opened.read(MAX_VOUCH_TEXT + 2).decode("ascii"))
    except (OSError, UnicodeDecodeError, DureError) as error:
        raise PolicyError(f"{file} is no vouch that holds: {error}; ask the firm for it again") from error


def keep_vouch(home: AgentHome, vouch: Vouch) -> Path:
    """Take a vouch in, in the place of an earlier one of this voucher for this firm. Raises PolicyError."""
    consortium = home.config().consortium
    if vouch.consortium != consortium:
        raise PolicyError(
            f"this vouch is about the consortium {vouch.consortium!r}, this home belongs to {consortium!r}"
        )
    home.vouches.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Both names were checked when the vouch was read: they are firms' names, and so file names.
    file = home.vouches / f"{vouch.firm}-by-{vouch.voucher}{SUFFIX}"
    write_file(file, vouch.to_text().encode("ascii"))
    return file
