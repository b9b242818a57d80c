"""The table of which implementation runs a call: measured once, kept, shown, forced."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from gpubackprop.backends.cuda import choices as tables
from gpubackprop.backends.cuda import choosing
from gpubackprop.backends.cuda.choices import Choice, Choices
from gpubackprop.errors import DeviceError
from tests.backends.support import fake_cudnn, shim
from tests.backends.support.convolution_cases import fill
from tests.backends.support.cudnn_backend import machine

needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")
VERSIONS = {"cudnn": "9.28.1", "cupy": "14.2.0"}
CONV = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)


class Clock:
    """Says what each call takes; several times in turn where it is given several."""

    source = "the test"

    def __init__(self, seconds):
        self.seconds_of = {name: list(np.atleast_1d(times)) for name, times in seconds.items()}
        self.asked = []

    def seconds(self, call, calls=1):
        name = call()
        self.asked.append((name, calls))
        times = self.seconds_of[name]
        return calls * (times.pop(0) if len(times) > 1 else times[0])


CALLS = {"plain": lambda: "plain", "cudnn": lambda: "cudnn"}


def never(error):
    return False


def no_room(error):
    return isinstance(error, MemoryError)


@pytest.fixture
def table(tmp_path):
    return Choices("NVIDIA H100 80GB HBM3", VERSIONS, tmp_path)


# Measuring.


@pytest.mark.parametrize(
    ("plain", "cudnn", "use"),
    [
        (2e-3, 1e-3, "cudnn"),
        (1e-3, 2e-3, "plain"),
        (1e-3, 1e-3, "plain"),
        (1e-3, 0.96e-3, "plain"),  # within the noise
        (1e-3, 0.94e-3, "cudnn"),
    ],
)
def test_the_faster_one_is_kept_and_a_tie_changes_nothing(table, plain, cudnn, use):
    clock = Clock({"plain": plain, "cudnn": cudnn})
    found = table.measure("a call", CALLS, clock, never)
    assert found.use == use and found.reason == "measured"
    assert found.seconds == pytest.approx({"plain": plain, "cudnn": cudnn})


def test_a_median_of_rounds_in_turn_after_a_warm_up(table):
    # The first two are the warm-up; of the seven after it two are far too long.
    clock = Clock(
        {"plain": [9, 2e-3, 5, 1e-3, 1e-3, 3e-3, 1e-3, 7, 1e-3], "cudnn": [9, 2e-3, 2e-3]}
    )
    found = table.measure("a call", CALLS, clock, never)
    assert found == Choice("plain", pytest.approx({"plain": 1e-3, "cudnn": 2e-3}), "measured")
    names = [name for name, _ in clock.asked]
    assert names == ["plain"] * 2 + ["cudnn"] * 2 + ["plain", "cudnn"] * tables.ROUNDS
    assert [calls for _, calls in clock.asked[4:6]] == [1, 1]


def test_short_calls_are_timed_several_at_once(table):
    clock = Clock({"plain": 1e-4, "cudnn": 1e-6})
    table.measure("a call", CALLS, clock, never)
    assert clock.asked[-2:] == [("plain", 10), ("cudnn", tables.MOST_CALLS)]


def test_a_call_is_measured_once(table, tmp_path):
    first = table.measure("a call", CALLS, Clock({"plain": 2e-3, "cudnn": 1e-3}), never)
    assert table.measure("a call", CALLS, None, never) is first
    again = Choices(table.device, VERSIONS, tmp_path)  # as the next process does
    assert again.known("another call") is None
    assert again.measure("a call", CALLS, None, never) == Choice(
        "cudnn", pytest.approx(first.seconds), "measured"
    )


def test_who_lacks_room_loses_for_this_process_only(table, tmp_path):
    def full():
        raise MemoryError("no room")

    calls = {"plain": full, "cudnn": CALLS["cudnn"]}
    assert table.measure("a call", calls, Clock({"cudnn": 1e-3}), no_room).use == "cudnn"
    assert table.known("a call").reason == "the others have no room"
    assert not table.path.exists()
    with pytest.raises(MemoryError, match="no room"):
        table.measure("another", {"plain": full, "cudnn": full}, Clock({}), no_room)
    assert table.known("another") is None


def test_other_errors_of_a_candidate_are_errors(table):
    def broken():
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        table.measure("a call", {"plain": broken, "cudnn": broken}, Clock({}), no_room)


# The file.


def test_the_file_is_json_that_says_what_it_is_of(table):
    table.keep("b", Choice("plain", {}, "cuDNN: no engine"))
    table.keep("a", Choice("cudnn", {"plain": 2e-3, "cudnn": 1.2345678e-3}, "measured"))
    assert table.path.name.startswith("nvidia-h100-80gb-hbm3-")
    content = json.loads(table.path.read_text())
    assert content["device"] == table.device and content["versions"] == VERSIONS
    assert list(content["choices"]) == ["a", "b"]
    assert content["choices"]["a"]["microseconds"] == {"plain": 2000.0, "cudnn": 1234.568}
    assert [p.name for p in table.path.parent.iterdir()] == [table.path.name], "a part was left"


@pytest.mark.parametrize("other", [("NVIDIA H200", VERSIONS), ("NVIDIA H100 80GB HBM3", {})])
def test_other_devices_and_versions_have_other_files(table, tmp_path, other):
    assert Choices(*other, tmp_path).path != table.path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "cannot be used"),
        (lambda text: "", "cannot be used"),
        (lambda text: "[1, 2]", "TypeError"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "format 99"),
        (lambda text: text.replace("H100", "A100"), "a table of NVIDIA A100"),
        (lambda text: text.replace("14.2.0", "13.0.0"), "13.0.0"),
        (lambda text: text.replace("1000.0", '"fast"'), "fast"),
        (lambda text: text.replace("1000.0", "NaN"), "a time that is none"),
        (lambda text: text.replace('"use": "cudnn"', '"use": 7'), "without a name"),
    ],
)
def test_a_damaged_or_foreign_table_is_measured_anew_with_one_warning(
    table, tmp_path, damage, said
):
    table.keep("a call", Choice("cudnn", {"plain": 2e-3, "cudnn": 1e-3}, "measured"))
    table.path.write_text(damage(table.path.read_text()))
    anew = Choices(table.device, VERSIONS, tmp_path)
    with pytest.warns(RuntimeWarning, match=said) as caught:
        assert anew.known("a call") is None
        found = anew.measure("a call", CALLS, Clock({"plain": 1e-3, "cudnn": 2e-3}), never)
    assert found.use == "plain" and len(caught) == 1 and str(table.path) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Choices(table.device, VERSIONS, tmp_path).known("a call").use == "plain"


def test_what_another_process_measured_meanwhile_stays(table, tmp_path):
    table.keep("mine", Choice("plain", {}, "measured"))
    other = Choices(table.device, VERSIONS, tmp_path)
    other.keep("theirs", Choice("cudnn", {}, "measured"))
    table.keep("mine too", Choice("plain", {}, "measured"))
    assert sorted(tables.read(table.path).choices) == ["mine", "mine too", "theirs"]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    table = Choices("A GPU", VERSIONS, tmp_path / "file" / "folder")
    with pytest.warns(RuntimeWarning, match="every process measures anew") as caught:
        table.keep("a", Choice("plain", {}, "measured"))
        table.keep("b", Choice("plain", {}, "measured"))
    assert len(caught) == 1 and table.known("a").use == "plain"


def test_a_write_that_fails_leaves_the_table_as_it_was(table, monkeypatch):
    table.keep("a", Choice("plain", {}, "measured"))
    before = table.path.read_text()

    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(tables.json, "dump", fail)
    with pytest.warns(RuntimeWarning, match="the disk is full"):
        table.keep("b", Choice("plain", {}, "measured"))
    assert table.path.read_text() == before
    assert len(list(table.path.parent.iterdir())) == 1


def test_saved_tables_are_listed_without_those_that_are_none(table, tmp_path):
    table.keep("a", Choice("plain", {}, "measured"))
    (tmp_path / "other.json").write_text("{}")
    assert [t.device for t in tables.saved(tmp_path)] == [table.device]
    assert tables.saved(tmp_path / "absent") == []


# In the backend.


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    return machine(monkeypatch, "auto")


def timed(monkeypatch, cuda, plain, cudnn, fake):
    """Let the backend's clock say that the sides take so long; gives what it was asked for."""
    asked = []

    class Sides:
        source = "the test"

        def seconds(self, call, calls=1):
            before = len(fake.ran)
            call()
            side = "plain" if len(fake.ran) == before else "cudnn"
            asked.append(side)
            return calls * {"plain": plain, "cudnn": cudnn}[side]

    monkeypatch.setattr(cuda.cudnn, "_clock", Sides)
    return asked


