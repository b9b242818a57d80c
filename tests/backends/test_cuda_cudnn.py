"""Convolutions and attention through cuDNN, with stand-ins for CuPy and cuDNN that compute.

Dimensions, strides, paddings, numbers of tensors and addresses are right where the results are. The
same comparisons run on a GPU in test_cuda_cudnn_gpu.py.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim, testing
from gpubackprop.autograd import REGISTRY
from gpubackprop.backends import detect, get_backend
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.cuda import cudnn_graphs as graphs
from gpubackprop.backends.offers import offered
from gpubackprop.errors import ConfigError, DeviceError
from tests.backends.support import attention_cases, convolution_cases, shim
from tests.backends.support.convolution_cases import fill
from tests.backends.support.cudnn_backend import machine

NUMPY = NumPyBackend()
DTYPES = {
    "float32": (np.dtype(np.float32), 1e-5),
    "float16": (np.dtype(np.float16), 4e-3),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 3e-2),
}
CONV = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


@pytest.fixture
def here(monkeypatch):
    """A machine whose backend takes cuDNN wherever it can."""
    return machine(monkeypatch)


def cast(value, dtype):
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if floats else value


def require_close(found, expected, size, what):
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape, what
        scale = max(np.abs(want).max(), 1.0) if want.size else 1.0
        np.testing.assert_allclose(
            got.astype(np.float64), want, rtol=size, atol=size * scale, err_msg=what
        )


def expected_of(kernel, arguments, options):
    found = getattr(Backend, kernel)(NUMPY, *(cast(a, np.float64) for a in arguments), **options)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["conv", "conv_transpose", "conv_weight"])
def test_convolutions_are_those_of_the_contract(here, kernel, dtype):
    kind, size = DTYPES[dtype]
    for note, arguments, options in convolution_cases.cases(kernel):
        arguments = [cast(a, kind) for a in arguments]
        before = len(here.cudnn.ran)
        found = here.call(kernel, *arguments, **options)
        require_close(found, expected_of(kernel, arguments, options), size, note)
        assert found[0].dtype == kind and found[0].flags.c_contiguous
        assert len(here.cudnn.ran) - before == (0 if "no image" in note else 1), note


def plainly(kernels, *arrays):
    return arrays


def heads_inside(kernels, *arrays):
    """Heads between the features, as a linear layer gives them."""
    return tuple(a.transpose((0, 2, 1, 3)) for a in arrays)


def thirds(kernels, joint):
    """Parts of one array (B, T, 3 * H * D)."""
    apart = joint.reshape((*joint.shape[:2], 6, 8)).transpose((0, 2, 1, 3))
    return apart[:, 0:2], apart[:, 2:4], apart[:, 4:6]


def one_head(kernels, *arrays):
    return tuple(kernels.broadcast_to(a, (2, 3, *a.shape[2:])) for a in arrays)


def unaligned(kernels, *arrays):
    return tuple(a[..., 1:9] for a in arrays)


def rows_too_near(kernels, *arrays):
    return tuple(a[..., 0:8] for a in arrays)


def own_attention():
    """Layouts and bands that the contract's cases do not have for features that cuDNN takes: what
    is given, what is attended with, and options."""
    for seed, (b, h, hkv, tq, tk, d, dv) in enumerate(
        ((2, 4, 2, 5, 9, 8, 16), (1, 2, 2, 7, 7, 16, 16), (3, 4, 4, 2, 6, 8, 8))
    ):
        q, k, v = fill((b, h, tq, d), seed), fill((b, hkv, tk, d), 50), fill((b, hkv, tk, dv), 60)
        for past in (0, 1, tk - tq, tk):
            options = {"causal": True, "past": past, "scale": 0.4}
            yield f"{q.shape} past {past}", (q, k, v), plainly, options
        yield f"{q.shape}", (q, k, v), plainly, {"scale": 0.4}
    for view, given in (
        (heads_inside, [fill((2, 5, 3, 8), s) for s in (1, 2, 3)]),
        (thirds, [fill((2, 6, 48), 4)]),
        (one_head, [fill((1, 1, 4, 8), s) for s in (1, 2, 3)]),
        (unaligned, [fill((2, 2, 4, 24), s) for s in (1, 2, 3)]),
        (rows_too_near, [fill((2, 2, 4, 9), s) for s in (1, 2, 3)]),
    ):
        yield view.__name__, given, view, {"causal": True, "scale": 0.5}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_is_that_of_the_contract(here, dtype):
    kind, size = DTYPES[dtype]
    cuda, notes = here.cuda, []
    for note, given, view, options in own_attention():
        given = [cast(a, kind) for a in given]
        there = view(cuda, *map(cuda.asarray, given))
        wide = view(NUMPY, *(a.astype(np.float64) for a in given))
        here.cudnn.ran.clear()
        y, lse = cuda.attention(*there, None, **options)
        expected = expected_of("attention", (*wide, None), options)
        require_close([cuda.to_numpy(a) for a in (y, lse)], expected, size, note)
        assert y.dtype == kind and lse.dtype == np.float32
        dy = fill(y.shape, 9).astype(kind)
        grads = cuda.attention_backward(cuda.asarray(dy), *there, None, y, lse, **options)
        saved = [cuda.to_numpy(a).astype(np.float64) for a in (y, lse)]
        arguments = (dy.astype(np.float64), *wide, None, *saved)
        expected = expected_of("attention_backward", arguments, options)
        require_close([cuda.to_numpy(a) for a in grads], expected, size, note)
        assert [g.dtype for g in grads] == [kind] * 3
        assert len(here.cudnn.ran) == 2, note
        notes += [graph.asked[0][1]["alignment"] for graph in here.cudnn.ran]
    assert set(notes) == {"TOP_LEFT", "BOTTOM_RIGHT"}


def test_arrays_that_engines_can_read_are_not_copied(here, monkeypatch):
    cuda, copied = here.cuda, []
    monkeypatch.setattr(cuda.xp, "ascontiguousarray", lambda a: copied.append(a.shape) or a.copy())
    monkeypatch.setattr(cuda, "copy", lambda a: copied.append(a.shape) or a.copy())
    for view, given, copies in (
        (heads_inside, [fill((2, 5, 3, 8), s) for s in (1, 2, 3)], 0),
        (thirds, [fill((2, 6, 48), 4)], 0),
        (unaligned, [fill((2, 2, 4, 24), s) for s in (1, 2, 3)], 3),
    ):
        cuda.attention(*view(cuda, *(cuda.asarray(a.astype(np.float16)) for a in given)), None)
        assert len(copied) == copies, view.__name__
    copied.clear()
    x, weight = (fill(s, 1).astype(np.float16) for s in ((2, 3, 3, 8), (8, 8, 1, 1)))
    here.call("conv", x, weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    assert not copied


@pytest.mark.parametrize("refused", [False, True])
def test_results_go_where_a_compiled_step_wants_them(here, monkeypatch, refused):
    """Cotangents of queries, keys and values as columns of one array, by cuDNN or by the plain
    kernel where cuDNN has no engine."""
    cuda, ran = here.cuda, here.cudnn.ran
    q, k, v = thirds(cuda, cuda.asarray(fill((2, 6, 48), 4).astype(np.float16)))
    options = {"causal": True, "scale": 0.5}
    y, lse = cuda.attention(q, k, v, None, **options)
    dy = cuda.asarray(fill(y.shape, 9).astype(np.float16))
    want = [cuda.to_numpy(a) for a in cuda.attention_backward(dy, q, k, v, None, y, lse, **options)]
    if refused:
        monkeypatch.setattr(cuda.cudnn, "plan", lambda *a: None)
    joint = cuda.zeros((2, 6, 48), np.float16)
    places = thirds(cuda, joint)
    ran.clear()
    with offered(places):
        found = cuda.attention_backward(dy, q, k, v, None, y, lse, **options)
    assert bool(ran) != refused
    for got, place, expected in zip(found, places, want, strict=True):
        assert cuda.layout(got) == cuda.layout(place)
        np.testing.assert_allclose(cuda.to_numpy(place), expected, rtol=2e-3, atol=2e-3)
    narrow = thirds(cuda, cuda.zeros((2, 6, 52), np.float16)[..., 2:50])  # not where engines write
    with offered(narrow):
        found = cuda.attention_backward(dy, q, k, v, None, y, lse, **options)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(cuda.to_numpy(got), expected, rtol=2e-3, atol=2e-3)


def test_results_lie_in_memory_as_what_they_are_for(here):
    """Heads that lie side by side come back so: a view of them is what the next layer takes. Those
    that had to be brought into order come back in order."""
    cuda, ran = here.cuda, here.cudnn.ran
    given = [cuda.asarray(fill((2, 5, 3, 8), s).astype(np.float16)) for s in (1, 2, 3)]
    for unfit in (False, True):
        q, k, v = (a.transpose((0, 2, 1, 3)) for a in given)
        if unfit:  # the same order, but no 16 bytes at a time
            q = cuda.asarray(fill((2, 5, 3, 9), 1).astype(np.float16)).transpose((0, 2, 1, 3))
            q = q[..., :8]
        y, lse = cuda.attention(q, k, v, None)
        grads = cuda.attention_backward(y, q, k, v, None, y, lse)
        side_by_side = [a.transpose((0, 2, 1, 3)).flags.c_contiguous for a in (y, *grads)]
        assert side_by_side == [not unfit, not unfit, True, True]
    assert len(ran) == 4


def test_arrays_at_odd_addresses_are_copied(here):
    """Parameters are views of one long array, so they may begin anywhere in it."""
    cuda, size = here.cuda, 2 * 5 * 5 * 8
    x, weight = small()
    bias = fill((8,), 3).astype(np.float32)
    flat = cuda.asarray(np.concatenate([[0], x.ravel(), weight.ravel(), bias]).astype(np.float32))
    parts = flat[1 : 1 + size], flat[1 + size : 1 + size + 576], flat[1 + size + 576 :]
    shapes = x.shape, weight.shape, bias.shape
    given = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    found = cuda.conv(*given, *CONV.values())
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    expected = expected_of("conv", (*wide, *CONV.values()), {})
    require_close([cuda.to_numpy(found)], expected, 1e-5, "conv")
    assert len(here.cudnn.ran) == 1


def test_a_query_that_sees_every_key_needs_no_mask():
    assert graphs.band_of(False, 0, 5, 9) is graphs.band_of(True, 8, 5, 9) is None
    assert graphs.band_of(True, 7, 5, 9) == graphs.Band("TOP_LEFT", 7)
    assert graphs.band_of(True, 4, 5, 9) == graphs.Band("BOTTOM_RIGHT", 0)
    assert graphs.band_of(True, 0, 9, 9) == graphs.Band("TOP_LEFT", 0)


@needs_shim
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kernel", ["attention", "attention_backward"])
def test_what_cudnn_has_no_words_for_runs_without_it(here, kernel, dtype):
    """Masks, weights that are dropped, float32, features by other numbers than eight."""
    kind, _ = DTYPES[dtype]
    for note, arguments, options in attention_cases.cases(kernel):
        given = [cast(a, kind) for a in arguments]
        if kernel == "attention_backward":
            given[6] = given[6].astype(np.float32)  # a sum stays wide
        q, _, v, mask = given[kernel == "attention_backward" :][:4]
        before = len(here.cudnn.ran)
        here.call(kernel, *given, **options)
        possible = mask is None and not options.get("p") and dtype == "float16" and q.size
        fits = possible and q.shape[2] > 1 and q.shape[3] % 8 == 0 and v.shape[3] % 8 == 0
        assert len(here.cudnn.ran) - before == bool(fits), note


@needs_shim
def test_a_single_query_builds_no_plan_for_each_length_of_its_keys(here):
    for keys in (3, 4, 5):
        q, k = (fill((1, 2, n, 8), 1).astype(np.float16) for n in (1, keys))
        here.call("attention", q, k, k, None)
    assert not here.cudnn.built


@needs_shim
def test_float64_and_four_axes_run_without_it(here):
    x, weight = fill((1, 4, 4, 2), 1), fill((3, 2, 3, 3), 2)
    here.call("conv", x, weight, None, *CONV.values())
    ones = (1,) * 4
    x, weight = fill((1, 2, 2, 2, 2, 2), 1), fill((3, 2, 1, 1, 1, 1), 2)
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    here.call("conv", x, weight, None, ones, ((0, 0),) * 4, ones, 1)
    assert not here.cudnn.built


# Which engine runs.


def small(dtype=np.float32):
    return fill((2, 5, 5, 8), 1).astype(dtype), fill((8, 8, 3, 3), 2).astype(dtype)


@pytest.mark.parametrize(
    ("numerics", "precision", "dtype", "engine"),
    [
        ("deterministic", "float32", "float32", "ordinary"),
        ("deterministic", "tf32", "float32", "tensor cores"),
        ("native", "float32", "float32", "ordinary"),
        ("native", "tf32", "float32", "atomics"),
        ("deterministic", "float32", "float16", "tensor cores"),
        ("native", "float32", "float16", "atomics"),
    ],
)
def test_the_policy_chooses_the_engine(monkeypatch, numerics, precision, dtype, engine):
    here = machine(monkeypatch, numerics=numerics)
    here.cuda.precision = precision
    here.call("conv", *small(dtype), None, *CONV.values())
    assert here.cudnn.ran[-1].engine == engine


def test_the_precision_is_read_at_each_call(here):
    engines = []
    for precision in ("float32", "tf32", "float32"):
        here.cuda.precision = precision
        here.call("conv", *small(), None, *CONV.values())
        engines.append(here.cudnn.ran[-1].engine)
    assert engines == ["ordinary", "tensor cores", "ordinary"]
    assert len(here.cudnn.built) == 2


@pytest.mark.parametrize("numerics", ["deterministic", "native"])
def test_attention_backwards_adds_in_a_fixed_order_where_it_shall(monkeypatch, numerics):
    here = machine(monkeypatch, numerics=numerics)
    q = fill((1, 2, 4, 8), 1).astype(np.float16)
    y, lse = here.call("attention", q, q, q, None)
    here.call("attention_backward", y, q, q, q, None, y, lse)
    (_, options) = here.cudnn.ran[-1].asked[0]
    assert options["deterministic"] == (numerics == "deterministic")


# Plans.


def test_a_plan_is_built_once_for_each_shape_and_layout(here):
    x, weight = small()
    bias = fill((8,), 3).astype(np.float32)
    for count, call in (
        (1, (x, weight, None, *CONV.values())),
        (1, (x + 1, weight * 2, None, *CONV.values())),
        (2, (x, weight, bias, *CONV.values())),
        (3, (x[:1], weight, None, *CONV.values())),
        (4, (x, weight, None, (2, 2), ((1, 1), (1, 1)), (1, 1), 1)),
        (5, (x, weight, None, (1, 1), ((1, 0), (1, 1)), (1, 1), 1)),
        (6, (x, weight, None, (1, 1), ((1, 1), (1, 1)), (2, 2), 1)),
        (7, (x, weight[:, :4].copy(), None, *[*CONV.values()][:3], 2)),
        (7, (x, weight, None, *CONV.values())),
    ):
        here.call("conv", *call)
        assert len(here.cudnn.built) == count
    q = fill((1, 2, 4, 8), 1).astype(np.float16)
    for count, options in (
        (8, {}),
        (9, {"causal": True}),
        (10, {"scale": 0.5}),
        (10, {"scale": 0.5}),
        (11, {"causal": True, "past": 1}),
    ):
        here.call("attention", q, q, q, None, **options)
        assert len(here.cudnn.built) == count
    here.call("attention", q.reshape(1, 4, 2, 8).transpose(0, 2, 1, 3), q, q, None)
    assert len(here.cudnn.built) == 12


def test_work_is_enqueued_on_the_current_stream(here):
    for stream in (7, 9, 7):
        here.cupy.stream = stream
        here.call("conv", *small(), None, *CONV.values())
        assert here.cudnn.stream == stream  # and the stand-in checks it at each run


def test_an_engine_without_workspace(here):
    here.cudnn.workspace = 0
    here.call("conv", *small(), None, *CONV.values())
    assert here.cudnn.ran


def test_nothing_is_waited_for_or_copied_to_the_host(here):
    x, weight = map(here.cuda.asarray, small())
    here.cuda.conv(x, weight, None, *CONV.values())
    assert here.cupy.transfers == here.cupy.synchronised == 0


@needs_shim
def test_within_a_capture_only_what_was_settled_before_runs_by_cudnn(here):
    x, weight = small()
    here.call("conv", x, weight, None, *CONV.values())
    here.cupy.capturing = True
    here.call("conv", x, weight, None, *CONV.values())
    assert len(here.cudnn.ran) == 2
    here.call("conv", x[:1], weight, None, *CONV.values())
    assert len(here.cudnn.ran) == 2 and len(here.cudnn.built) == 1
    here.cupy.capturing = False
    here.call("conv", x[:1], weight, None, *CONV.values())
    assert len(here.cudnn.ran) == 3, "a capture must not settle anything"


@needs_shim
def test_where_asking_is_illegal_nothing_is_built(here, monkeypatch):
    def fail():
        raise RuntimeError("cudaErrorStreamCaptureImplicit")

    stream = here.cupy.cuda.get_current_stream()
    stream.is_capturing = fail
    monkeypatch.setattr(here.cupy.cuda, "get_current_stream", lambda: stream)
    here.call("conv", *small(), None, *CONV.values())
    assert not here.cudnn.built


# Refusals and words.


@needs_shim
def test_a_refused_graph_runs_by_the_plain_kernel(here):
    here.cudnn.refuse = lambda graph: "not on this device" if graph.asked[0][0] == "wgrad" else ""
    x, weight = small()
    dy = here.call("conv", x, weight, None, *CONV.values())[0]
    for _ in range(2):
        found = here.call("conv_weight", x, dy, (3, 3), *CONV.values())
    expected = expected_of(
        "conv_weight", (x.astype(np.float64), dy.astype(np.float64), (3, 3), *CONV.values()), {}
    )
    require_close(found, expected, 1e-5, "conv_weight")
    assert [g.asked[0][0] for g in here.cudnn.ran] == ["fprop"]


@needs_shim
def test_a_policy_that_leaves_no_engine(here):
    here.cudnn.engines = {"atomics": {"NONDETERMINISTIC"}}
    here.call("conv", *small(), None, *CONV.values())
    assert not here.cudnn.ran


@needs_shim
def test_an_engine_with_a_huge_workspace_is_not_taken(here):
    here.cudnn.workspace = 2 << 30
    here.call("conv", *small(), None, *CONV.values())
    assert not here.cudnn.built


@needs_shim
def test_a_graph_that_needs_much_memory_between_its_parts_is_not_taken(here):
    """As attention backwards in a fixed order does: no filter of engines sees it."""
    here.cudnn.between = 2 << 30
    q = fill((1, 2, 4, 8), 1).astype(np.float16)
    found = here.call("attention", q, q, q, None)
    require_close(
        found, expected_of("attention", (*[q.astype(np.float64)] * 3, None), {}), 4e-3, ""
    )
    assert here.cudnn.built and not here.cudnn.ran


def test_a_mistake_in_the_calls_of_the_front_end_is_not_taken_for_a_refusal(here):
    def fail(graph):
        raise TypeError("conv_fprop() got an unexpected keyword argument")

    here.cudnn.refuse = fail
    with pytest.raises(TypeError, match="unexpected keyword"):
        here.call("conv", *small(), None, *CONV.values())


def test_shapes_that_do_not_fit_are_the_plain_kernels_business(here):
    x, weight = small()
    with pytest.raises(ValueError):
        here.call("conv", x[..., :3], weight, None, *CONV.values())
    assert not here.cudnn.built


@needs_shim
def test_a_cudnn_that_does_not_start_is_said_once(monkeypatch):
    here = machine(monkeypatch, "auto")

    def fail():
        raise RuntimeError("cudnnHandle Create failed\nCUDNN_STATUS_NOT_INITIALIZED")

    here.cudnn.create_handle = fail
    with pytest.warns(RuntimeWarning, match="does not start on cuda:0: cudnnHandle.*run without"):
        here.call("conv", *small(), None, *CONV.values())
    here.call("conv", *small(), None, *CONV.values())
    assert not here.cudnn.built


def test_always_needs_a_cudnn(monkeypatch):
    machine(monkeypatch, "never")
    problem = detect.Problem("no-cudnn", "cuDNN's front end is not installed", "pip install it")
    monkeypatch.setattr(detect, "cudnn_problem", lambda: problem)
    with pytest.raises(DeviceError, match="cudnn='always' on cuda:0: .* not installed; pip"):
        CUDABackend(0, cudnn="always")
    here = CUDABackend(0, cudnn="auto")
    assert not here.cudnn.active


def test_the_mode_comes_from_the_argument_then_from_the_environment(monkeypatch):
    machine(monkeypatch)
    monkeypatch.setenv("GPUBACKPROP_CUDNN", "never")
    assert CUDABackend(0).cudnn.mode == "never"
    assert CUDABackend(0, cudnn="auto").cudnn.mode == "auto"
    monkeypatch.delenv("GPUBACKPROP_CUDNN")
    assert CUDABackend(0).cudnn.mode == "auto"
    monkeypatch.setenv("GPUBACKPROP_CUDNN", "allways")
    with pytest.raises(ConfigError, match="from GPUBACKPROP_CUDNN.*allways.*always"):
        CUDABackend(0)


def test_never_does_not_load_it(monkeypatch):
    here = machine(monkeypatch, "never")
    monkeypatch.setattr(detect, "cudnn_problem", lambda: pytest.fail("asked for cuDNN"))
    assert not here.cuda.cudnn.active and here.cudnn.handle is None


# In networks.


@needs_shim
@pytest.mark.parametrize("name", ["conv", "conv_transpose", "conv_weight"])
def test_operations_agree_with_the_cpu(here, name):
    for sample in testing.samples_of(REGISTRY[name]):
        testing.check_parity(REGISTRY[name], sample, here.cuda, np.float32)
    assert here.cudnn.ran


def train(device):
    """Four steps of a small convolutional network: losses and weights."""
    gb.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten()
    ).to(device)
    rule = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(x, target):
        rule.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        rule.step()
        return loss

    rng = np.random.default_rng(0)
    losses = []
    for _ in range(4):
        x, target = rng.standard_normal((6, 2, 7, 7)).astype(np.float32), rng.integers(0, 36, 6)
        losses.append(float(step(gb.tensor(x, device=device), gb.tensor(target, device=device))))
    return losses, [p.numpy() for p in model.parameters()]


@needs_shim
def test_a_network_trains_as_on_the_cpu(here):
    losses, weights = train(get_backend("cpu"))
    found_losses, found_weights = train(here.cuda)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    for found, want in zip(found_weights, weights, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)
    # Of the first layer no gradient of the pictures is asked for.
    kinds = [graph.asked[0][0] for graph in here.cudnn.ran]
    counts = [kinds.count(kind) for kind in ("fprop", "wgrad", "dgrad")]
    assert counts == [8, 8, 4]
