"""What the commands share: the home option, opening a home, the actor for the audit log, the terminal."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dure_server.settings import HOME_VARIABLE, ServerHome, ServerSettings, default_home
from dure_server.store import Store

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar=HOME_VARIABLE, help="The server's home folder.", default_factory=default_home),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def terminal() -> Console:
    """Where a command's results go. Lines are not wrapped, so that they can be copied and searched."""
    return Console(highlight=False, soft_wrap=True)


def actor() -> str:
    """Who acts, for the audit log: the user of this machine, until the console knows people."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):
        return "unknown user (command line)"


@contextmanager
def opened(home_path: Path) -> Iterator[tuple[ServerHome, ServerSettings, Store]]:
    """A home with its settings and its store. Raises SettingsError or StoreError."""
    home = ServerHome(home_path)
    settings = home.settings()
    store = Store.open(home.store_url(settings))
    try:
        yield home, settings, store
    finally:
        store.close()
