"""Which device a name, or the environment, chooses."""

from __future__ import annotations

import pytest

from gpubackprop.backends import get_backend
from gpubackprop.backends.detect import gpu_problem
from gpubackprop.backends.device import choose
from gpubackprop.errors import DeviceError


@pytest.mark.parametrize("value", ["cpu", " CPU ", ""])
def test_the_environment_is_read_where_no_device_is_named(monkeypatch, value):
    monkeypatch.setenv("GPUBACKPROP_DEVICE", value)
    assert get_backend().device == "cpu"


def test_a_wrong_value_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("GPUBACKPROP_DEVICE", "gpu")
    with pytest.raises(DeviceError, match=r"unknown device 'gpu'; .*\(from GPUBACKPROP_DEVICE\)"):
        get_backend()
    assert get_backend("cpu").device == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", 0])
def test_a_wrong_name_is_told_as_it_stands(name):
    with pytest.raises(DeviceError, match=r"unknown device .*'cuda:N'$"):
        choose(name)


@pytest.mark.skipif(gpu_problem() is None, reason="there is a GPU here")
def test_a_device_that_cannot_be_used_says_who_asked(monkeypatch):
    with pytest.raises(DeviceError, match=r"device 'cuda' cannot be used: "):
        choose("cuda")
    monkeypatch.setenv("GPUBACKPROP_DEVICE", "cuda")
    with pytest.raises(DeviceError, match=r"device 'cuda' \(from GPUBACKPROP_DEVICE\) cannot be"):
        choose()
    assert choose("auto").device == "cpu"
