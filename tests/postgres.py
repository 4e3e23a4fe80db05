"""A PostgreSQL server of the tests' own: made in a temporary folder, on loopback, and gone with them."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

POSTGRES_VARIABLE = "DURE_TEST_POSTGRES"
MISSING = (
    f"no PostgreSQL: install it (Debian: apt-get install postgresql), or name a server in {POSTGRES_VARIABLE}"
    " as postgresql://user:password@host/database"
)


def programs() -> Path | None:
    """The folder with initdb and postgres, or None where PostgreSQL is not installed."""
    on_path = shutil.which("postgres")
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    folders += [Path(on_path).parent] if on_path else []
    return next((folder for folder in folders if all((folder / n).exists() for n in ("initdb", "postgres"))), None)


@contextmanager
def private_server(binaries: Path) -> Iterator[str]:
    """Start a server and yield its URL. It is ended, by its process id, when the block is left."""
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="dure-postgres-"))
    try:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = folder / "data"
        _run([binaries / "initdb", "--auth=trust", "--no-sync", "--username=dure", "--pgdata", data], user)
        port = _free_port()
        server = [
            binaries / "postgres",
            "-D",
            data,
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "fsync=off",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(server, stdout=log, stderr=log, **_as(user), cwd=folder)
        try:
            url = f"postgresql://dure@127.0.0.1:{port}/postgres"
            _wait_for(url)
            yield url
        finally:
            process.send_signal(2)  # fast shutdown: do not wait for clients
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root; its package brings a user."""
    return pwd.getpwnam("postgres") if os.getuid() == 0 else None


def _as(user: pwd.struct_passwd | None) -> dict[str, object]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


def _run(command: list[object], user: pwd.struct_passwd | None) -> None:
    words = [str(part) for part in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, **_as(user), cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed: {done.stdout}{done.stderr}")


def _wait_for(url: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
