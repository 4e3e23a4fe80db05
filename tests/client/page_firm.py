"""A firm's home with something of everything that its page shows, and what a browser would send."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

from starlette.testclient import TestClient

from dure_client.home import AgentConfig, AgentHome, keep_or_make_private, write_file
from dure_client.jobs.approvals import Verdict, decide
from dure_client.jobs.folder import Progress
from dure_client.jobs.results import JobResult, ModelReport
from dure_client.ledger import Ledger
from dure_client.packages.shelf import PackageShelf
from dure_client.page.access import Access
from dure_client.page.acts import LeaveJob
from dure_client.page.app import firm_app
from dure_client.policy import allow_model, pin_firm, read_text
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_protocols.certificates import Authority, key_to_pem, new_serial, new_tls_key, signing_request
from dure_protocols.identity import Identity
from dure_protocols.job import Agreement, CodecTerms, JobFile, ModelTerms
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.model_package import ModelPackage
from tests.model_packages.made import STRANGER, pump

PORT = 7490
ORIGIN = f"http://127.0.0.1:{PORT}"
NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
OWN, RIVER, HARBOUR = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
CONTRACT = DataContract.from_toml(
    """
    name = "milling"
    title = "Milling, simulated"
    simulated = true
    [[columns]]
    name = "air_temperature"
    type = "float"
    role = "feature"
    unit = "K"
    range = [290, 310]
    [[columns]]
    name = "product"
    type = "category"
    role = "feature"
    categories = ["L", "M", "H"]
    [[columns]]
    name = "failure"
    type = "integer"
    role = "target"
    range = [0, 1]
    """
)


def job_of(name: str, title: str, **changes: object) -> JobFile:
    """A job of three mills."""
    firms = {"north-mill": OWN, "river-mill": RIVER, "harbour-mill": HARBOUR}
    fields: dict[str, object] = {
        "id": name,
        "title": title,
        "consortium": "Valley mills",
        "simulated": True,
        "firms": {firm: identity.public_bytes.hex() for firm, identity in firms.items()},
        "minimum_cohort": 3,
        "model": ModelTerms(
            name="tabular", digest=model_digest("tabular"), parameters=18_433, initial_digest="00" * 32,
            round_metrics=("loss",),
        ),
        "contract": json.loads(CONTRACT.canonical_json()),
        "codec": CodecTerms(clip=1.0, count_cap=10_000),
        "rounds": 20,
        "seed": 1,
    }  # fmt: skip
    return JobFile.model_validate({**fields, **changes})


WAITING = job_of("wear-2", "Tool wear, second season")


def make_home(path: Path, *, accepts: bool = True, at: datetime = NOW) -> AgentHome:
    """The home of north-mill: joined, with one job that waits, one that runs and one that is finished."""
    home = AgentHome(path)
    home.create()
    keep_or_make_private(home.identity_key_file, OWN.to_pem())
    home.write_config(
        AgentConfig(
            consortium="Valley mills", firm="north-mill", server_host="dure.example.org", enrolment_port=7481,
            link_port=7482, root_fingerprint="00" * 32,
        )
    )  # fmt: skip
    key, authority = new_tls_key(), Authority.create("Valley mills", at, key=new_tls_key(), serial=new_serial())
    keep_or_make_private(home.tls_key_file, key_to_pem(key))
    home.tls_certificate_file.write_bytes(
        authority.issue_client("north-mill", signing_request(key), at, serial=new_serial())
    )
    if accepts:
        text = allow_model(read_text(home.policy_file), "tabular", model_digest("tabular"))
        for firm, identity in {"river-mill": RIVER, "harbour-mill": HARBOUR}.items():
            text = pin_firm(text, firm, identity.fingerprint)
        write_file(home.policy_file, text.encode())
    save(home, WAITING)
    for job in (job_of("heat-1", "Heat dissipation failures"), job_of("wear-1", "Tool wear")):
        save(home, job)
        decide(home, job, Verdict.APPROVED, at)
    _give_progress(home.job_folder("heat-1"), 8)
    _finish(home.job_folder("wear-1"))
    _let_leave(home)
    return home


def save(home: AgentHome, job: JobFile) -> None:
    """Let the operator have proposed a job."""
    home.job_folder(job.id).mkdir(exist_ok=True)
    (home.job_folder(job.id) / "job.json").write_bytes(job.to_bytes())


PUMP_SOURCE = b"class Pump:\n    # \xe2\x80\xae hidden\x1b[2J <script>alert(1)</script>\n    pass\n"


def offer_package(home: AgentHome) -> tuple[JobFile, ModelPackage]:
    """Let the operator have proposed a job with a package, fetched; another author's version of it was approved."""
    shelf = PackageShelf(home.models)
    before, after = pump(version="0.9", author=STRANGER), pump({"pump_model/__init__.py": PUMP_SOURCE})
    for each in (before, after):
        shelf.keep(each.to_bytes(), each.digest)
    shelf.install(before.digest, NOW)
    terms = ModelTerms(name="pump", digest=after.manifest.model_digest, parameters=12, initial_digest="00" * 32)
    agreement = Agreement(name="Valley mills data agreement", version="2", sha256="ab" * 32)
    job = job_of("pumps-1", "Pumps", model=terms, purpose="fewer standstills", agreement=agreement)
    save(home, job)
    return job, after


