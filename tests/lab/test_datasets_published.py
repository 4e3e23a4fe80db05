"""Published data sets as dealt to firms: files of the published form are written here, real ones used if at hand."""

import gzip
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dure_lab.datasets import ai4i, cmapss
from dure_lab.datasets.deal import DataSetError
from dure_models.contract import Role
from dure_models.validation import conform

PUBLISHED = Path(os.environ.get("DURE_PUBLISHED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
needs_ai4i = pytest.mark.skipif(not (PUBLISHED / "ai4i2020").is_dir(), reason="AI4I 2020 is not at hand")
needs_cmapss = pytest.mark.skipif(not (PUBLISHED / "cmapss").is_dir(), reason="C-MAPSS is not at hand")

HEADER = (
    "UDI,Product ID,Type,Air temperature [K],Process temperature [K],Rotational speed [rpm],Torque [Nm],"
    "Tool wear [min],Machine failure,TWF,HDF,PWF,OSF,RNF\n"
)


def ai4i_file(folder, num_rows=ai4i.NUM_ROWS, num_failures=ai4i.NUM_FAILURES):
    """A file in the published form; the air temperature tells the rows apart."""
    lines = [
        f"{row},L{row},{'LMH'[row % 3]},{295 + row / 1000:.3f},310,1500,40,9,{int(row < num_failures)},1,1,1,1,1"
        for row in range(num_rows)
    ]
    (folder / ai4i.FILE_NAME).write_text(HEADER + "\n".join(lines) + "\n", encoding="ascii")
    return folder


def test_ai4i_is_dealt_to_five_like_firms_with_one_common_test(tmp_path):
    firms = ai4i.tables(ai4i_file(tmp_path), np.random.default_rng(0))
    assert len(firms) == 5
    assert all(firm.test.equals(firms[0].test) for firm in firms)
    sizes = [firm.train.height for firm in firms]
    failures = [int(firm.train["machine_failure"].sum()) for firm in firms]
    assert max(sizes) - min(sizes) <= 6
    assert max(failures) - min(failures) <= 3
    rows = [value for firm in firms for value in firm.train["air_temperature"]] + list(firms[0].test["air_temperature"])
    assert len(rows) == len(set(rows)) == ai4i.NUM_ROWS


def test_neither_causes_nor_serial_numbers_of_ai4i_are_columns(tmp_path):
    table = ai4i.read(ai4i_file(tmp_path))
    features = {column.name for column in ai4i.task().contract.by_role(Role.FEATURE)}
    assert set(table.columns) == features | {"machine_failure"}


NOT_AS_PUBLISHED = {
    "no file": (lambda folder: folder, "as published"),
    "a short file": (lambda folder: ai4i_file(folder, num_rows=500), "500 rows"),
    "other failures": (lambda folder: ai4i_file(folder, num_failures=340), "340 failures"),
}


@pytest.mark.parametrize(("make", "said"), NOT_AS_PUBLISHED.values(), ids=NOT_AS_PUBLISHED)
def test_a_file_that_is_not_as_published_is_refused(tmp_path, make, said):
    with pytest.raises(DataSetError, match=said):
        ai4i.tables(make(tmp_path), np.random.default_rng(0))


@needs_ai4i
def test_the_real_ai4i_fits_its_contract():
    for firm in ai4i.tables(PUBLISHED / "ai4i2020", np.random.default_rng(0)):
        assert conform(ai4i.task().contract, firm.train).height == firm.train.height


def fleet_file(num_engines, life, engine_rows=None):
    """`num_engines` engines of `life` cycles in the published form: 26 numbers a row, blanks between them."""
    values = " ".join(["0.0 0.0 100.0", *(f"{100 + number}.0" for number in range(21))])
    return "".join(
        f"{engine} {cycle} {values}  \n" for engine in range(1, num_engines + 1) for cycle in range(1, life + 1)
    )


@pytest.fixture
def fleets(tmp_path, monkeypatch):
    """Four fleets of ten engines of 20 cycles; the tests are cut after 12 and ran on for 5."""
    monkeypatch.setattr(cmapss, "NUM_TRAIN_ROWS", dict.fromkeys(cmapss.FLEETS, 200))
    for fleet in cmapss.FLEETS:
        (tmp_path / f"train_{fleet}.txt.gz").write_bytes(gzip.compress(fleet_file(10, 20).encode()))
        (tmp_path / f"test_{fleet}.txt").write_text(fleet_file(3, 12))
        (tmp_path / f"RUL_{fleet}.txt").write_text("5\n5 \n5\n")
    return tmp_path


def test_remaining_life_counts_down_to_failure_in_training_and_to_the_published_rest_in_tests(fleets):
    firm = cmapss.tables(fleets, np.random.default_rng(0))[0]
    assert firm.train.filter(pl.col("engine") == 1)["remaining_cycles"].to_list() == list(range(19, -1, -1))
    assert firm.test.filter(pl.col("engine") == 3)["remaining_cycles"].to_list() == list(range(16, 4, -1))


def test_sensors_are_taken_from_the_published_columns(fleets):
    firm = cmapss.tables(fleets, np.random.default_rng(0))[0]
    assert firm.train["lpc_outlet_temperature"][0] == 101.0  # sensor 2 of 21
    assert firm.train["lpt_coolant_bleed"][0] == 120.0  # sensor 21
    assert firm.train["throttle"][0] == 100.0


def test_one_fleet_is_young_and_keeps_a_tenth_of_its_engines(fleets):
    firms = cmapss.tables(fleets, np.random.default_rng(0))
    engines = {firm.name: firm.train["engine"].n_unique() for firm in firms}
    assert engines == {"fleet-fd001": 10, "fleet-fd002": 10, "fleet-fd003": 1, "fleet-fd004": 10}
    assert "young: 1 of its 10 engines" in firms[2].note


def test_missing_cut_or_mixed_up_fleet_files_are_refused(fleets):
    (fleets / "RUL_FD001.txt").write_text("5\n")
    with pytest.raises(DataSetError, match="3 test engines have 1 remaining lives"):
        cmapss.tables(fleets, np.random.default_rng(0))
    (fleets / "train_FD001.txt.gz").write_bytes(gzip.compress(fleet_file(9, 20).encode()))
    with pytest.raises(DataSetError, match="180 rows"):
        cmapss.tables(fleets, np.random.default_rng(0))
    (fleets / "train_FD001.txt.gz").unlink()
    with pytest.raises(DataSetError, match=r"train_FD001\.txt"):
        cmapss.tables(fleets, np.random.default_rng(0))


@needs_cmapss
def test_the_real_fleets_fit_their_contract():
    contract = cmapss.task().contract
    firms = cmapss.tables(PUBLISHED / "cmapss", np.random.default_rng(0))
    for firm in firms:
        for table in (firm.train, firm.test):
            assert conform(contract, table).height == table.height
    assert [firm.test["engine"].n_unique() for firm in firms] == [100, 259, 100, 248]
