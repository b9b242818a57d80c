"""CSV tables: headers, targets, and errors that name the line and the column."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.data import Table, read_csv
from gpubackprop.errors import ConfigError, DataError

IRIS = "sepal,petal,kind\n5.1,1.4,setosa\n6.2,4.5,virginica\n\n5.9,4.2,setosa\n"


@pytest.fixture
def table(tmp_path: Path) -> Any:
    def read(text: str | bytes, **options: Any) -> Table:
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv(path, **options)

    return read


def test_header_features_and_classes(table: Any) -> None:
    found = table(IRIS)
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(
        found.features, np.array([[5.1, 1.4], [6.2, 4.5], [5.9, 4.2]], dtype=np.float32)
    )
    assert found.target.tolist() == [0, 1, 0] and found.target.dtype == np.int64
    assert found.feature_names == ("sepal", "petal")
    assert found.target_name == "kind"
    assert found.class_names == ("setosa", "virginica")


@pytest.mark.parametrize("target", ["kind", 0, -3])
def test_target_in_another_place(target: Any, table: Any) -> None:
    found = table("kind,a,b\nx,1,2\ny,3,4\n", target=target)
    assert found.features.tolist() == [[1, 2], [3, 4]]
    assert found.target.tolist() == [0, 1]
    assert found.feature_names == ("a", "b")


def test_target_in_the_middle(table: Any) -> None:
    found = table("1,x,2\n3,y,4\n", target=1)
    assert found.features.tolist() == [[1, 2], [3, 4]]
    assert found.feature_names == ("column 1", "column 3")
    assert found.target_name == "column 2"


def test_no_target(table: Any) -> None:
    found = table("1,2\n3,4\n", target=None)
    assert found.features.tolist() == [[1, 2], [3, 4]]
    assert found.target is None and found.target_name is None and found.class_names is None


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2,a\n3,4,b\n", 2),  # numbers: no header
        ("x,y,kind\n3,4,b\n", 1),  # names
        ("0,1,target\n3,4,5\n6,7,5\n", 2),  # numbered columns, given away by the target cell
        ("1,2,3\n4,5,6\n", 2),  # all numbers: no header
    ],
)
def test_header_detection(text: str, rows: int, table: Any) -> None:
    assert len(table(text).features) == rows


def test_header_can_be_said(table: Any, data_error: Any) -> None:
    assert len(table("1,2,3\n4,5,6\n", header=True).features) == 1
    with data_error("line 1, column 1 ('column 1'): 'x' is not a number"):
        table("x,y,kind\n3,4,b\n", header=False)


def test_classes_sort_by_value_where_they_are_numbers(table: Any) -> None:
    found = table("1,10\n2,9\n3,10\n")
    assert found.class_names == ("9", "10")
    assert found.target.tolist() == [1, 0, 1]
    # A name that parses as NaN has no place among numbers.
    assert table("1,nan\n2,2\n3,10\n").class_names == ("10", "2", "nan")


def test_regression(table: Any, data_error: Any) -> None:
    found = table("a,b\n1,0.5\n2,-3e2\n", task="regression", dtype=np.float64)
    assert found.target.tolist() == [0.5, -300.0] and found.target.dtype == np.float64
    assert found.class_names is None
    with data_error("line 4, target column 2 ('b'): 'high' is not a number"):
        table("a,b\n1,0.5\n\n2,high\n", task="regression")
    with data_error("line 2, target column 2", "'inf' is not a finite float32 number"):
        table("a,b\n1,inf\n", task="regression")


def test_numbers_taken_for_classes(table: Any, data_error: Any) -> None:
    text = "".join(f"{k},{k * 1.5}\n" for k in range(30))
    with data_error("30 distinct values in 30 rows", "task = 'regression'"):
        table(text)
    assert table(text, task="regression").target[2] == 3.0


def test_delimiter_quotes_spaces_and_line_ends(table: Any) -> None:
    found = table('a;"b;c";kind\r\n 1 ;"2";"big; red"\r\n3;4; small \r\n', delimiter=";")
    assert found.feature_names == ("a", "b;c")
    assert found.features.tolist() == [[1, 2], [3, 4]]
    assert found.class_names == ("big; red", "small")
    assert table("1\t2\tx\n3\t4\ty", delimiter="\t").features.tolist() == [[1, 2], [3, 4]]


def test_gzip_and_byte_order_mark(table: Any) -> None:
    assert table(gzip.compress(IRIS.encode())).feature_names == ("sepal", "petal")
    assert table(b"\xef\xbb\xbf" + IRIS.encode()).feature_names == ("sepal", "petal")


def test_encodings(table: Any, data_error: Any) -> None:
    text = "a,kind\n1,k\xe4se\n2,brot\n"
    assert table(text.encode("latin-1"), encoding="latin-1").class_names == ("brot", "k\xe4se")
    with data_error("line 2: byte 4, is not valid utf-8", "pass the encoding"):
        table(text.encode("latin-1"))
    with data_error("line 1 has a NUL byte", "UTF-16"):
        table(text.encode("utf-16"))
    for wrong in ("utf-16", "no-such-encoding", "base64"):
        with pytest.raises(ConfigError, match="encoding of a CSV file"):
            table(text, encoding=wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,a\n3,b\n", "line 2 has 2 column(s), but line 1 has 3"),
        ("1,2,a\n\n3,4,5,b\n", "line 3 has 4 column(s), but line 1 has 3"),
        (
            "1,2,a\n3,x,b\n",
            "line 2, column 2 ('column 2'): 'x' is not a number; write words",
        ),
        ("p,q,k\n1,2,a\n3,,b\n", "line 3, column 2 ('q'): the cell is empty; fill"),
        ("p,q,k\n1,2,a\n3,4,\n", "line 3, target column 3 ('k'): the cell is empty"),
        ("1,2,a\n3,nan,b\n", "'nan' is not a finite float32 number"),
        ("1,2,a\n3,1e39,b\n", "'1e39' is not a finite float32 number"),
        ("1,2,a\n3," + "9" * 60 + "x,b\n", "'9999999999999999999999999999999999999...' is not"),
        ("p,q,k\n", "it holds a header, but no row"),
        ("\n\n \n", "it holds no row"),
        ("a;b;c\n1;2;3\n", "only one column was found with the delimiter ','"),
        ("p,p,k\n1,2,a\n", "names 'p' twice"),
        ('1,"2,a\n3,4,b\n', "unexpected end of data"),
        ('1,"2"x,a\n', "line 1: "),
        ("1,2,a\r3,4,b\r", "line 1: "),
        ("1," + "2" * 200_000 + ",a\n", "field larger than field limit"),
    ],
)
def test_wrong_tables(text: str, words: str, table: Any, data_error: Any) -> None:
    with data_error("cannot read CSV file", "table.csv", words):
        table(text)


def test_line_number_past_the_first_block(table: Any, data_error: Any) -> None:
    lines = ["1,2,a"] * 10_000
    lines[9_876] = "1,?,a"
    with data_error("line 9877, column 2", "'?' is not a number"):
        table("\n".join(lines))


def test_endless_line(table: Any, data_error: Any) -> None:
    with data_error("a line of more than 16,777,216 bytes"):
        table(gzip.compress(b"1" * (20 << 20)))


def test_wrong_arguments(table: Any, data_error: Any) -> None:
    with data_error("unknown target column 'kinds'", "did you mean 'kind'", "(from line 1)"):
        table(IRIS, target="kinds")
    for wrong in (3, -4):
        with data_error(f"no target column {wrong}", "numbered 0 to 2"):
            table(IRIS, target=wrong)
    with pytest.raises(ConfigError, match="header=false says there are no names"):
        table(IRIS, target="kind", header=False)
    with pytest.raises(ConfigError, match="did you mean 'regression'"):
        table(IRIS, task="regresion")
    for wrong in ("", ",,", "\n", '"'):
        with pytest.raises(ConfigError, match="delimiter"):
            table(IRIS, delimiter=wrong)
    with pytest.raises(ConfigError, match="target must be a column's name or number"):
        table(IRIS, target=1.5)


def test_a_large_table_is_read_in_seconds(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 10))
    block = "".join(",".join(map(repr, row)) + ",x\n" for row in values.tolist())
    (tmp_path / "large.csv").write_text(block * 100)
    began = time.perf_counter()
    found = read_csv(tmp_path / "large.csv", dtype=np.float64)
    assert time.perf_counter() - began < 10
    np.testing.assert_array_equal(found.features, np.tile(values, (100, 1)))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.sampled_from(["a", "b c", 'q"uote', "semi;colon", "com,ma"]),
        ),
        min_size=1,
        max_size=15,
    )
)
def test_what_the_csv_module_writes_reads_back(
    rows: list[tuple[float, float, str]], scratch: Path
) -> None:
    import csv

    with open(scratch / "round.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    found = read_csv(scratch / "round.csv")
    np.testing.assert_array_equal(found.features, np.array([r[:2] for r in rows], np.float32))
    assert [found.class_names[k] for k in found.target] == [r[2] for r in rows]


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 200),
    tail=st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode)),
    task=st.sampled_from(["classification", "regression"]),
    packed=st.booleans(),
)
def test_random_damage_reads_or_is_a_data_error(
    edits: list[tuple[int, int]], cut: int, tail: bytes, task: str, packed: bool, scratch: Path
) -> None:
    data = bytearray(gzip.compress(IRIS.encode(), mtime=0) if packed else IRIS.encode())
    for place, value in edits:
        data[place % len(data)] = value
    path = scratch / "fuzz.csv"
    path.write_bytes(bytes(data[: len(data) - cut % len(data)]) + tail)
    try:
        found = read_csv(path, task=task)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.features).all()
        assert found.target is not None and len(found.target) == len(found.features)
