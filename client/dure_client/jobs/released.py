"""The firm's memory of what it released, over all its jobs: state/released.bin in its home.

MUST NOT be restored from a backup, and neither must jobs/: an older memory lets a server ask twice.
"""

from pathlib import Path

from dure_client.home import write_file
from dure_protocols.secagg.disclosure import Disclosures


class ReleasedFile:
    """The memory and its file. One object an agent, shared by its jobs, used by one thread."""

    def __init__(self, path: Path) -> None:
        """Read the file, or begin with nothing released. Raises MessageError or RefusedError if it is damaged."""
        self._path = path
        self.disclosures = Disclosures.from_bytes(path.read_bytes()) if path.exists() else Disclosures()

    def save(self) -> None:
        """Store durably. MUST return before a release is sent."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self._path, self.disclosures.to_bytes(), mode=0o600)
