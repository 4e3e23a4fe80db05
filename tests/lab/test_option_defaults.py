"""Every option of every command takes its own default: what is left out is never refused."""

from collections.abc import Iterator

import click
import pytest
import typer

from dure_client.cli import app as agent
from dure_lab.cli import app as lab
from dure_server.cli import app as server


def options(command: click.Command, name: str) -> Iterator[tuple[str, click.Parameter]]:
    """Each parameter of a command and of those below it, with the words that lead there."""
    for parameter in command.params:
        yield f"{name} {parameter.name}", parameter
    for below, each in getattr(command, "commands", {}).items():
        yield from options(each, f"{name} {below}")


@pytest.mark.parametrize(
    ("name", "app"), [("dure-agent", agent), ("dure-server", server), ("dure", lab)], ids=["agent", "server", "lab"]
)
def test_what_is_left_out_is_taken_as_its_default(name: str, app: typer.Typer) -> None:
    found = dict(options(typer.main.get_command(app), name))
    assert len(found) > 20
    for words, parameter in found.items():
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert parameter.type.convert(parameter.default, parameter, None) == parameter.default, words
