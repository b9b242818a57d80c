"""Where real data is found, and the check that an error is one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from gpubackprop.errors import DataError

PROJECT = Path(__file__).resolve().parents[2]

DataErrorCheck = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: GPUBACKPROP_DATA, or ../shared/data beside the project."""
    root = Path(os.environ.get("GPUBACKPROP_DATA") or PROJECT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is not there (set GPUBACKPROP_DATA)")
    return root


@pytest.fixture(scope="session")
def mnist_folder(data_root: Path) -> Path:
    """The folder with the four published MNIST files."""
    folder = data_root / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no real MNIST: {folder} has no train-images-idx3-ubyte.gz")
    return folder


@pytest.fixture
def data_error() -> DataErrorCheck:
    """A context that demands a DataError of one line with all the given words in it."""

    @contextmanager
    def check(*words: str) -> Iterator[None]:
        with pytest.raises(DataError) as caught:
            yield
        text = str(caught.value)
        assert "\n" not in text
        for word in words:
            assert word in text, text

    return check


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a property test share."""
    return tmp_path_factory.mktemp("scratch")