def _give_progress(folder: Path, round_: int) -> None:
    progress = Progress(
        round=round_, digest="00" * 32, normalisation=None, best=None, clip=1.0, moments=(), residual=None
    )
    (folder / "progress.json").write_text(progress.model_dump_json())


def _finish(folder: Path) -> None:
    (folder / "final.f32").write_bytes(bytes(8))
    JobResult(
        job="wear-1", num_train=1280, num_validation=160, num_test=160, primary_metric="pr_auc", higher_is_better=True,
        alone=ModelReport(validation={"pr_auc": 0.51}, test={"pr_auc": 0.506}),
        federated=ModelReport(validation={"pr_auc": 0.80}, test={"pr_auc": 0.822}),
    ).write(folder / "result.json")  # fmt: skip


def _let_leave(home: AgentHome) -> None:
    with Ledger(home.ledger_file, OWN, lambda: NOW - timedelta(hours=1)) as ledger:
        ledger.record(entry_of(RecordKind.ENROLMENT, 1204, ""))
        ledger.record(entry_of(RecordKind.SUBSCRIPTION, 61, ""))
        for job, rounds in (("wear-1", 20), ("heat-1", 7)):
            ledger.record(entry_of(RecordKind.APPROVAL, 118, job))
            ledger.record(entry_of(RecordKind.KEYS, 2450, job))
            for number in range(1, rounds + 1):
                ledger.record(entry_of(RecordKind.JOIN, 230, job, number))
                ledger.record(entry_of(RecordKind.BLOB, 36_900, job, number))
                ledger.record(entry_of(RecordKind.MASKED_UPDATE, 301, job, number))
                ledger.record(entry_of(RecordKind.RELEASE, 190, job, number))


def entry_of(kind: RecordKind, size: int, job: str, number: int = 0) -> Entry:
    """One thing that left."""
    return Entry(kind, size, hashlib.sha256(f"{kind}{job}{number}".encode()).digest(), job, number, min(number, 1))


@dataclass
class Browser:
    """Someone who opens the page, with a session or without."""

    home: AgentHome
    access: Access
    client: TestClient

    def sign_in(self) -> None:
        """Show the code."""
        answer = self.client.post("/sign-in", data={"code": self.access.code})
        assert answer.status_code == 200, answer.text

    def token(self) -> str:
        """What this session's forms carry."""
        found = re.search(r'name="token" value="([0-9a-f]+)"', self.client.get("/left").text)
        assert found is not None
        return found[1]

    def act(self, name: str, **form: str) -> str:
        """Press a button; the page that follows."""
        return self.client.post(f"/acts/{name}", data={"token": self.token(), **form}).text


def browser(home: AgentHome, leave: LeaveJob | None = None, clock: Callable[[], float] = lambda: 0.0) -> Browser:
    """Not signed in yet. What it sends carries the Origin of the page, as browsers do."""
    access = Access(clock=clock)
    app = firm_app(home, PORT, access, now=lambda: NOW, leave=leave)
    client = TestClient(app, base_url=ORIGIN, headers={"Origin": ORIGIN}, raise_server_exceptions=False)
    return Browser(home, access, client)


def words(html: str) -> str:
    """What a page says, without its marks."""
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", html).split()))


def files(home: AgentHome) -> dict[Path, bytes]:
    """Every file of a home, to see that nothing changed."""
    return {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}
