"""The check that an error is one clear line, and a folder for property tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from gpubackprop.errors import DataError

DataErrorCheck = Callable[..., AbstractContextManager[None]]


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
