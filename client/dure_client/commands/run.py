"""`dure-agent run`: connect, and take part in the jobs that this firm approved."""

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome


def run(home: HomeOption) -> None:
    """Run the agent until it is stopped (Ctrl-C). It connects outward only."""
    from dure_client.running import run_agent  # noqa: PLC0415  # loads flwr

    run_agent(AgentHome(home))
