"""The vectors of tests/vectors, twice: this project's code against them, and the reader that knows only the text."""

import ast
import copy
import random
import shutil
import subprocess
import sys

import pytest

from dure_protocols import messages
from dure_protocols.errors import RefusalCode
from tests.vectors import make, project
from tests.vectors.reader import compute as reader
from tests.vectors.reader import files

CASES = [(name, case) for name in files.NAMES for case in files.load(name)["cases"]]
IMPLEMENTATIONS = {"the project": project.compute, "the reader": reader.compute}
CHANGED_IN_EACH_CASE = 3


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{name}: {case['name']}" for name, case in CASES])
@pytest.mark.parametrize("compute", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_what_is_computed_is_what_the_vector_expects(compute, case):
    assert compute(case["operation"], case["inputs"]) == case["expected"]


def test_the_files_are_what_their_generator_makes():
    """Nobody edits them by hand, and a change of the protocol shows in them."""
    made = make.made()
    assert list(made) == files.NAMES
    for name, text in made.items():
        assert (files.FOLDER / f"{name}.json").read_text(encoding="utf-8") == text, f"run python -m {make.__name__}"


def leaves(value, at=()):
    """Where numbers, texts and truths stand in a JSON value."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in items for leaf in leaves(item, (*at, key))]
    return [at]


def changed(value, chance):
    """Another value than this one: for a text, one character is another."""
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    at = chance.randrange(len(value)) if value else 0
    return value[:at] + ("0" if value[at : at + 1] != "0" else "1") + value[at + 1 :]


@pytest.mark.parametrize("compute", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("name", files.NAMES)
def test_a_changed_byte_in_anything_expected_is_noticed(name, compute):
    """Each case is changed on its own, in places that the file's name draws."""
    chance = random.Random(name)
    for case in files.load(name)["cases"]:
        computed = compute(case["operation"], case["inputs"])
        places = leaves(case["expected"])
        for place in chance.sample(places, min(CHANGED_IN_EACH_CASE, len(places))):
            tampered = copy.deepcopy(case)
            *path, last = place
            inner = tampered["expected"]
            for key in path:
                inner = inner[key]
            inner[last] = changed(inner[last], chance)
            assert reader.differing({"cases": [tampered]}, lambda *_, result=computed: result) == [case["name"]], place


def test_every_message_and_every_refusal_of_a_firm_s_session_is_in_the_vectors():
    kinds = {case["inputs"]["kind"] for _, case in CASES if case["operation"] == "message"}
    assert kinds == {cls.__name__ for cls in messages._CLASSES.values()}
    told = {step.get("refusal") for _, case in CASES for step in case["expected"].get("replies", [])}
    told |= {case["expected"].get("refusal") for _, case in CASES}
    elsewhere = """
        NOT_APPROVED REJECTED_BY_FIRM UNKNOWN_JOB UNKNOWN_MODEL MODEL_DIGEST CONTRACT DATA PURPOSE AGREEMENT TRAINING
        SANDBOX LEFT INTERNAL"""
    assert set(RefusalCode) - told == {RefusalCode[code] for code in elsewhere.split()}


def test_the_reader_knows_nothing_of_the_project():
    for path in (files.FOLDER / "reader").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        modules += [
            node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0
        ]
        roots = {module.split(".")[0] for module in modules}
        assert roots <= {*sys.stdlib_module_names, "cryptography", "numpy"}, path.name


def run_reader(folder):
    command = [sys.executable, "-m", "reader"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_reader_runs_wherever_it_is_copied(tmp_path):
    shutil.copytree(files.FOLDER / "reader", tmp_path / "reader")
    for name in files.NAMES:
        shutil.copy(files.FOLDER / f"{name}.json", tmp_path)
    again = run_reader(tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "every case is as it is expected\n", "")
    damaged = (tmp_path / "digests.json").read_text(encoding="utf-8").replace('"digest": "', '"digest": "0', 1)
    (tmp_path / "digests.json").write_text(damaged, encoding="utf-8")
    again = run_reader(tmp_path)
    assert again.returncode == 1
    assert "digests.json: digest: a label alone" in again.stdout