def convolve(here, n=2):
    x, weight = fill((n, 4, 4, 8), 1), fill((8, 8, 3, 3), 2)
    return here.call("conv", x.astype(np.float32), weight.astype(np.float32), None, *CONV)[0]


@needs_shim
@pytest.mark.parametrize(("plain", "cudnn"), [(1e-3, 2e-3), (2e-3, 1e-3)])
def test_the_backend_measures_once_and_reads_it_the_next_time(
    here, monkeypatch, tmp_path, plain, cudnn
):
    faster = "plain" if plain < cudnn else "cudnn"
    asked = timed(monkeypatch, here.cuda, plain, cudnn, here.cudnn)
    first = convolve(here)
    assert set(asked) == {"plain", "cudnn"}
    asked.clear()
    before = len(here.cudnn.ran)
    np.testing.assert_array_equal(convolve(here), first)
    assert len(here.cudnn.ran) - before == (faster == "cudnn") and not asked
    (table,) = tables.saved()
    assert table.path.parent == tmp_path / "choices" and table.device == "NVIDIA Stand-In"
    assert table.versions["cudnn"] == "9.28.1" and table.versions["cudnn-frontend"] == "1.28.0"
    ((call, choice),) = table.choices.items()
    assert choice.use == faster
    assert call == (
        "conv float32 2x8x4x4/128x1x32x8 8x8x3x3/72x1x24x8 2x8x4x4/128x1x32x8 stride=(1,1) "
        "padding=((1,1),(1,1)) dilation=(1,1) deterministic"
    )
    # Another process.
    with pytest.MonkeyPatch.context() as patch:
        later = machine(patch, "auto")
        asked = timed(patch, later.cuda, 1, 1, later.cudnn)
        np.testing.assert_array_equal(convolve(later), first)
        assert not asked and len(later.cudnn.built) == (faster == "cudnn")
        convolve(later, n=3)
        assert asked


