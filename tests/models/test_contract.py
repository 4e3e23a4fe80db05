"""The data contract: one digest for one agreement, clear words for a broken one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_models.errors import ContractError
from tests.models.samples import ENGINES, PRESS

LINES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@pytest.mark.parametrize("contract", [PRESS, ENGINES], ids=lambda contract: contract.name)
def test_toml_and_json_read_back_to_an_equal_contract_with_an_equal_digest(contract):
    for copy in (DataContract.from_toml(contract.to_toml()), DataContract.from_json(contract.canonical_json())):
        assert copy == contract
        assert copy.digest() == contract.digest()


@given(name=LINES, unit=LINES, low=st.floats(-1e9, 1e9), width=st.floats(1e-3, 1e9))
def test_any_printable_text_and_any_range_survive_toml(name, unit, low, width):
    column = Column(name=name, type=ColumnType.FLOAT, role=Role.FEATURE, unit=unit, range=(low, low + width))
    contract = DataContract(name="any", title='Ünïcode "quoted" \\ 두레', columns=(column,))
    assert DataContract.from_toml(contract.to_toml()) == contract


def test_the_digest_is_of_the_canonical_json_and_stays_what_it_is():
    contract = DataContract(
        name="one", title="One", columns=(Column(name="a", type=ColumnType.TEXT, role=Role.IGNORE),)
    )
    assert contract.canonical_json() == (
        '{"columns":[{"categories":[],"description":"","name":"a","range":null,"role":"ignore","type":"text","unit":""}],'
        '"description":"","licence":"","name":"one","simulated":false,"title":"One"}'
    )
    assert contract.digest() == "e6108af73301ca4737be8b9db6f51cef37cb3cd1a01c264fcc1f9ad1aefd89bd"


CHANGES = {
    "a unit": {"unit": "C"},
    "a range": {"range": (0.0, 101.0)},
    "a name": {"name": "warmth"},
    "a role": {"role": Role.CONDITION},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_agreement_has_another_digest(change):
    first, *others = PRESS.columns
    changed = PRESS.model_copy(update={"columns": (first.model_copy(update=change), *others)})
    assert changed.digest() != PRESS.digest()


HEAD = 'name = "x"\ntitle = "X"\n'
COLUMN = '[[columns]]\nname = "a"\nrole = "feature"\n'
BROKEN = {
    "no TOML": ("name = ", "not valid TOML"),
    "no columns": (HEAD, "columns"),
    "a number feature without a range": (HEAD + COLUMN + 'type = "float"', "needs range"),
    "a range upside down": (HEAD + COLUMN + 'type = "float"\nrange = [2, 1]', "minimum < maximum"),
    "a category without categories": (HEAD + COLUMN + 'type = "category"', "need each other"),
    "a category twice": (HEAD + COLUMN + 'type = "category"\ncategories = ["p", "p"]', "listed twice"),
    "text as a feature": (HEAD + COLUMN + 'type = "text"', "cannot be used as feature"),
    "an unknown field": (HEAD + COLUMN + 'type = "float"\nrange = [0, 1]\nlength = 3', "length"),
    "a column twice": (HEAD + 2 * (COLUMN + 'type = "float"\nrange = [0, 1]\n'), "named twice"),
    "simulated without saying so": (
        HEAD + "simulated = true\n" + COLUMN + 'type = "float"\nrange = [0, 1]',
        "'simulated'",
    ),
    "two groups": (
        HEAD + '[[columns]]\nname="a"\ntype="text"\nrole="group"\n[[columns]]\nname="b"\ntype="text"\nrole="group"',
        "at most one column",
    ),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_refused_with_the_reason(text, said):
    with pytest.raises(ContractError, match=said.replace("[", r"\[")):
        DataContract.from_toml(text)


def test_asking_for_an_unknown_column_names_those_there_are():
    with pytest.raises(ContractError, match=r"'coldness'.*heat, speed"):
        PRESS.column("coldness")
    with pytest.raises(ContractError, match="exactly one column of role group"):
        PRESS.single(Role.GROUP)
