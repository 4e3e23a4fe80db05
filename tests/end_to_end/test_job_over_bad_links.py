"""One job over links as firms have them: one behind an HTTP proxy, one on a wire that is cut, a server that moves."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from dure_client.cli import app
from dure_client.ledger import verify_file
from dure_lab.consortium import LocalConsortium
from dure_protocols.job import JobFile
from tests.end_to_end import tiny
from tests.end_to_end.link_site import free_port
from tests.end_to_end.tiny import TRAINED_ROWS, held, published, until
from tests.end_to_end.wires import HOST, ConnectProxy, Wire, is_tls

BEHIND_PROXY, ON_WIRE, DIRECT = sorted(TRAINED_ROWS)
ALL = (BEHIND_PROXY, ON_WIRE, DIRECT)
NUM_ROUNDS = 12
OUTAGE_SECONDS = float(os.environ.get("DURE_OUTAGE_SECONDS", "300"))
ALLOWED_SECONDS = 10.0


@dataclass
class Site:
    consortium: LocalConsortium
    proxy: ConnectProxy
    wire: Wire
    job: JobFile

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        return {row.number: tuple(row.members) for row in published(self.consortium, self.job)}

    def goes_on_together_after(self, number: int) -> None:
        until(lambda: any(at > number and who == ALL for at, who in self.members.items()), self.consortium)


def started(stack: ExitStack, job: str, num_rounds: int, *, all_on_wire: bool = False) -> Site:
    consortium = stack.enter_context(tiny.founded())
    proxy = stack.enter_context(ConnectProxy(credentials="kim:hunter2"))
    wire = stack.enter_context(Wire(consortium.settings.link_port))
    for firm in ALL:
        home = consortium.enrol(firm)
        tiny.give_data(home, tiny.rows_of(firm))
        if all_on_wire or firm == ON_WIRE:
            home.write_config(home.config().model_copy(update={"link_port": wire.port}))
        elif firm == BEHIND_PROXY:
            credentials = home.path / "proxy-credentials"
            credentials.touch(mode=0o600)
            credentials.write_text("kim:hunter2")
            tell(consortium, firm, "proxy", "set", proxy.url, "--credentials", str(credentials))
    consortium.introduce("tabular")
    consortium.set_policy(minimum_cohort=2)
    for firm in ALL:
        consortium.start_agent(firm)
    proposed = consortium.propose(tiny.draft(consortium, job, rounds=num_rounds))
    tiny.approve(consortium, proposed)
    site = Site(consortium, proxy, wire, proposed)
    until(lambda: 1 in site.members, consortium)
    return site


def tell(consortium: LocalConsortium, firm: str, *arguments: str) -> None:
    """What a firm's people tell their agent while it runs."""
    result = CliRunner().invoke(app, [*arguments, "--home", str(consortium.agents[firm].path)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield started(stack, "bad-links", NUM_ROUNDS)


def test_a_firm_behind_a_proxy_takes_part_and_the_proxy_sees_tls_alone(site: Site) -> None:
    assert site.members[1] == ALL
    assert site.proxy.tunnels
    for tunnel in site.proxy.tunnels:
        assert tunnel.head.startswith(f"CONNECT {HOST}:{site.consortium.settings.link_port} HTTP/1.1\r\n".encode())
        assert is_tls(bytes(tunnel.up))
        assert is_tls(bytes(tunnel.down))
        assert BEHIND_PROXY.encode() not in tunnel.up + tunnel.down
    logs = [*(site.consortium.folder / "firms").rglob("*.log"), *(site.consortium.folder / "server").rglob("*.log")]
    assert logs
    assert all("hunter2" not in log.read_text() for log in logs)


def test_a_link_that_is_away_for_three_seconds_in_mid_round_costs_its_firm_nothing(site: Site) -> None:
    with held(site.consortium, site.job, ON_WIRE) as number:
        site.wire.down()
        time.sleep(3)
        site.wire.up()
    site.goes_on_together_after(number)
    assert site.members[number] == ALL


def test_a_server_that_moves_is_found_by_agents_that_are_told_and_the_job_goes_on(site: Site) -> None:
    consortium, port = site.consortium, free_port()
    with held(consortium, site.job, DIRECT) as number:
        consortium.stop("server")
        text = consortium.home.settings_file.read_text()
        moved = text.replace(f"link_port = {consortium.settings.link_port}", f"link_port = {port}")
        assert moved != text
        consortium.home.settings_file.write_text(moved)
        consortium.start_server()
        for firm in ALL:
            tell(consortium, firm, "server", "set", f"{HOST}:{port}")
        consortium.check()
    site.goes_on_together_after(number)
    assert any(tunnel.head.startswith(f"CONNECT {HOST}:{port} ".encode()) for tunnel in site.proxy.tunnels)


def test_the_job_finishes_with_every_round_counted_once_and_every_ledger_whole(site: Site) -> None:
    until(lambda: tiny.is_finished(site.consortium, site.job), site.consortium, 120)
    rounds = published(site.consortium, site.job)
    assert [row.number for row in rounds] == list(range(NUM_ROUNDS + 2))
    assert all(row.count == sum(TRAINED_ROWS[firm] for firm in row.members) for row in rounds[:-1])
    for home in site.consortium.agents.values():
        verify_file(home.ledger_file, home.identity().public_bytes)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("how", ["freeze", "down"])
def test_a_link_down_for_minutes_in_mid_round_costs_that_time_and_ten_seconds_at_most(how: str) -> None:
    with ExitStack() as stack:
        site = started(stack, f"outage-{how}", 200, all_on_wire=True)
        consortium = site.consortium
        until(lambda: 4 in site.members, consortium)
        times = [row.finished_at for row in published(consortium, site.job)]
        usual = max((after - before).total_seconds() for before, after in pairwise(times[1:]))
        with held(consortium, site.job, ON_WIRE) as last:
            getattr(site.wire, how)()
        time.sleep(OUTAGE_SECONDS)
        assert max(site.members) < last  # the job stood
        began = time.monotonic()
        site.wire.up()
        until(lambda: any(at >= last and who == ALL for at, who in site.members.items()), consortium)
        took = time.monotonic() - began
        print(
            f"\n{how} for {OUTAGE_SECONDS:.0f} s: a round of all firms {took:.1f} s after its end (usual {usual:.1f} s)"
        )
        assert took <= usual + ALLOWED_SECONDS
