import itertools
from collections.abc import Iterator

import pytest

from tests.end_to_end.link_site import LinkSite, running
from tests.end_to_end.recorded_mills import Mills, Recording, recorded_mills, tell

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def shared_site() -> Iterator[LinkSite]:
    """One link process for all tests of the link; each test brings firms of its own."""
    with running(LinkSite()) as made:
        yield made


@pytest.fixture
def site(shared_site: LinkSite) -> Iterator[LinkSite]:
    """A consortium with a running link."""
    yield shared_site
    shared_site.close_clients()
    if not shared_site.is_running:
        shared_site.start()


@pytest.fixture
def firm(site: LinkSite) -> str:
    """A firm that may use the link."""
    name = f"mill-{next(_numbers)}"
    site.admit(name)
    return name


@pytest.fixture
def other(site: LinkSite) -> str:
    """Another firm that may use the link."""
    name = f"mill-{next(_numbers)}"
    site.admit(name)
    return name


@pytest.fixture(scope="session")
def mills() -> Iterator[Mills]:
    """One consortium for all tests that need a whole one; each test leaves it as it found it."""
    with recorded_mills() as made:
        yield made


@pytest.fixture(scope="session")
def recording(mills: Mills) -> Recording:
    """What left one firm from joining to the end of a job. From then on all agents run."""
    return tell(mills)
