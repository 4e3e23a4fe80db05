"""What the running agent last heard of the server, kept where `dure-agent status` finds it."""

from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError


class LinkStanding(BaseModel):
    """state/link.json. `clock_ahead_seconds`: by how much this machine's clock was ahead of the server's then."""

    model_config = ConfigDict(frozen=True)

    heard_at: AwareDatetime
    server_version: str
    protocol: int
    clock_ahead_seconds: float

    def write(self, file: Path) -> None:
        """Replace the file whole or not at all. Not flushed to disk: the next connection tells it again."""
        aside = file.with_suffix(".new")
        aside.write_text(self.model_dump_json())
        aside.replace(file)

    @classmethod
    def read(cls, file: Path) -> "LinkStanding | None":
        """What is there; None if the agent was never connected or the file is damaged."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None
