"""The simulated milling process keeps the published rules, says that it is simulated, and follows from its seed."""

import numpy as np
import polars as pl
import pytest

from dure_lab.datasets import milling
from dure_lab.datasets.deal import DataSetError, read_tables
from dure_models.contract import DataContract
from dure_models.validation import conform

SHOP = milling.WORKSHOPS[0]


@pytest.fixture(scope="module")
def rows():
    return milling.simulate(SHOP, 20_000, np.random.default_rng(1))


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    one, same, other = (milling.simulate(SHOP, 200, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)


def test_everything_made_says_that_it_is_simulated():
    task = milling.task()
    assert task.simulated
    assert task.contract.simulated
    for text in (task.title, task.licence, task.contract.title, task.contract.description):
        assert "simulated" in text.lower()
    assert all("simulated" in firm.note for firm in milling.tables(2, np.random.default_rng(0)))


def test_temperatures_torque_and_speed_are_spread_as_published(rows):
    warmer = rows["process_temperature"] - rows["air_temperature"]
    assert rows["air_temperature"].std() == pytest.approx(2.0, abs=0.05)
    assert warmer.mean() == pytest.approx(10.0, abs=0.05)
    assert warmer.std() == pytest.approx(1.0, abs=0.05)
    assert rows["torque"].min() >= 0
    assert rows["torque"].std() == pytest.approx(10.0, abs=0.3)
    assert rows["rotational_speed"].mean() == pytest.approx(1539, abs=40)  # the published file's mean
    assert np.corrcoef(rows["torque"], rows["rotational_speed"])[0, 1] == pytest.approx(-0.87, abs=0.06)


RULES = {
    "heat dissipation": (pl.col("process_temperature") - pl.col("air_temperature") < 8.5)
    & (pl.col("rotational_speed") < 1375),
    "too little power": pl.col("torque") * pl.col("rotational_speed") * 2 * np.pi / 60 < 3480,
    "too much power": pl.col("torque") * pl.col("rotational_speed") * 2 * np.pi / 60 > 9020,
    "overstrain of low quality": (pl.col("product_quality") == "L") & (pl.col("tool_wear") * pl.col("torque") > 11_020),
    "overstrain of high quality": (pl.col("product_quality") == "H")
    & (pl.col("tool_wear") * pl.col("torque") > 13_020),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_each_published_rule_ends_in_failure(rows, rule):
    caught = rows.filter(rule)
    assert caught.height > 0
    assert caught["machine_failure"].min() == 1


def test_failures_are_as_rare_as_published_and_tools_fail_between_200_and_245_minutes(rows):
    assert 0.02 < rows["machine_failure"].mean() < 0.06
    assert rows["tool_wear"].max() <= 245


def test_firms_differ_in_quality_mix_and_the_rows_fit_the_contract():
    firms = milling.tables(3, np.random.default_rng(0))
    shares = [(firm.train["product_quality"] == "L").mean() for firm in firms]
    assert max(shares) - min(shares) > 0.2
    contract = milling.task().contract
    for firm in firms:
        assert conform(contract, firm.train).height == firm.train.height
        assert firm.train["machine_failure"].sum() >= 20
        assert conform(contract, firm.test).height == milling.NUM_TEST_ROWS


def test_a_deal_on_disk_reads_back_with_its_contract(tmp_path):
    deal = milling.deal(tmp_path / "deal", np.random.default_rng(0), num_firms=2)
    assert [firm.name for firm in deal.firms] == ["north-mill", "river-mill"]
    for there, written in zip(read_tables(deal), milling.tables(2, np.random.default_rng(0)), strict=True):
        assert there.train.equals(written.train)
        assert there.test.equals(written.test)
    text = (tmp_path / "deal" / "contract.toml").read_text(encoding="utf-8")
    assert DataContract.from_toml(text).digest() == deal.task.contract.digest()


def test_sixteen_firms_have_names_of_their_own_and_seventeen_are_refused():
    assert len({shop.name for shop in milling.workshops(16)}) == 16
    for number in (0, 17):
        with pytest.raises(DataSetError, match="1 to 16"):
            milling.workshops(number)
