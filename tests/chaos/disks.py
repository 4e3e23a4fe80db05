"""A small disk of its own that can be filled: a tmpfs, which takes root."""

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

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all the space there is, but for so much."""
        room = os.statvfs(self._folder)
        size = room.f_bavail * room.f_frsize - leave_bytes
        with self._ballast.open("wb") as file:
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def set_read_only(self, *, on: bool) -> None:
        """Remount. Nobody may have a file open for writing."""
        word = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{word}", str(self._folder)], check=True)

    def close(self) -> None:
        """Unmount, also when somebody still looks into it."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=False)
