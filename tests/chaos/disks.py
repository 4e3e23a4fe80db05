"""A small disk of its own that can be filled: a tmpfs, which takes root."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20


def why_not() -> str:
    """Why no small disk can be mounted here; empty if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a small disk takes Linux and root"
    return ""


class Disk:
    """A tmpfs over a folder."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._ballast = folder, folder / "ballast"
        options = f"size={size_mib}m,mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "dure-chaos", str(folder)], check=True)

    def fill(self) -> None:
        """Take all the space there is."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount, also when somebody still looks into it."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=False)
