"""What `dure-agent doctor` finds out about this host, by trying it: sandbox, network, certificate, home.

Each module gives findings; none of them sends a byte that is anyone's data. `examine` gathers them.
"""

from dure_client.doctor.examine import examine
from dure_client.doctor.finding import Finding, State

__all__ = ["Finding", "State", "examine"]
