"""A coordinator that publishes other sums than it has opened."""

from dure_protocols.global_state import layout_of
from dure_server.coordinator.rounds import Coordinator


class FalseSums(Coordinator):
    """Says `falsify` what to do to each sum before anything is made of it."""

    def falsify(self, total, layout, members):
        """Change the sum, (words,) uint64, in place."""

    def _publish(self, attempt, releases, uploads):
        unmask = attempt.unmask

        def falsified(given):
            total = unmask(given)
            self.falsify(total, layout_of(self._job, self.state.round), attempt.survivors)
            return total

        attempt.unmask = falsified
        super()._publish(attempt, releases, uploads)
