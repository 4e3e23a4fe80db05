"""A link process whose certificates live seconds: `python -m tests.end_to_end.short_lived_link HOME SECONDS`."""

import asyncio
import logging
import sys
from dataclasses import replace
from pathlib import Path

from dure_protocols.certificates import new_serial, read_certificate
from dure_server.link.membership import StoreMembership
from dure_server.link.process import link_settings, serve, store_membership
from dure_server.link.witness import Witness
from dure_server.settings import ServerHome
from dure_server.store.database import Store


def main(path: Path, life_seconds: float) -> None:
    logging.basicConfig(level=logging.INFO)
    home = ServerHome(path)
    settings = home.settings()
    store, authority = Store.open(home.store_url(settings)), home.authority()
    membership = StoreMembership(store, authority)

    def renew(firm: str, csr_pem: bytes) -> bytes:
        with store.transaction() as at:
            pem = authority.issue_client(firm, csr_pem, at.now, serial=new_serial(), days=life_seconds / 86_400)
            at.certificates.add(read_certificate(pem), pem)
        return pem

    asked = replace(store_membership(membership, Witness(store, authority)), renew=renew)
    asyncio.run(serve(link_settings(home), asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
