"""Machine code that is older than the source it was made from."""

import os
import subprocess
import sys

import pytest

from gpubackprop.backends.cpu.native.cache import forget_stale


def files(folder):
    return sorted(f.name for f in (folder / "__pycache__").iterdir() if f.suffix[:3] == ".nb")


def test_a_change_in_any_file_forgets_what_all_were_compiled_to(tmp_path):
    (tmp_path / "helper.py").write_text("a = 1\n")
    (tmp_path / "kernel.py").write_text("b = 2\n")
    assert forget_stale(tmp_path)
    kept = tmp_path / "__pycache__"
    for name in ("kernel.f-1.py312.nbi", "kernel.f-1.py312.1.nbc"):
        (kept / name).write_bytes(b"code")
    (kept / "kernel.cpython-312.pyc").write_bytes(b"byte code")
    assert not forget_stale(tmp_path)
    assert len(files(tmp_path)) == 2
    (tmp_path / "helper.py").write_text("a = 3\n")
    os.utime(tmp_path / "helper.py", ns=(1, 1))
    assert forget_stale(tmp_path)
    assert not files(tmp_path)
    assert (kept / "kernel.cpython-312.pyc").exists()
    assert len(list(kept.glob("*.stamp"))) == 1
    assert not forget_stale(tmp_path)


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "kernel.py").write_text("b = 2\n")

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert not forget_stale(tmp_path)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # every write beyond fails: a full disk
import numpy as np
import gpubackprop as gb
double = gb.compile(lambda x: gb.tanh(x) * 2.0 + x, fast=True)
x = np.linspace(-1.0, 1.0, 50, dtype=np.float32)
for _ in range(4):
    y = double(gb.tensor(x)).numpy()
np.testing.assert_allclose(y, np.tanh(x) * 2 + x, rtol=1e-5)
print("1 run natively" in double.explain(), double.explain().count("loops"))
"""


def test_a_full_disk_keeps_nothing_and_stops_nothing(tmp_path):
    pytest.importorskip("numba")
    pytest.importorskip("resource")
    places = {"GPUBACKPROP_CACHE": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-B", "-c", FULL],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["True", "1"]
    assert found.stderr == ""  # no bar where nobody is looking
    whole = [f for f in tmp_path.rglob("*") if f.suffix in (".nbc", ".py", ".tmp")]
    assert not whole
