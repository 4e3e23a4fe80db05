"""What the security pack says is there, is there: ports, tests, files, commands, links."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from dure_client.cli import app
from dure_client.page import serve
from dure_server.settings import DEFAULT_CONSOLE_PORT, DEFAULT_ENROLMENT_PORT, DEFAULT_LINK_PORT

ROOT = Path(__file__).parents[2]
PACK = ROOT / "docs" / "security"
PAGES = sorted(PACK.glob("*.md"))


def rows_of(page: str) -> list[list[str]]:
    """The cells of a page's table rows, without heads and rules."""
    lines = [line for line in (PACK / page).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def named(cells: list[str]) -> Iterator[str]:
    """What stands in backquotes."""
    for cell in cells:
        yield from re.findall(r"`([^`]+)`", cell)


def test_the_ports_are_the_codes_defaults() -> None:
    told = {setting: port for port, setting, *_ in rows_of("ports-and-hosts.md") if port.isdigit()}
    assert told == {
        "`link_port`": str(DEFAULT_LINK_PORT),
        "`enrolment_port`": str(DEFAULT_ENROLMENT_PORT),
        "`console_port`": str(DEFAULT_CONSOLE_PORT),
        "`DURE_AGENT_UI_PORT`": str(serve.PORT),
    }


@pytest.mark.parametrize("cells", rows_of("claims.md"), ids=lambda cells: cells[0])
def test_each_claim_names_files_tests_and_commands_that_exist(cells: list[str]) -> None:
    _, where, checked = cells
    assert list(named([where]))
    assert list(named([checked]))
    for name in named([where, checked]):
        if name.startswith("dure-agent "):
            assert is_command(name.split()[1:]), name
            continue
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), path
        if test:
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), name


def is_command(words: list[str]) -> bool:
    """Whether the firm's program has this command, and its options."""
    at: click.Command = typer.main.get_command(app)
    for word in words:
        if word.startswith("-"):
            if not any(word in option.opts for option in at.params):
                return False
        elif isinstance(at, click.Group) and word in at.commands:
            at = at.commands[word]
        else:
            return False
    return not isinstance(at, click.Group)


def test_a_command_that_is_none_is_found() -> None:
    assert is_command(["ledger", "verify"])
    assert not is_command(["ledger", "forget"])
    assert not is_command(["ledger"])
    assert not is_command(["ui", "--public"])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "for-firms.md"], ids=lambda page: page.name)
def test_every_link_of_the_pack_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
