"""The power of a firm fails just before any one of its writes: what is on disk then must do to go on."""

import numpy as np
import pytest

from dure_client.home import write_file
from dure_client.jobs import folder, released
from dure_server.coordinator import conversation, rounds
from tests.simulation.consortium import Consortium
from tests.simulation.test_rounds import close

NAMES = tuple(f"firm-{letter}" for letter in "abcde")


class PowerCutError(Exception):
    """The firm's machine stops here."""


class Power:
    """Fails before write number `moment` of firm-c."""

    def __init__(self, consortium, moment):
        self.writes, self.moment = [], moment
        self._link, self._firm = consortium.link, consortium.firms["firm-c"]
        self._deliver, consortium.link._deliver = consortium.link._deliver, self.deliver

    def write(self, path, data, **options):
        if "firm-c" in path.parts:
            self.writes.append(path.name)
            if len(self.writes) == self.moment:
                raise PowerCutError
        write_file(path, data, **options)

    def deliver(self, ask_id):
        try:
            self._deliver(ask_id)
        except PowerCutError:
            self._firm.crash()


@pytest.mark.parametrize("threshold", [None, 4], ids=["retry", "threshold"])
@pytest.mark.parametrize("moment", range(1, 25))
def test_a_power_cut_before_any_write_costs_an_attempt_at_most(tmp_path, monkeypatch, threshold, moment):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    consortium = Consortium(tmp_path, num_firms=5, rounds=2, threshold=threshold)
    power = Power(consortium, moment)
    monkeypatch.setattr(folder, "write_file", power.write)
    monkeypatch.setattr(released, "write_file", power.write)
    consortium.run()
    assert len(power.writes) > moment or power.writes[-1] == "session.bin"
    members = consortium.members_by_round()
    assert all(set(of) >= set(NAMES) - {"firm-c"} for of in members.values())
    assert members[0] == NAMES
    expected = sum(np.mean([2.0 ** -(NAMES.index(firm) + 1) for firm in members[number]]) for number in (1, 2))
    assert close(consortium.coordinator.state.model, expected, 2)
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}
