"""Every user of a machine sees every command line, so no command takes a secret there: only files that hold one."""

import click
import pytest
import typer

from dure_client.cli import app as agent
from dure_server.cli import app as server

SECRET_WORDS = ("password", "passphrase", "secret", "pin", "token", "credential", "private", "key")
FILES_OF_SECRETS = {"dure-agent join --proxy-credentials", "dure-agent proxy set --credentials"}
"""Options that say "credential" and take a path; the type is checked, too."""


def parameters(command: click.Command, path: str) -> dict[str, click.Parameter]:
    """Every option and argument below a command, by the words with which it is typed."""
    if isinstance(command, click.Group):
        found = [parameters(sub, f"{path} {name}") for name, sub in command.commands.items()]
        return {name: parameter for each in found for name, parameter in each.items()}
    return {f"{path} {max(p.opts, key=len)}": p for p in command.params}


@pytest.mark.parametrize(
    ("app", "name", "expected"), [(agent, "dure-agent", "join --home"), (server, "dure-server", "init --host")]
)
def test_no_command_takes_a_secret(app: typer.Typer, name: str, expected: str) -> None:
    found = parameters(typer.main.get_command(app), name)
    assert f"{name} {expected}" in found
    for typed, parameter in found.items():
        words = typed.rpartition(" ")[2].strip("-").replace("_", "-").split("-")
        if not any(word.rstrip("s") in SECRET_WORDS for word in words):
            continue
        assert typed in FILES_OF_SECRETS, f"{typed} may be a secret on a command line"
        assert isinstance(parameter.type, click.Path), f"{typed} takes a secret where it should take a file's path"
