"""What this home last heard of the server, kept where `dure-agent status` and the doctor find it."""

from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError


class LinkStanding(BaseModel):
    """state/link.json, of the running agent or of a command that asked the server.

    `clock_ahead_seconds`: by how much this machine's clock was ahead of the server's then. Version and protocol are the
    link's: None until the agent has run.
    """

    model_config = ConfigDict(frozen=True)

    heard_at: AwareDatetime
    server_version: str | None = None
    protocol: int | None = None
    clock_ahead_seconds: float

    def write(self, file: Path) -> None:
        """Replace the file whole or not at all. Not flushed to disk: the next connection tells it again."""
        aside = file.with_suffix(".new")
        aside.write_text(self.model_dump_json())
        aside.replace(file)

    @classmethod
    def read(cls, file: Path) -> "LinkStanding | None":
        """What is there; None if the server was never heard or the file is damaged."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None
