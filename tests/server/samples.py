"""Sample job files for the server's tests."""

from dure_protocols.identity import Identity
from dure_protocols.job import CodecTerms, JobFile, ModelTerms

FIRMS = ("firm-a", "firm-b")


def identity(firm: str) -> Identity:
    """The same key for the same name."""
    return Identity.from_seed(firm.encode().ljust(32, b"."))


def job_file(
    job: str, *, title: str = "Milling wear", firms: tuple[str, ...] = FIRMS, rounds: int = 3, simulated: bool = False
) -> JobFile:
    """A small valid job."""
    return JobFile(
        id=job,
        title=title,
        simulated=simulated,
        consortium="Millers",
        firms={firm: identity(firm).public_bytes.hex() for firm in firms},
        minimum_cohort=2,
        model=ModelTerms(
            name="tabular", digest="aa" * 32, parameters=10, initial_digest="bb" * 32, round_metrics=("loss", "pr_auc")
        ),
        contract={},
        codec=CodecTerms(clip=1.0, count_cap=1000),
        rounds=rounds,
        selection_metric="loss",
        seed=7,
    )
