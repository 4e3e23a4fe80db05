"""A PostgreSQL server of the tests' own: made in a temporary folder, on loopback, and gone with them."""

import contextlib
import os
import pwd
import shutil
import signal
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


class PrivateServer:
    """One server, which can be stopped and started again on its port. `url` names its database."""

    def __init__(self, binaries: Path, folder: Path, *, fsync: bool = False) -> None:
        self._binaries, self._folder, self._user = binaries, folder, _unprivileged_user()
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._port = _free_port()
        self.url = f"postgresql://dure@127.0.0.1:{self._port}/postgres"
        initdb = [binaries / "initdb", "--auth=trust", "--no-sync", "--username=dure", "--pgdata", folder / "data"]
        _run(initdb, self._user)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        command = [self._binaries / "postgres", "-D", self._folder / "data", "-h", "127.0.0.1", "-p", str(self._port)]
        command += ["-k", self._folder, "-c", f"fsync={'on' if self._fsync else 'off'}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, **_as(self._user), cwd=self._folder, start_new_session=True
            )
        _wait_for(self.url)

    def stop(self) -> None:
        """Stop the server without waiting for its clients, whose connections end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def set_read_only(self, *, on: bool) -> None:
        """Refuse every write from the next transaction on, as a server does whose place another took; or take it
        back."""
        allowed = f"{self.url}?options=-c%20default_transaction_read_only%3Doff"
        with psycopg.connect(allowed, autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
            admin.execute("SELECT pg_reload_conf()")


@contextmanager
def restartable_server(binaries: Path, *, fsync: bool = False) -> Iterator[PrivateServer]:
    """A running server. It is ended, by its process id, when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="dure-postgres-"))
    try:
        server = PrivateServer(binaries, folder, fsync=fsync)
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            server.start()
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def private_server(binaries: Path) -> Iterator[str]:
    """Start a server and yield its URL. It is ended, by its process id, when the block is left."""
    with restartable_server(binaries) as server:
        yield server.url


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
