"""Finding models and digesting their packages, without loading them."""

import subprocess
import sys

import pytest

from dure_models import digest, registry
from dure_models.errors import ModelOptionsError, UnknownModelError
from tests.models.samples import ENGINES, PRESS


def test_the_built_in_models_are_found():
    assert {"rul", "tabular"} <= set(registry.names())
    assert registry.create("tabular", PRESS, {}).name == "tabular"


def test_an_unknown_model_is_refused_with_the_known_ones_named():
    with pytest.raises(UnknownModelError, match=r"tabular.*Install"):
        digest.model_digest("tabluar")


def test_wrong_options_are_all_named():
    with pytest.raises(ModelOptionsError) as caught:
        registry.create("tabular", PRESS, {"hiden": 3, "dropout": 2})
    assert all(word in str(caught.value) for word in ("hiden", "dropout", "it knows"))


UNFIT = {
    "a number target for the classifier": ("tabular", ENGINES, {}),
    "a derived input of an unknown column": (
        "tabular",
        PRESS,
        {"derived": [{"name": "x", "derivation": "product", "left": "heat", "right": "colour"}]},
    ),
    "operating points of the wrong length": ("rul", ENGINES, {"conditions": [[0.0, 1.0]]}),
}


@pytest.mark.parametrize(("name", "contract", "options"), UNFIT.values(), ids=UNFIT)
def test_a_contract_that_the_model_cannot_work_with_is_refused(name, contract, options):
    with pytest.raises(ModelOptionsError):
        registry.create(name, contract, options)


def test_digests_are_stable_differ_by_model_and_change_with_any_file(tmp_path, monkeypatch):
    first = digest.model_digest("tabular")
    assert first == digest.model_digest("tabular")
    assert first != digest.model_digest("rul")
    package = tmp_path / "pump"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "module_of", lambda name: "pump")
    before = digest.model_digest("pump")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"cache")
    assert digest.model_digest("pump") == before
    (package / "__init__.py").write_text("x = 2\n")
    assert digest.model_digest("pump") != before


def test_the_agent_reads_contracts_digests_and_layouts_without_torch_or_polars():
    program = (
        "import sys, dure_models.contract, dure_models.parameters, dure_models.digest as d;"
        "d.model_digest('tabular'); d.model_digest('rul');"
        "sys.exit(sorted({'torch', 'polars'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