@needs_shim
def test_a_refusal_is_kept_with_its_reason(here, monkeypatch):
    timed(monkeypatch, here.cuda, 1, 1, here.cudnn)
    here.cudnn.refuse = lambda graph: "not on\nthis device"
    convolve(here)
    ((_, choice),) = tables.saved()[0].choices.items()
    assert choice == Choice("plain", {}, "cuDNN: not on this device")
    with pytest.MonkeyPatch.context() as patch:
        later = machine(patch, "auto")
        convolve(later)
        assert later.cudnn.handle is not None and not later.cudnn.built, "it was asked again"


@needs_shim
def test_nothing_is_measured_within_a_capture(here, monkeypatch):
    asked = timed(monkeypatch, here.cuda, 2e-3, 1e-3, here.cudnn)
    here.cupy.capturing = True
    convolve(here)
    assert not asked and not here.cudnn.ran and not tables.saved()
    here.cupy.capturing = False
    convolve(here)
    assert asked and tables.saved()
    count = len(here.cudnn.ran)
    here.cupy.capturing = True
    convolve(here)
    assert len(here.cudnn.ran) == count + 1


@needs_shim
def test_numerics_and_precision_have_choices_of_their_own(here, monkeypatch):
    timed(monkeypatch, here.cuda, 1e-3, 1e-3, here.cudnn)
    convolve(here)
    here.cuda.precision = "tf32"
    convolve(here)
    here.cuda.numerics = "native"
    convolve(here)
    calls = tables.saved()[0].choices
    assert [c.partition("dilation=(1,1) ")[2] for c in calls] == [
        "deterministic",
        "deterministic tf32",
        "native tf32",
    ]


@needs_shim
def test_an_engine_that_fails_when_it_runs_is_left_alone(here, monkeypatch):
    asked = timed(monkeypatch, here.cuda, 2e-3, 1e-3, here.cudnn)
    monkeypatch.setattr(fake_cudnn, "fprop", broken_engine)
    with pytest.warns(RuntimeWarning, match="cuDNN fails at conv float32 2x8x4x4/.*plain kernel"):
        convolve(here)
    count = len(asked)
    convolve(here)
    assert len(asked) == count and not tables.saved(), "another process may have better luck"


def broken_engine(*_, **__):
    raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED\nsomewhere")


def test_an_engine_that_was_forced_and_fails_is_an_error(monkeypatch):
    here = machine(monkeypatch, "always")
    monkeypatch.setattr(fake_cudnn, "fprop", broken_engine)
    with pytest.raises(
        DeviceError, match="conv float32 .*FAILED somewhere; GPUBACKPROP_CUDNN=never"
    ):
        convolve(here)


@needs_shim
def test_where_every_call_has_another_shape_cudnn_is_left_out_at_last(monkeypatch):
    here = machine(monkeypatch, "always")
    monkeypatch.setattr(choosing, "MOST_CALLS", 3)
    for n in (1, 2, 3, 3, 2):
        convolve(here, n)
    with pytest.warns(RuntimeWarning, match="after 3 shapes.*padded to a few lengths") as caught:
        for n in (4, 5, 4):
            convolve(here, n)
    assert len(caught) == 1 and len(here.cudnn.built) == 3 and len(here.cudnn.ran) == 5
    x, weight = fill((2, 4, 4, 8), 1), fill((8, 8, 3, 3), 2)
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    here.call("conv_weight", x, x, (3, 3), *CONV)
    assert len(here.cudnn.built) == 4, "each kernel has its own count"


@needs_shim
def test_each_side_can_be_forced(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    for mode, ran in (("always", 1), ("never", 0)):
        here = machine(monkeypatch, mode)
        convolve(here)
        assert len(here.cudnn.ran) == ran and not tables.saved()
