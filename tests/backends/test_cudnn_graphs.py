"""cuDNN itself looks at the graphs that it is given: without a GPU, where it is installed (make
cudnn).

Every graph that the contract's cases lead to is validated by the front end; those of convolutions
are planned by the library for GPUs that are described to it. Nothing is run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpubackprop.backends.cuda import cudnn_graphs
from tests.backends.support import convolution_cases
from tests.backends.support.cudnn_backend import machine
from tests.backends.test_cuda_cudnn import cast, own_attention
from tests.conftest import cudnn_absent

pytestmark = pytest.mark.skipif(bool(cudnn_absent()), reason=cudnn_absent() or "cuDNN is there")
ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).parent / "support" / "stub_libcuda.c"


def operations(kind: str, dtype: str) -> list[cudnn_graphs.Operation]:
    """What cuDNN is asked for in the cases of the contract."""
    found: dict[cudnn_graphs.Operation, None] = {}
    with pytest.MonkeyPatch.context() as patch:
        here = machine(patch)
        library_plan = None

        def plan(operation, policy):
            found[operation] = None
            return library_plan(operation, policy)

        assert here.cuda.cudnn.active
        library = here.cuda.cudnn.library
        library_plan = library.plan
        patch.setattr(library, "plan", plan)
        if kind == "attention":
            for _, given, view, options in own_attention():
                there = view(here.cuda, *(here.cuda.asarray(a.astype(dtype)) for a in given))
                y, lse = here.cuda.attention(*there, None, **options)
                here.cuda.attention_backward(y, *there, None, y, lse, **options)
        else:
            for _, arguments, _ in convolution_cases.cases(kind):
                here.call(kind, *(cast(a, np.dtype(dtype)) for a in arguments))
    return list(found)


def validated(operation, **settings):
    import cudnn

    cudnn_graphs.build(cudnn, operation, True, **settings).validate()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kernel", ["conv", "conv_transpose", "conv_weight"])
def test_the_front_end_accepts_every_convolution(kernel, dtype):
    asked = operations(kernel, dtype)
    assert len(asked) >= 18
    for operation in asked:
        validated(operation)


def test_the_front_end_accepts_attention():
    asked = operations("attention", "float16")
    assert {o.kind for o in asked} == {"attention", "attention_backward"} and len(asked) > 20
    for operation in asked:
        try:
            validated(operation, sm_version=90)
        except RuntimeError as error:
            if "cuda_get_device" in str(error):
                pytest.skip("this front end asks the driver before it looks at attention")
            raise


def spoiled(operation: cudnn_graphs.Operation) -> cudnn_graphs.Operation:
    """The result with one more channel than the operation gives."""
    *given, result = operation.tensors
    shape = (result.shape[0], result.shape[1] + 1, *result.shape[2:])
    return operation._replace(tensors=(*given, result._replace(shape=shape)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in driver is for Linux")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize(("capability", "dtype"), [(80, "float32"), (90, "float16")])
def test_cudnn_has_engines_for_every_convolution(tmp_path, capability, dtype):
    command = ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(STUB)]
    subprocess.run(command, check=True)
    kernels = ("conv", "conv_transpose", "conv_weight")
    asked = [o for kernel in kernels for o in operations(kernel, dtype)]
    wrong = [spoiled(o) for o in asked[:3]]
    (tmp_path / "operations").write_bytes(pickle.dumps(asked + wrong))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tests.backends.support.ask_cudnn"),
            *(str(tmp_path / "operations"), str(capability)),
        ],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    assert len(answers) == len(asked) + len(wrong)
    refused = [
        (o, a) for o, a in zip(asked, answers, strict=False) if not isinstance(a, int) or a < 1
    ]
    assert not refused
    assert all(isinstance(a, str) for a in answers[-len(wrong) :]), "it accepts anything"
