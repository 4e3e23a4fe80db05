"""A firm's data: every kind of file, and errors that say what is missing, what is there and what to change."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from dure_client.data.errors import DataError, DataMappingError, DataSourceError
from dure_client.data.load import load
from dure_client.data.mapping import DEFAULT_TEXT, DataMapping
from dure_models.contract import DataContract
from dure_models.errors import DataContractError

CONTRACT = DataContract.from_toml(
    """
    name = "pumps"
    title = "Pumps, simulated"
    simulated = true
    [[columns]]
    name = "unit"
    type = "text"
    role = "group"
    [[columns]]
    name = "flow"
    type = "float"
    role = "feature"
    unit = "m3/h"
    range = [0, 100]
    [[columns]]
    name = "failed"
    type = "integer"
    role = "target"
    range = [0, 1]
    """
)
ROWS = [("007", 1.0, 0), ("007", 2.5, 1), ("8", 3.0, 0)]


def write(folder: Path, text: str) -> DataMapping:
    (folder / "data.toml").write_text(text)
    return DataMapping.read(folder / "data.toml")


def csv(separator: str = ",", header: str = "unit,flow,failed") -> str:
    lines = [separator.join(map(str, row)) for row in ROWS]
    return "\n".join([header.replace(",", separator), *lines] if header else lines) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        pytest.param("a.csv", csv().encode(), "", id="csv"),
        pytest.param("a.csv", b"\xef\xbb\xbf" + csv().encode(), "", id="csv with a byte order mark"),
        pytest.param("a.csv", csv(header="unit, flow ,failed").encode(), "", id="csv with blanks in its header"),
        pytest.param("a.csv.gz", gzip.compress(csv().encode()), "", id="csv, compressed"),
        pytest.param("a.csv", csv(";").encode(), 'separator = ";"', id="csv with semicolons"),
        pytest.param(
            "a.csv", csv(";").replace(".", ",").encode(), 'separator = ";"\ndecimal_comma = true',
            id="csv with semicolons and decimal commas",
        ),
        pytest.param(
            "a.csv", csv(header="").encode(), 'header = false\nnames = ["unit", "flow", "failed"]', id="csv, no header"
        ),
        pytest.param(
            "a.txt", b"007  1.0 0  \n007 2.5   1\n  8 3.0 0 \n",
            'header = false\nnames = ["unit", "flow", "failed"]', id="blanks, no header",
        ),
        pytest.param(
            "a.dat.gz", gzip.compress(b"unit flow failed\n007  1.0 0  \n007 2.5   1\n8 3.0 0"), 'kind = "blanks"',
            id="blanks, compressed",
        ),
    ],
)  # fmt: skip
def test_text_files_of_every_kind_give_the_same_table(tmp_path: Path, name: str, content: bytes, form: str) -> None:
    (tmp_path / name).write_bytes(content)
    mapping = write(tmp_path, f'[train]\npaths = ["{name}"]\n[format]\n{form}\n')
    assert load(mapping, CONTRACT).train.rows() == ROWS


def test_parquet_renamed_columns_and_further_ones(tmp_path: Path) -> None:
    table = pl.DataFrame(ROWS, schema=["Unit No.", "Q", "failed"], orient="row").with_columns(secret=pl.lit(1))
    table.write_parquet(tmp_path / "a.parquet")
    mapping = write(
        tmp_path,
        '[train]\npaths = ["a.parquet"]\n[columns]\nunit = "Unit No."\nflow = { source = "Q", unit = "m3/h" }\n',
    )
    train = load(mapping, CONTRACT).train
    assert train.columns == ["unit", "flow", "failed"]
    assert train.rows() == ROWS


def test_patterns_several_files_and_a_test_part(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train2.csv", "train1.csv", "test.csv"):
        (tmp_path / "data" / name).write_text(csv())
    text = f'[train]\npaths = ["data/train*.csv", "data/train1.csv"]\n[test]\npaths = ["{tmp_path}/data/te*.csv"]\n'
    tables = load(write(tmp_path, text), CONTRACT)
    assert (tables.train.height, tables.test.height) == (6, 3)
    assert [path.name for path in tables.rows_by_file["train"]] == ["train1.csv", "train2.csv"]


def test_an_integer_column_that_later_has_fractions_is_read_as_numbers(tmp_path: Path) -> None:
    lines = ["unit,flow,failed", *("1,0,0" for _ in range(3000)), "1,0.5,1"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert load(write(tmp_path, '[train]\npaths = ["a.csv"]'), CONTRACT).train["flow"].sum() == 0.5


TRAIN = '[train]\npaths = ["a.csv"]\n'


@pytest.mark.parametrize(
    ("mapping", "content", "error", "says"),
    [
        pytest.param(
            TRAIN, "unit,Flow,failed\n1,1,0\n", DataContractError,
            r"'flow' \(float, m3/h\) is missing.*\[columns\] in data.toml.*the files are: 'unit', 'Flow', 'failed'$",
            id="a missing column",
        ),
        *(
            pytest.param(
                TRAIN, csv(separator), DataContractError, rf"the files are: '.*parted by '{told}': set "
                rf'separator = "{told}" '
                r"under \[format\] in data.toml", id=f"columns parted by {told}",
            )
            for separator, told in ((";", ";"), ("\t", r"\\t"), ("|", r"\|"))
        ),
        pytest.param(
            TRAIN, "unit;flow;failed\n1;2,5;0\n", DataSourceError, r"parted by ';'",
            id="semicolons and decimal commas",
        ),
        pytest.param(
            TRAIN + '[columns]\nflow = "Q"\n', csv(";", "unit,Q,failed"), DataSourceError, r"parted by ';'",
            id="semicolons and a mapped column",
        ),
        pytest.param(
            TRAIN + '[format]\nseparator = ";"\n', csv(), DataContractError, r"parted by ','", id="commas after all",
        ),
        pytest.param(
            TRAIN + '[format]\nseparator = ";"\n', "unit;flow;failed\n1;2,5;0\n", DataContractError,
            r"decimal commas, such as '2,5': set decimal_comma = true", id="decimal commas",
        ),
        pytest.param(
            TRAIN + '[columns]\nflow = "Durchfluss"\n', csv(), DataSourceError,
            r"'Durchfluss'.*a\.csv has no such column.*unit, flow, failed.*`flow` under \[columns\]",
            id="a mapped column that is not there",
        ),
        pytest.param(
            TRAIN + '[columns]\nspeed = "flow"\n', csv(), DataMappingError,
            r"'speed'.*does not have.*unit, flow, failed", id="a mapped column the contract does not know",
        ),
        pytest.param(
            TRAIN + '[columns]\nflow = { source = "flow", unit = "l/min" }\n', csv(), DataMappingError,
            r"'l/min'.*'m3/h'.*convert", id="another unit",
        ),
        pytest.param(TRAIN, "unit,flow,failed\n1,abc,0\n", DataContractError, "must be of type float", id="a text"),
        pytest.param(TRAIN, "unit,flow,failed\n1,,0\n", DataContractError, "lacks 1 of 1", id="a missing value"),
        pytest.param(TRAIN, "unit,flow,failed\n1,101,0\n", DataContractError, r"outside \[0, 100\]", id="out of range"),
        pytest.param(TRAIN, "unit,flow,failed\n", DataContractError, "no rows", id="no rows"),
        pytest.param(TRAIN, "", DataSourceError, r"cannot be read as csv.*\[format\]", id="an empty file"),
        pytest.param(TRAIN, None, DataMappingError, r"'a\.csv'.*no such file.*`paths`", id="no file"),
        pytest.param(TRAIN, "flow,flow ,unit\n1,1,1\n", DataSourceError, "two columns of one name", id="a name twice"),
        pytest.param(
            TRAIN + '[format]\nheader = false\nnames = ["unit"]\n', csv(header=""), DataSourceError,
            "3 columns.*lists 1", id="fewer names than columns",
        ),
        pytest.param(
            '[train]\npaths = ["a.csv", "b.bin"]\n', csv(), DataSourceError,
            r"b\.bin.*`kind`", id="an ending that tells nothing",
        ),
        pytest.param(
            TRAIN + '[test]\npaths = ["b.bin"]\n[format]\nkind = "csv"\n', csv(), DataContractError,
            r"\[test\].*\n.*'unit'", id="the test part lacks a column",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_data_is_said_with_what_to_change(
    tmp_path: Path, mapping: str, content: str | None, error: type[DataError], says: str
) -> None:
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    (tmp_path / "b.bin").write_text("x,y\n1,2\n")
    with pytest.raises(error, match=rf"(?s){says}"):
        load(write(tmp_path, mapping), CONTRACT)


def test_columns_that_are_not_seen_are_not_called_rows_that_lack(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv(";"))
    with pytest.raises(DataContractError) as caught:
        load(write(tmp_path, TRAIN), CONTRACT)
    assert "no rows" not in str(caught.value)
    assert "filter" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.csv.gz", gzip.compress(csv().encode() * 50)[:60], id="a compressed file, cut"),
        pytest.param("a.parquet", b"PAR1 and no more", id="a parquet file, cut"),
        pytest.param("a.csv", b"unit,flow,failed\n1,\xff\xfe,0\n", id="no UTF-8"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load(write(tmp_path, f'[train]\npaths = ["{name}"]\n'), CONTRACT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "dure-agent data init", id="no file"),
        pytest.param("[train", "not valid TOML", id="no TOML"),
        pytest.param("", "train", id="no training files"),
        pytest.param('[train]\npaths = ["a"]\npath = "b"', "train.path: no such field; .* mean paths", id="a slip"),
        pytest.param(f'separator = ";"\n{TRAIN}', r"separator: .*belongs below \[format\]", id="above its table"),
        pytest.param(TRAIN + "[format]\nheader = false", "names", id="no header and no names"),
        pytest.param(TRAIN + "[format]\ndecimal_comma = true", "give `separator`", id="a comma of two meanings"),
        pytest.param(TRAIN + '[format]\nkind = "excel"', "format.kind", id="an unknown kind"),
        pytest.param(TRAIN + '[columns]\nflow = { column = "x" }', "columns.flow", id="a column of another form"),
    ],
)
def test_a_mapping_that_is_none_says_where(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "data.toml").write_text(text)
    with pytest.raises(DataMappingError, match=says):
        DataMapping.read(tmp_path / "data.toml")


def test_the_file_a_firm_starts_with_is_valid_and_so_is_all_it_shows(tmp_path: Path) -> None:
    assert write(tmp_path, DEFAULT_TEXT).test is None
    everything = DEFAULT_TEXT.replace("# [", "[").replace("# kind", "kind").replace('kind = "csv"', 'kind = "blanks"')
    for line in ("paths", "decimal_comma", "header", "names", "missing", "torque", "air_temperature"):
        everything = everything.replace(f"\n# {line} =", f"\n{line} =")
    mapping = write(tmp_path, everything)
    assert mapping.test is not None
    assert mapping.format.names == ("unit", "cycle", "sensor_1")
    assert mapping.source_of("air_temperature") == "T_air"
