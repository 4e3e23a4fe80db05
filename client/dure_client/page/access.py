"""Who may look at the firm's page: whoever reads the code that `dure-agent ui` printed, once.

The code is exchanged for a session, whose key is a cookie and whose token stands in every form. Both are made anew for
each session and end with it or with the process. Nothing is kept on disk.
"""

import base64
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

CODE_BYTES: Final = 10
"""80 random bits: 16 characters, short enough to be typed and too many to be tried."""
KEY_BYTES: Final = 32
CODE_SECONDS: Final = 10 * 60
SESSION_SECONDS: Final = 8 * 3600
"""A working day."""


@dataclass(frozen=True)
class Notice:
    """What the last act came to, shown once. `code` chooses the sentence; `subject` is what it is about, such as a job;
    `detail` is what an error said."""

    code: str
    subject: str = ""
    detail: str = ""


@dataclass
class Session:
    """One browser that has shown the code."""

    key: str = field(repr=False)
    token: str = field(repr=False)
    ends_at: float
    notice: Notice | None = None

    def take_notice(self) -> Notice | None:
        """What is to be told, once."""
        notice, self.notice = self.notice, None
        return notice

    def accepts(self, token: str) -> bool:
        """Whether a form was written by this session's own page."""
        return _same(self.token, token)


class Access:
    """The code and the sessions of one process. `clock`: seconds that only go forward."""

    def __init__(
        self, random: Callable[[int], bytes] = secrets.token_bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._random, self._clock = random, clock
        self._sessions: dict[str, Session] = {}
        self._code = base64.b32encode(random(CODE_BYTES)).decode()
        self._code_ends_at = clock() + CODE_SECONDS

    @property
    def code(self) -> str:
        """The one-time code, grouped for reading."""
        return "-".join(self._code[start : start + 4] for start in range(0, len(self._code), 4))

    def enter(self, code: str) -> Session | None:
        """A session for the code, which is spent by that; None if it is wrong, spent or too old."""
        bare = "".join(code.split()).replace("-", "").upper()
        if not self._code or self._clock() >= self._code_ends_at or not _same(self._code, bare):
            return None
        self._code = ""
        session = Session(self._random(KEY_BYTES).hex(), self._random(KEY_BYTES).hex(), self._clock() + SESSION_SECONDS)
        self._sessions[session.key] = session
        return session

    def session(self, key: str) -> Session | None:
        """The session of a cookie; None if there is none, or it is over."""
        session = self._sessions.get(key)
        if session is not None and self._clock() >= session.ends_at:
            self.end(session)
            return None
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop(session.key, None)


def _same(expected: str, came: str) -> bool:
    return hmac.compare_digest(expected.encode(), came.encode())
