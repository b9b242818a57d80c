"""Machine code that is older than the source it was made from."""

import os

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
