"""Firms with ledgers and a server that witnesses them: its real store and rules, without processes or a network."""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from dure_client.heads import Heads, read_statements, read_witnesses, statements_file, witnesses_file
from dure_client.ledger import Ledger, head_file, read_records
from dure_client.ledger_export import Export, export, verify_export
from dure_protocols.certificates import Authority, certificate_der
from dure_protocols.heads import NOTHING_BEFORE, Statement
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, Head, RecordKind
from dure_server.link.witness import Witness
from dure_server.store import FirmStatus, Store
from dure_server.store.tables import Firm
from tests.server.samples import identity, job_file

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ROOT_KEY = ec.derive_private_key(7, ec.SECP256R1())


class Site:
    """A consortium's server as a witness. Each look at its clock is a second later."""

    def __init__(self, folder: Path, *firms: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.now = START
        self.authority = Authority.create("Millers", START, key=ROOT_KEY, serial=1)
        self.root_der = certificate_der(self.authority.certificate_pem)
        url = f"sqlite:///{folder / 'store.sqlite'}"
        if (folder / "store.sqlite").exists():  # a server that starts again
            self.store = Store.open(url, self.clock)
        else:
            self.store = Store.create(url, self.clock)
            with self.store.transaction() as at:
                at.consortium.create("Millers", self.authority.fingerprint)
            for firm in firms:
                self.add(firm)
        self.witness = Witness(self.store, self.authority)

    def add(self, firm: str) -> None:
        key = identity(firm).public_bytes
        with self.store.transaction() as at:
            at.session.add(Firm(name=firm, status=FirmStatus.APPROVED, identity_key=key, invited_at=self.now))

    def share_a_job(self, job: str, *firms: str) -> None:
        with self.store.transaction() as at:
            at.jobs.propose(job_file(job, firms=firms))
            at.signoffs.ask(job, firms)

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    @property
    def audited(self) -> list[tuple[str, str]]:
        """The breaks in the audit log: whose, and in what words."""
        with self.store.reading() as at:
            return [(each.subject, each.detail) for each in at.audit.all() if each.action == "ledger.broken-off"]

    def close(self) -> None:
        self.store.close()


class FirmLedger:
    """One firm's ledger and heads, and what it says to the site."""

    def __init__(self, site: Site, firm: str) -> None:
        self.site, self.firm = site, firm
        self.identity: Identity = identity(firm)
        self.folder = site.folder / firm
        self.file = self.folder / "ledger.jsonl"
        self.pins: dict[str, str] = {}
        self.open()

    def open(self) -> None:
        """As an agent that starts."""
        self.ledger = Ledger(self.file, self.identity, lambda: START)
        self.heads = Heads(self.file, self.firm, self.identity, self.site.root_der)

    def accept(self, *others: "FirmLedger") -> None:
        self.pins |= {other.firm: other.identity.fingerprint for other in others}

    def record(self, count: int = 1, note: str = "") -> None:
        for _ in range(count):
            number = self.ledger.head.number + 1
            digest = hashlib.sha256(f"{note}{number}".encode()).digest()
            self.ledger.record(Entry(RecordKind.JOIN, 1 << min(number, 20), digest, "job-1", number))

    def state(self, *, deliver: Callable[[bytes], bytes] = bytes) -> list[str]:
        """State where the ledger ends, if that is due, as the agent does; what is to be said about the answer."""
        statement = self.heads.next(self.ledger.head)
        if statement is None:
            return []
        data = statement.encode()
        self.ledger.record(Entry(RecordKind.HEAD, len(data), hashlib.sha256(data).digest()))
        return self.heads.take(deliver(self.site.witness.deposit(self.firm, data)), self.pins)

    def export(self, name: str = "export.jsonl") -> Path:
        file = self.site.folder / f"{self.firm}-{name}"
        export(self.file, file, self.firm, self.identity, self.site.root_der)
        return file

    def verify(self, file: Path, **held: object) -> Export:
        return verify_export(file, self.identity.fingerprint, self.site.authority.fingerprint, **held)  # type: ignore[arg-type]

    def back_up(self) -> Path:
        """A copy of the ledger's folder, for `restore`."""
        copied = self.folder.with_name(f"{self.firm}-backup")
        self.close()
        shutil.copytree(self.folder, copied)
        self.open()
        return copied

    def restore(self, backup: Path) -> None:
        """Roll back to an older folder, and start the agent on it."""
        self.close()
        shutil.rmtree(self.folder)
        shutil.copytree(backup, self.folder)
        self.open()

    def roll_back_and_hide_it(self) -> None:
        """Take up an older ledger after the newer end was countersigned, and keep nothing of that but the last word."""
        backup = self.back_up()
        self.record(3)
        assert self.state() == []
        self.restore(backup)
        self.record(note="another history ")
        self.state()
        own = [each for each in read_witnesses(self.file) if each.firm == self.firm]
        witnesses_file(self.file).write_bytes(own[-1].to_line())

    def rewrite(self) -> None:
        """The ledger made anew with the firm's own key: same length and more, other contents; statements are kept."""
        self.close()
        number = self.ledger.head.number
        self.file.unlink()
        head_file(self.file).unlink()
        self.ledger = Ledger(self.file, self.identity)
        self.record(number + 3, note="as it should have been ")

    def forge_statements(self) -> None:
        """After `rewrite`: the same statements once more, on the records as they are now."""
        records, said, lines = list(read_records(self.file)), NOTHING_BEFORE, b""
        for each in read_statements(self.file):
            forged = Statement.make(Head(each.head.number, records[each.head.number - 1].hash), said, self.identity)
            said, lines = forged.digest, lines + forged.to_line()
        statements_file(self.file).write_bytes(lines)
        witnesses_file(self.file).unlink()

    def cut(self, number: int) -> None:
        """The end cut off behind a record, and everything beside it thrown away."""
        self.close()
        self.file.write_bytes(b"".join(self.file.read_bytes().splitlines(keepends=True)[:number]))
        for file in (head_file(self.file), statements_file(self.file), witnesses_file(self.file)):
            file.unlink()

    def close(self) -> None:
        self.ledger.close()
