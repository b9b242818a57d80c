"""Weights to and from safetensors files, also hostile ones."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import gpubackprop as gb
from gpubackprop import interop, nn, optim
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.interop.tensor_file import entries


def network(dtype: str = "float32", seed: int = 0) -> nn.Module:
    gb.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).to(dtype=dtype)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


def written(path, tensors: dict, data: bytes | None = None, **more) -> None:
    """A file with this header (and these bytes behind it)."""
    header = json.dumps({**tensors, **more}).encode()
    size = max([v["data_offsets"][-1] for v in tensors.values() if isinstance(v, dict)] or [0])
    path.write_bytes(
        struct.pack("<Q", len(header)) + header + (bytes(size) if data is None else data)
    )


def refused(call, *arguments, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# There and back.
def test_there_and_back(tmp_path):
    model, other = network(), network(seed=1)
    path = tmp_path / "m.safetensors"
    interop.save_safetensors(model, path, {"step": "7"})
    assert interop.load_safetensors(other, path) == ([], [])
    assert same(model.state_dict(), other.state_dict())
    assert interop.read_safetensors(path).keys() == model.state_dict().keys()
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    header = json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt", "step": "7"}


def test_the_reader_agrees_with_the_formats_own(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 4)),
        "b": rng.standard_normal(5).astype(np.float16),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "small": np.array([-3, 7], np.int8),
        "ü": np.arange(6, dtype=np.uint16).reshape(1, 2, 3),
    }
    save_file(arrays, tmp_path / "m.safetensors")
    found = interop.read_safetensors(tmp_path / "m.safetensors")
    expected = load_file(tmp_path / "m.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value)


def test_arrays_in_any_order_of_memory_are_written_as_they_read(tmp_path):
    x = np.arange(12.0).reshape(3, 4)
    path = tmp_path / "m.safetensors"
    interop.save_safetensors({"t": x.T, "s": x[::2, ::-1], "tensor": gb.tensor(x)}, path)
    found = interop.read_safetensors(path)
    assert np.array_equal(found["t"], x.T) and np.array_equal(found["s"], x[::2, ::-1])
    assert np.array_equal(found["tensor"], x)


def test_weights_in_an_optimizers_arena_are_written_in_place(tmp_path):
    model = network()
    interop.save_safetensors(network(seed=1), tmp_path / "m.safetensors")
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    interop.load_safetensors(model, tmp_path / "m.safetensors")
    before = model.state_dict()
    for p in model.parameters():
        p.grad = gb.tensor(np.ones(p.shape, np.float32))
    optimizer.step()
    after = model.state_dict()
    assert all(np.allclose(after[k], before[k] - np.float32(0.1)) for k in before)


def test_a_derivative_through_overwritten_weights_is_refused(tmp_path):
    model = network()
    interop.save_safetensors(network(seed=1), tmp_path / "m.safetensors")
    x = gb.tensor(np.ones((2, 4), np.float32), requires_grad=True)
    y = model(x).sum()
    interop.load_safetensors(model, tmp_path / "m.safetensors")
    with pytest.raises(gb.autograd.chain_rule.GradientError, match="changed in place"):
        y.backward()


# Dtypes.
def bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 values that bfloat16 holds."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype("<u2")


def test_narrow_files_fill_wider_models_without_loss(tmp_path):
    values = np.array([1.5, -2.0, 0.0078125, np.inf, 3e38 // 1], np.float32)
    kept = (bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    written(
        tmp_path / "b.safetensors",
        {"p": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}},
        bfloat16(values).tobytes(),
    )
    for dtype in ("float32", "float64"):
        model = nn.Module()
        model.p = nn.Parameter(np.zeros(5, dtype))
        interop.load_safetensors(model, tmp_path / "b.safetensors")
        assert model.p.dtype == dtype and np.array_equal(model.p.numpy(), kept)
    model = nn.Module()
    model.p = nn.Parameter(np.zeros(5, np.float16))
    assert "'p' has dtype bfloat16, which loses digits as float16" in refused(
        interop.load_safetensors, model, tmp_path / "b.safetensors"
    )
    half = {"p": np.array([1.5, 65504, -0.0, 6e-8, 2], np.float16)}
    save_file(half, tmp_path / "h.safetensors")
    model.p = nn.Parameter(np.zeros(5, np.float32))
    interop.load_safetensors(model, tmp_path / "h.safetensors")
    assert np.array_equal(model.p.numpy(), half["p"])


def test_casts_that_lose_digits_must_be_asked_for(tmp_path):
    path = tmp_path / "m.safetensors"
    wide, model = network("float64", seed=1), network()
    before = model.state_dict()
    interop.save_safetensors(wide, path)
    text = refused(interop.load_safetensors, model, path)
    assert "'0.weight' has dtype float64, which loses digits as float32 (cast=True" in text
    assert same(model.state_dict(), before)
    interop.load_safetensors(model, path, cast=True)
    for name, value in wide.state_dict().items():
        assert np.array_equal(model.state_dict()[name], value.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.array([1e300]), "float32", "1 values of 'p' are out of the range of float32"),
        (np.array([1], np.int64), "float32", "has dtype int64, expected float32"),
    ],
)
def test_casts_that_lose_numbers_never_happen(tmp_path, value, dtype, words):
    model = nn.Module()
    model.p = nn.Parameter(np.zeros(1, dtype))
    save_file({"p": value}, tmp_path / "m.safetensors")
    assert words in refused(interop.load_safetensors, model, tmp_path / "m.safetensors", cast=True)
    assert model.p.numpy()[0] == 0


def test_counts(tmp_path):
    model = nn.Module()
    model.register_buffer("count", np.array(0, np.int32))
    save_file({"count": np.array(5, np.int64)}, tmp_path / "m.safetensors")
    assert "loses digits" in refused(interop.load_safetensors, model, tmp_path / "m.safetensors")
    interop.load_safetensors(model, tmp_path / "m.safetensors", cast=True)
    assert model.count.item() == 5
    save_file({"count": np.array(1 << 40, np.int64)}, tmp_path / "m.safetensors")
    assert "out of the range of int32" in refused(
        interop.load_safetensors, model, tmp_path / "m.safetensors", cast=True
    )


# Names.
def test_every_fault_stands_in_one_error(tmp_path):
    model = network()
    state = model.state_dict()
    state["0.wieght"] = state.pop("0.weight")
    state["2.weight"] = state["2.weight"].T.copy()
    before = model.state_dict()
    interop.save_safetensors(state, tmp_path / "m.safetensors")
    text = refused(interop.load_safetensors, model, tmp_path / "m.safetensors")
    assert "does not fit the Sequential" in text
    assert "missing: '0.weight'" in text
    assert "unexpected: '0.wieght' (did you mean '0.weight'?)" in text
    assert "'2.weight' has shape (3, 2), expected (2, 3)" in text
    assert same(model.state_dict(), before)
    assert "'2.weight'" in refused(
        interop.load_safetensors, model, tmp_path / "m.safetensors", strict=False
    )


def test_parts_of_a_file_and_of_a_model(tmp_path):
    state = {f"body.{k}": v for k, v in network(seed=1).state_dict().items()}
    path = tmp_path / "m.safetensors"
    interop.save_safetensors({**state, "head.weight": np.ones((2, 2), np.float32)}, path)
    model = network()
    assert interop.load_safetensors(model, path, prefix="body.") == ([], [])
    assert same(model.state_dict(), network(seed=1).state_dict())
    both = interop.load_safetensors(model, path, strict=False)
    assert both.missing_keys == list(model.state_dict()) and "head.weight" in both.unexpected_keys
    assert "no name begins with the prefix 'boddy.'" in refused(
        interop.load_safetensors, model, path, prefix="boddy."
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        self.first, self.second = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.second.weight = self.first.weight


def test_a_tied_parameter_is_needed_once(tmp_path):
    model, path = Tied(), tmp_path / "m.safetensors"
    interop.save_safetensors(model, path)
    assert set(interop.read_safetensors(path)) == {"first.weight", "second.weight"}
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    for name in ("first.weight", "second.weight"):
        save_file({name: values}, path)
        model.first.weight.copy_(np.zeros((5, 3)))
        assert interop.load_safetensors(model, path) == ([], [])
        assert np.array_equal(model.second.weight.numpy(), values)


# Folders and indices.
def sharded(folder, model) -> dict:
    state = list(model.state_dict().items())
    places = {}
    for k, part in enumerate((state[:2], state[2:])):
        name = f"model-{k + 1:05d}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        places |= dict.fromkeys(dict(part), name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def test_a_model_in_several_files(tmp_path):
    saved, model = network(seed=1), network()
    sharded(tmp_path, saved)
    for path in (tmp_path, str(tmp_path / "model.safetensors.index.json")):
        for p in model.parameters():
            p.copy_(np.zeros(p.shape))
        interop.load_safetensors(model, path)
        assert same(model.state_dict(), saved.state_dict())


def test_a_folder_with_one_file(tmp_path):
    assert "holds no safetensors file" in refused(interop.read_safetensors, tmp_path)
    save_file({"x": np.ones(1)}, tmp_path / "any.safetensors")
    assert list(interop.read_safetensors(tmp_path)) == ["x"]
    save_file({"y": np.ones(1)}, tmp_path / "other.safetensors")
    assert "2 safetensors files" in refused(interop.read_safetensors, tmp_path)
    save_file({"z": np.ones(1)}, tmp_path / "model.safetensors")
    assert list(interop.read_safetensors(tmp_path)) == ["z"]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"x": "../m.safetensors"}, "not the name of a file in the same folder"),
        ({"x": "/etc/passwd"}, "not the name of a file"),
        ({"x": "a\\b"}, "not the name of a file"),
        ({"x": ".."}, "not the name of a file"),
        ({"x": 3}, "not the name of a file"),
        ({"x": "absent.safetensors"}, "no such file"),
        ({"q": "m.safetensors"}, "says that 'q' is in m.safetensors, which does not hold it"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_hostile_indices(tmp_path, places, words):
    save_file({"x": np.ones(1)}, tmp_path / "m.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    assert words in refused(interop.read_safetensors, path)
    path.write_text("[" * 100_000)
    assert "not JSON" in refused(interop.read_safetensors, path)


# Damaged and hostile files.
ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": {**ONE, "data_offsets": [0, 4]}}, "takes 4 bytes"),
        ({"x": {**ONE, "shape": [1 << 40]}}, "takes 8 bytes"),
        ({"x": {**ONE, "shape": [-2]}}, "describes 'x' wrongly"),
        ({"x": {**ONE, "shape": [2.0]}}, "describes 'x' wrongly"),
        ({"x": {**ONE, "shape": "2"}}, "describes 'x' wrongly"),
        ({"x": {**ONE, "shape": [True, 2]}}, "describes 'x' wrongly"),
        ({"x": {**ONE, "shape": [1] * 65 + [2]}}, "describes 'x' wrongly"),
        (
            {"x": {"dtype": "F32", "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}},
            "wrongly",
        ),
        ({"x": {**ONE, "data_offsets": [8, 0]}}, "takes -8 bytes"),
        ({"x": {**ONE, "data_offsets": [0]}}, "describes 'x' wrongly"),
        ({"x": {**ONE, "dtype": "F8_E4M3"}}, "of dtype 'F8_E4M3'; read are F64"),
        ({"x": {**ONE, "dtype": ["F32"]}}, "describes 'x' wrongly"),
        ({"x": ONE, "y": ONE}, "'y' begins at byte"),
        ({"x": {**ONE, "data_offsets": [8, 16]}}, "'x' begins at byte"),
        ({"x" * 5000: {**ONE, "shape": []}}, "x..."),
    ],
)
def test_hostile_headers(tmp_path, tensors, words):
    written(tmp_path / "m.safetensors", tensors)
    text = refused(interop.read_safetensors, tmp_path / "m.safetensors")
    assert words in text and len(text) < 600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"abc", "truncated or no safetensors file"),
        (struct.pack("<Q", 1 << 62) + b"{}", "truncated or no safetensors file"),
        (struct.pack("<Q", 2) + b"{}", ""),
        (struct.pack("<Q", 2) + b"[]", "its header is no table"),
        (struct.pack("<Q", 3) + b"{}}", "it is not JSON"),
        (struct.pack("<Q", 2) + b"\xff\xff", "it is not JSON"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "a name stands twice"),
        (struct.pack("<Q", 2) + b"{}more", "it has 14"),
        (b"PK\x03\x04" + bytes(30), "is a pickle, as torch.save writes it"),
        (b"\x80\x02}q\x00." + bytes(30), "is a pickle"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    if words:
        assert words in refused(interop.read_safetensors, path)
    else:
        assert interop.read_safetensors(path) == {}


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path):
    path = tmp_path / "m.safetensors"
    header = json.dumps({"x": ONE}).encode().ljust(128)
    path.write_bytes(struct.pack("<Q", 128) + header + bytes(8))
    assert interop.read_safetensors(path)["x"].tolist() == [0, 0]


def test_every_truncation_is_found(tmp_path):
    interop.save_safetensors(network(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "m.safetensors").write_bytes(whole[:length])
        refused(interop.read_safetensors, tmp_path / "m.safetensors")


@settings(max_examples=150)
@given(st.data())
def test_changed_bytes_are_an_error_in_words_or_other_values(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "m.safetensors"
    save_file({"x": np.arange(3.0), "y": np.ones((2, 2), np.float16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        interop.read_safetensors(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_nothing_is_allocated_for_a_claim(tmp_path):
    path = tmp_path / "m.safetensors"
    size = 1 << 40
    written(path, {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b"few")
    tracemalloc.start()
    assert "truncated" in refused(interop.read_safetensors, path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_missing_files_and_folders(tmp_path):
    assert "no such file" in refused(interop.read_safetensors, tmp_path / "no.safetensors")
    assert "no such file" in refused(interop.save_safetensors, network(), tmp_path / "no" / "m")
    assert "is a folder" in refused(interop.save_safetensors, network(), tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    interop.save_safetensors(network(), path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "no space left" in refused(interop.save_safetensors, network(seed=1), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigError, match="model is a dict"):
        interop.load_safetensors({}, tmp_path)
    with pytest.raises(ConfigError, match="model must be a Module .*, not str; the file comes sec"):
        interop.save_safetensors("m.safetensors", network().state_dict())
    with pytest.raises(ConfigError, match="metadata are texts"):
        interop.save_safetensors(network(), tmp_path / "m", {"step": 3})


def test_headers_are_read_alone(tmp_path):
    interop.save_safetensors(network(), tmp_path / "m.safetensors")
    found = entries(tmp_path / "m.safetensors")
    assert found["0.weight"].shape == (3, 4) and found["0.weight"].dtype == "float32"
