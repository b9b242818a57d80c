"""Modules: registration and its order, state, modes, moves, random state, observers."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import STATE
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.random import Generator
from gpubackprop.errors import CheckpointError, ConfigError, DeviceError, DTypeError, ShapeError


class Net(nn.Module):
    """Parameters, buffers and modules, assigned out of alphabetical order, without super()."""

    def __init__(self):
        self.tail = nn.Linear(3, 2)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.register_buffer("mean", np.zeros(3, np.float32))
        self.register_buffer("cache", np.zeros(1, np.float32), persistent=False)
        self.head = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Dropout(0.5))

    def forward(self, x):
        return self.tail((self.head(x) - self.mean) * self.scale)


@pytest.fixture
def net():
    gb.manual_seed(1)
    return Net()


def x(*shape):
    return gb.tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def test_order_is_that_of_registration_own_values_first(net):
    assert [n for n, _ in net.named_parameters()] == [
        "scale",
        "tail.weight",
        "tail.bias",
        "head.0.weight",
    ]
    assert [n for n, _ in net.named_buffers()] == ["mean", "cache"]
    assert list(net.state_dict()) == [
        "scale",
        "mean",
        "tail.weight",
        "tail.bias",
        "head.0.weight",
    ]
    assert [n for n, _ in net.named_modules()] == ["", "tail", "head", "head.0", "head.1"]
    assert [type(m) for m in net.children()] == [nn.Linear, nn.Sequential]
    assert len(list(net.parameters(recurse=False))) == 1
    assert net.get_submodule("head.0") is net.head[0]


def test_a_wrong_path_names_the_nearest(net):
    with pytest.raises(ConfigError, match="did you mean 'head.0'"):
        net.get_submodule("haed.0")


def test_a_super_call_changes_nothing():
    class Polite(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(1, 1)

    assert [n for n, _ in Polite().named_parameters()] == ["a.weight", "a.bias"]


def test_replacing_deleting_and_kinds(net):
    net.tail = nn.Linear(3, 5)
    assert dict(net.named_parameters())["tail.bias"].shape == (5,)
    net.tail = None
    assert "tail.bias" not in dict(net.named_parameters())
    del net.head
    assert [n for n, _ in net.named_parameters()] == ["scale"]
    with pytest.raises(DTypeError, match="Net.scale is a parameter.*ndarray"):
        net.scale = np.ones(3)
    with pytest.raises(DTypeError, match="buffer"):
        net.mean = 3.0
    net.mean = gb.tensor(np.ones(3, np.float32))
    assert net.state_dict()["mean"].sum() == 3.0


@pytest.mark.parametrize("name", ["", "a.b", "forward"])
def test_names_that_cannot_be_registered(net, name):
    with pytest.raises(ConfigError):
        net.register_buffer(name, np.zeros(1))
    with pytest.raises(ConfigError):
        net.add_module(name, nn.Identity())


def test_wrong_types_are_refused(net):
    with pytest.raises(DTypeError, match="not a Parameter"):
        net.register_parameter("w", np.ones(3))
    with pytest.raises(DTypeError, match="not a Module"):
        net.register_module("w", lambda x: x)


def test_tied_parameters_appear_once_but_under_both_paths_in_the_state():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [n for n, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert list(tied.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    tied.load_state_dict(tied.state_dict())
    twice = nn.Sequential(tied[0], tied[0])
    assert len(list(twice.parameters())) == 2 and len(list(twice.modules())) == 2


def test_modes_reach_every_module(net):
    assert net.train() is net and net.head[1].training
    assert net.eval() is net and not any(m.training for m in net.modules())
    a, b = net(x(5, 4)), net(x(5, 4))
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    net.train()
    assert (net(x(5, 4)).numpy() != a.numpy()).any()


def test_gradients_are_cleared_and_parameters_frozen(net):
    net(x(5, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.tail.requires_grad_(False)
    net(x(5, 4)).sum().backward()
    assert net.tail.weight.grad is None and net.scale.grad is not None


def test_apply_visits_children_before_parents(net):
    seen = []
    assert net.apply(lambda m: seen.append(type(m).__name__)) is net
    assert seen == ["Linear", "Linear", "Dropout", "Sequential", "Net"]


def test_state_is_a_copy_and_loading_is_in_place(net):
    state = net.state_dict()
    net.scale.array[...] = 7.0
    assert (state["scale"] == 1.0).all()
    array = net.scale.array
    net.load_state_dict(state)
    assert net.scale.array is array and (array == 1.0).all()


def test_a_state_goes_round_through_another_network(net):
    other = Net()
    assert (other.tail.weight.numpy() != net.tail.weight.numpy()).any()
    other.load_state_dict({k: v.tolist() for k, v in net.state_dict().items()})
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)


def test_faults_are_listed_together_and_nothing_is_changed(net):
    before = net.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    del state["tail.weight"]
    state["tail.wieght"] = np.zeros((2, 3))
    state["scale"] = np.zeros(4)
    state["mean"] = np.zeros(3, complex)
    state["tail.bias"] = "text"
    with pytest.raises(CheckpointError) as error:
        net.load_state_dict(state)
    text = str(error.value)
    assert "missing: 'tail.weight'" in text
    assert "'tail.wieght' (did you mean 'tail.weight'?)" in text
    assert "'scale' has shape (4,), expected (3,)" in text
    assert "'mean' has dtype complex128" in text
    assert "'tail.bias' has" in text or "'tail.bias' is" in text
    assert "\n" not in text
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_loading_loosely_tells_what_was_left_out(net):
    state = net.state_dict()
    state["scale"] = state["scale"] + 1
    del state["mean"]
    state["extra"] = np.zeros(1)
    difference = net.load_state_dict(state, strict=False)
    assert difference.missing_keys == ["mean"] and difference.unexpected_keys == ["extra"]
    assert (net.scale.numpy() == 2.0).all()
    with pytest.raises(CheckpointError, match="shape"):
        net.load_state_dict({"scale": np.zeros(9)}, strict=False)
    with pytest.raises(CheckpointError, match="not a mapping"):
        net.load_state_dict([1, 2])


def test_moving_keeps_values_and_takes_buffers_and_gradients_along(net):
    before = net.state_dict()
    net(x(5, 4)).sum().backward()
    gradient = net.scale.grad.numpy().copy()
    other = NumPyBackend()
    assert net.to(other) is net
    assert all(t.backend is other for t in [*net.parameters(), *net.buffers()])
    np.testing.assert_array_equal(net.scale.grad.numpy(), gradient)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(DeviceError):
        net(x(5, 4))


def test_a_dtype_can_be_changed(net):
    net.register_buffer("count", np.arange(2))
    net.to(dtype=np.float64)
    kinds = {n: v.dtype.name for n, v in net.state_dict().items()}
    assert kinds.pop("count") == "int64" and set(kinds.values()) == {"float64"}
    net(gb.tensor(np.ones((2, 4)))).sum().backward()
    assert net.scale.grad.dtype == np.float64
    with pytest.raises(DTypeError, match="int64"):
        net.to(dtype=np.int64)
    with pytest.raises(DTypeError, match="dtype="):
        net.to(np.float64)


def test_random_state_goes_round_through_json(net):
    state = json.loads(json.dumps(net.random_state()))
    assert list(state) == ["head.1.generator"] and len(state["head.1.generator"]) == 3
    first = [net(x(5, 4)).numpy() for _ in range(2)]
    assert net.random_state() != state
    net.load_random_state(state)
    for expected in first:
        np.testing.assert_array_equal(net(x(5, 4)).numpy(), expected)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "missing: 'head.1.generator'"),
        ({"head.1.generator": [1, 2, 3], "more": [1, 2, 3]}, "unexpected: 'more'"),
        ({"head.1.generator": [1, 2, 3, 4]}, "is not"),
        ({"head.1.generator": None}, "is not"),
        ({"head.1.generator": [-1, 0, 0]}, "is not"),
    ],
)
def test_a_wrong_random_state_is_refused(net, state, words):
    before = net.random_state()
    with pytest.raises(CheckpointError, match=words):
        net.load_random_state(state)
    assert net.random_state() == before


def test_a_shared_generator_stays_shared():
    class Draws(nn.Module):
        def __init__(self, generator):
            self.source = generator

    generator = Generator(3)
    pair = nn.ModuleList([Draws(generator), Draws(generator)])
    state = pair.random_state()
    assert list(state) == ["0.source"]
    generator.take(40)
    pair.load_random_state(state)
    assert pair[0].source is pair[1].source and pair[0].source.state() == (3, 0, 0)


def test_the_default_generator_decides_weights_and_masks():
    def build(seed):
        gb.manual_seed(seed)
        made = Net()
        return made.state_dict(), made.random_state(), made(x(5, 4)).numpy()

    (s1, r1, y1), (s2, r2, y2), (s3, r3, y3) = build(5), build(5), build(6)
    assert r1 == r2 != r3
    np.testing.assert_array_equal(y1, y2)
    assert (s1["tail.weight"] == s2["tail.weight"]).all()
    assert (s1["tail.weight"] != s3["tail.weight"]).all()
    assert (y1 != y3).any()


def test_deepcopy_shares_nothing(net):
    net.tied = net.scale
    twin = copy.deepcopy(net)
    assert twin.tied is twin.scale and twin.scale is not net.scale
    assert list(twin.state_dict()) == list(net.state_dict())
    y = net(x(5, 4)).numpy()
    np.testing.assert_array_equal(twin(x(5, 4)).numpy(), y)  # the same random sequence
    twin.scale.array[...] = 0.0
    twin.mean.array[...] = 9.0
    assert (net.scale.numpy() == 1.0).all() and (net.mean.numpy() == 0.0).all()
    twin.extra = nn.Linear(1, 1)
    assert "extra.weight" not in net.state_dict()


class Recorder:
    """An observer of modules."""

    def __init__(self, root):
        self.paths = {id(m): path for path, m in root.named_modules()}
        self.log = []

    def enter(self, module):
        self.log.append(("enter", self.paths[id(module)]))

    def leave(self, module):
        self.log.append(("leave", self.paths[id(module)]))

    def forward(self, op, inputs, outputs, params):
        self.log.append(("op", op.name))


def test_an_observer_learns_which_module_runs(net):
    net.eval()
    recorder = Recorder(net)
    STATE.observer = recorder
    try:
        net(x(5, 4))
        with pytest.raises(ShapeError):
            net(x(5, 3))
    finally:
        STATE.observer = None
    begin = [("enter", ""), ("enter", "head"), ("enter", "head.0"), ("op", "linear")]
    assert recorder.log[:5] == [*begin, ("leave", "head.0")]
    depth = 0
    for event, _ in recorder.log:
        depth += {"enter": 1, "leave": -1}.get(event, 0)
        assert depth >= 0
    assert depth == 0  # left even where the forward pass failed


def test_a_module_without_forward_says_so():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define forward"):
        Empty()(1)


def test_the_printed_form_shows_the_nesting(net):
    assert repr(net).splitlines() == [
        "Net(",
        "  (tail): Linear(3, 2, bias=True)",
        "  (head): Sequential(",
        "    (0): Linear(4, 3, bias=False)",
        "    (1): Dropout(p=0.5)",
        "  )",
        ")",
    ]


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, gpubackprop.nn, gpubackprop.optim;"
        "names = {m.split('.')[0] for m in sys.modules};"
        "print(sorted(names & {'cupy', 'numba', 'matplotlib', 'safetensors', 'tqdm', 'torch',"
        " 'scipy', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
