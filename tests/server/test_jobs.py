"""From the operator's draft to the job file that firms approve."""

from pathlib import Path

import numpy as np
import pytest

from dure_lab.datasets import machining, milling
from dure_models.digest import model_digest as code_digest
from dure_models.errors import ModelsError
from dure_protocols.errors import DureError
from dure_protocols.global_state import model_digest
from dure_protocols.identity import Identity
from dure_server.jobs import INITIAL_MODEL_FILE, JobDraft, JobDraftError, make_job, propose
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import Store, StoreConflictError
from dure_server.store.database import utc_now

FIRMS = ("north", "river", "harbour")
IDENTITIES = {name: Identity.from_seed(name.encode().ljust(32)) for name in FIRMS}
DRAFT = """
id = "tools-1"
title = "Tool failures, simulated"
model = "tabular"
contract = "contract.toml"
rounds = 4
seed = 7
codec = { clip = 0.1, count_cap = 2000 }
training = { learning_rate = 0.002 }
"""


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server of three approved firms."""
    made = ServerHome(tmp_path / "server")
    settings = ServerSettings(consortium="valley", public_host="127.0.0.1")
    make_home(made, settings, "test", utc_now())
    return made


@pytest.fixture
def store(home: ServerHome):
    opened = Store.open(home.store_url(home.settings()))
    with opened.transaction() as at:
        for name, identity in IDENTITIES.items():
            at.firms.invite(name)
            at.firms.join(name, identity.public_bytes, "1")
            at.firms.approve(name)
    yield opened
    opened.close()


def written(folder: Path, text: str = DRAFT) -> Path:
    (folder / "contract.toml").write_text(milling.task().contract.to_toml())
    (folder / "draft.toml").write_text(text)
    return folder / "draft.toml"


def test_what_a_person_decides_and_what_follows_from_the_code_make_the_job(home, store, tmp_path):
    job = propose(home, store, written(tmp_path), "test")
    assert job.firms == {name: identity.public_bytes.hex() for name, identity in IDENTITIES.items()}
    assert job.model.digest == code_digest("tabular")
    assert job.simulated
    assert job.training == {"learning_rate": 0.002, "num_rounds": 4, "update_clip": 0.1, "count_cap": 2000}
    initial = np.fromfile(home.job_folder(job.id) / INITIAL_MODEL_FILE, "<f4")
    assert initial.size == job.model.parameters
    assert model_digest(initial).hex() == job.model.initial_digest
    assert job.selection_metric in job.model.round_metrics
    with store.reading() as at:
        assert at.jobs.get("tools-1").body == job.to_bytes()
        assert at.audit.all()[-1].action == "job.proposed"


def test_the_same_draft_makes_the_same_job_and_another_seed_another_first_model():
    draft = JobDraft.model_validate(
        {"id": "a", "title": "t", "model": machining.MODEL, "contract": "c", "rounds": 1}
        | {"codec": {"clip": 0.1, "count_cap": 10}, "training": {"learning_rate": 0.1}}
    )
    keys = {name: identity.public_bytes.hex() for name, identity in IDENTITIES.items()}
    contract = milling.task().contract
    first, again = make_job(draft, contract, "valley", keys)[0], make_job(draft, contract, "valley", keys)[0]
    other = make_job(draft.model_copy(update={"seed": 1}), contract, "valley", keys)[0]
    assert first.digest() == again.digest()
    assert other.model.initial_digest != first.model.initial_digest


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (("rounds = 4", "rounds = 0"), JobDraftError, "rounds"),
        (("rounds = 4", "rounds = four"), JobDraftError, "TOML"),
        (('contract = "contract.toml"', 'contract = "other.toml"'), JobDraftError, "not there"),
        (('model = "tabular"', 'model = "tabula"'), ModelsError, "tabular"),
        (("seed = 7", 'seed = 7\nfirms = ["north", "hill"]'), JobDraftError, "hill cannot take part"),
        (("seed = 7", "seed = 7\nminimum_cohort = 9"), JobDraftError, "minimum cohort"),
        (("learning_rate = 0.002", "learning_rate = 0.002, num_rounds = 3"), JobDraftError, "leave it out"),
        (("seed = 7", 'seed = 7\nselection_metric = "luck"'), JobDraftError, "selection_metric"),
        (('id = "tools-1"', 'id = "../tools"'), JobDraftError, "id"),
        (("seed = 7", "seed = 7\nencrypted = false"), JobDraftError, "encrypted"),
    ],
)
def test_a_draft_that_makes_no_job_is_refused_with_what_to_change(home, store, tmp_path, change, error, says):
    with pytest.raises(error, match=says) as info:
        propose(home, store, written(tmp_path, DRAFT.replace(*change)), "test")
    assert isinstance(info.value, DureError)
    with store.reading() as at:
        assert at.jobs.all() == []


def test_a_missing_draft_is_told_by_its_path(home, store, tmp_path):
    with pytest.raises(JobDraftError, match=r"nothing\.toml"):
        propose(home, store, tmp_path / "nothing.toml", "test")


def test_a_proposed_job_never_changes(home, store, tmp_path):
    propose(home, store, written(tmp_path), "test")
    with pytest.raises(StoreConflictError, match="new id"):
        propose(home, store, written(tmp_path, DRAFT.replace("rounds = 4", "rounds = 5")), "test")


def test_a_first_model_serves_one_job_only(home, store, tmp_path):
    propose(home, store, written(tmp_path), "test")
    with pytest.raises(JobDraftError, match="another seed"):
        propose(home, store, written(tmp_path, DRAFT.replace("tools-1", "tools-2")), "test")
