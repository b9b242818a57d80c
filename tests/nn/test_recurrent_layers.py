"""Recurrent layers and cells: states, lengths, dropout, and what they learn."""

import copy

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.autograd import REGISTRY, apply
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
CELLS = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def make(kind, *arguments, **options):
    return KINDS[kind](*arguments, **options, generator=Generator(1), dtype=np.float64)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def same(found, want):
    for f, w in zip(parts(found), parts(want), strict=True):
        np.testing.assert_allclose(f.numpy(), w.numpy(), rtol=1e-12, atol=1e-14)


# Shapes and states.


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_names(kind):
    layer = make(kind, 3, 4, 2, bidirectional=True)
    y, state = layer(gb.tensor(numbers(5, 2, 3)))
    assert y.shape == (5, 2, 8)
    assert [s.shape for s in parts(state)] == [(4, 2, 4)] * (2 if kind == "LSTM" else 1)
    assert list(layer.state_dict()) == [
        f"{what}_l{k}{way}"
        for k in range(2)
        for way in ("", "_reverse")
        for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    assert repr(layer) == f"{kind}(3, 4, num_layers=2, bidirectional=True)"
    free = make(kind, 3, 4, bias=False)
    assert list(free.state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    assert free.bias_ih_l0 is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_calls_is_the_sequence_in_one(kind):
    layer = make(kind, 3, 4, 2)
    x = gb.tensor(numbers(7, 2, 3))
    whole, last = layer(x)
    first, state = layer(x[:3])
    second, state = layer(x[3:], state)
    np.testing.assert_allclose(whole[:3].numpy(), first.numpy(), rtol=1e-12)
    np.testing.assert_allclose(whole[3:].numpy(), second.numpy(), rtol=1e-12)
    same(state, last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_step_of_the_layer(kind):
    layer = make(kind, 3, 4)
    cell = CELLS[kind](3, 4, dtype=np.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = gb.tensor(numbers(5, 2, 3))
    y, last = layer(x)
    state = None
    for t in range(5):
        state = cell(x[t], state)
        np.testing.assert_allclose(parts(state)[0].numpy(), y[t].numpy(), rtol=1e-12)
    same(state, tuple(s[0] for s in parts(last)) if kind == "LSTM" else last[0])
    alone = cell(x[0, 1])
    np.testing.assert_allclose(parts(alone)[0].numpy(), y[0, 1].numpy(), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_sequence_is_one_node(kind):
    y, _ = make(kind, 3, 4)(gb.tensor(numbers(50, 2, 3)))
    assert y.node.op.name == kind.lower()
    assert all(edge.is_leaf for edge in y.node.edges if edge is not None)


# Lengths.


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_sequence_is_as_if_it_were_alone(kind, both):
    layer = make(kind, 3, 4, 2, bidirectional=both)
    x, lengths = numbers(6, 3, 3), [2, 6, 4]
    y, state = layer(gb.tensor(x), lengths=lengths)
    for n, length in enumerate(lengths):
        alone, last = layer(gb.tensor(x[:length, n]))
        np.testing.assert_allclose(y[:length, n].numpy(), alone.numpy(), rtol=1e-11)
        assert not y[length:, n].numpy().any()
        same(tuple(s[:, n] for s in parts(state)), parts(last))


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_the_end_is_not_read(kind):
    layer = make(kind, 3, 4, bidirectional=True)
    found = []
    for filler in (0.0, 1e300, np.nan):
        x = numbers(5, 2, 3)
        x[2:, 0] = filler
        leaf = gb.tensor(x, requires_grad=True)
        with np.errstate(all="ignore"):
            y, state = layer(leaf, lengths=np.array([2, 5]))
            layer.zero_grad()
            (y.sum() + sum((s * s).sum() for s in parts(state))).backward()
        found.append([y.numpy(), leaf.grad.numpy(), *(p.grad.numpy() for p in layer.parameters())])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, want)
    assert not found[0][1][2:, 0].any()


def test_lengths_in_every_form():
    layer, x = make("GRU", 3, 4), gb.tensor(numbers(4, 3, 3))
    want, _ = layer(x, lengths=[4, 1, 0])
    for lengths in (
        (4, 1, 0),
        np.array([4, 1, 0], np.uint8),
        gb.tensor(np.array([4, 1, 0])),
        gb.tensor(np.array([4, 1, 0], np.int32)),
    ):
        same(layer(x, lengths=lengths)[0], want)
    start = gb.tensor(numbers(1, 3, 4, seed=2))
    _, state = layer(x, start, lengths=[4, 1, 0])
    np.testing.assert_array_equal(state[0, 2].numpy(), start[0, 2].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first_with_lengths(kind):
    layer = make(kind, 3, 4, 2, bidirectional=True)
    other = make(kind, 3, 4, 2, bidirectional=True, batch_first=True)
    x = numbers(5, 2, 3)
    y, state = layer(gb.tensor(x), lengths=[5, 3])
    z, last = other(gb.tensor(x.transpose(1, 0, 2)), lengths=[5, 3])
    np.testing.assert_allclose(z.numpy(), y.numpy().transpose(1, 0, 2), rtol=1e-12)
    same(last, state)


# Dropout.


def test_dropout_between_layers_in_training_only():
    layer = make("LSTM", 3, 4, 2, dropout=0.5)
    plain = make("LSTM", 3, 4, 2)
    plain.load_state_dict(layer.state_dict())
    x = gb.tensor(numbers(5, 2, 3))
    assert list(layer.random_state()) == ["generator"] and not plain.random_state()
    state = layer.random_state()
    first, second = layer(x)[0].numpy(), layer(x)[0].numpy()
    assert (first != second).any() and (first != plain(x)[0].numpy()).any()
    layer.load_random_state(state)
    np.testing.assert_array_equal(layer(x)[0].numpy(), first)
    layer.eval()
    same(layer(x)[0], plain(x)[0])
    # All that one layer says dropped, the second runs as on zeros.
    deaf = make("GRU", 3, 4, 2, dropout=1.0)
    np.testing.assert_array_equal(deaf(x)[0].numpy(), deaf(x * 2.0)[0].numpy())


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match=r"GRU: dropout=0.5 acts between layers"):
        nn.GRU(3, 4, dropout=0.5)


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nn.LSTM(0, 3), ConfigError, "input_size must be an integer of at least 1"),
        (lambda: nn.GRU(3, 4, num_layers=0), ConfigError, "num_layers"),
        (lambda: nn.RNN(3, 4, nonlinearity="selu"), ConfigError, "'tanh' or 'relu', not 'selu'"),
        (lambda: nn.RNNCell(3, 4, nonlinearity="selu"), ConfigError, "RNNCell: nonlinearity"),
        (lambda: nn.LSTM(3, 4, dropout=2.0), ConfigError, r"dropout must be a probability"),
        (lambda: nn.LSTM(3, 4, proj_size=2), ConfigError, "proj_size=2: projected states are not"),
    ],
)
def test_arguments_of_layers(call, error, words):
    with pytest.raises(error, match=words):
        call()


X = gb.tensor(numbers(5, 2, 3))
H = gb.tensor(numbers(1, 2, 4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m(X.numpy()), DTypeError, "input is a ndarray; make a tensor"),
        (lambda m: m(X[..., :2]), ShapeError, r"must have shape \(T, N, 3\), or .*\(5, 2, 2\)"),
        (lambda m: m(X[:0]), ShapeError, "has no steps; give it at least one"),
        (lambda m: m(X, H), DTypeError, r"a pair of tensors \(h, c\) or None, not \(Tensor\)"),
        (lambda m: m(X, (H, H[:, :1])), ShapeError, r"c of the initial state .* \(1, 2, 4\)"),
        (lambda m: m(X[:, 0], (H, H)), ShapeError, r"must have shape \(1, 4\)"),
        (lambda m: m(X, lengths=[5, 6]), ShapeError, r"lengths\[1\] = 6 is not between 0 and"),
        (lambda m: m(X, lengths=[-1, 5]), ShapeError, r"lengths\[0\] = -1"),
        (lambda m: m(X, lengths=gb.tensor([9, 5])), ShapeError, r"lengths\[0\] = 9"),
        (lambda m: m(X, lengths=[5]), ShapeError, r"lengths must have shape \(2,\)"),
        (lambda m: m(X, lengths=[1.0, 2.0]), DTypeError, "lengths must be integers, not float64"),
        (lambda m: m(X[:, 0], lengths=[3]), ShapeError, "lengths is for a batch"),
        (lambda m: m(X.astype("int64")), DTypeError, "must be floats, not int64"),
    ],
)
def test_arguments_of_a_call(call, error, words):
    with pytest.raises(error, match=words):
        call(make("LSTM", 3, 4))


def test_arguments_of_a_cell():
    cell = nn.LSTMCell(3, 4)
    with pytest.raises(ShapeError, match=r"LSTMCell: input must have shape \(N, 3\) or \(3,\)"):
        cell(X)
    with pytest.raises(DTypeError, match="pair"):
        cell(X[0], H[0])
    with pytest.raises(DTypeError, match="make a tensor"):
        cell([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (5, 3), "rnn: x .* must have the axes"),
        (1, (1, 4), r"rnn: h0 .* must have shape \(2, 4\)"),
        (2, (4, 2), r"rnn: w_ih .* must have shape \(4, 3\)"),
        (3, (4, 3), r"rnn: w_hh must have shape \(hidden, hidden\)"),
        (4, (3,), r"rnn: b_ih must have shape \(4,\) or be None"),
        (6, (3,), r"rnn: lengths .* must have shape \(2,\)"),
    ],
)
def test_arguments_of_the_operation(place, shape, words):
    shapes = [(5, 2, 3), (2, 4), (4, 3), (4, 4), (4,), (4,), (2,)]
    arrays = [gb.tensor(numbers(*s)) for s in shapes]
    arrays[6] = gb.tensor(np.array([5, 5]))
    arrays[place] = gb.tensor(np.ones(shape, np.int64 if place == 6 else np.float64))
    with pytest.raises(ShapeError, match=words):
        apply(REGISTRY["rnn"], *arrays)


# Learning.


def test_truncated_backpropagation_stops_at_a_detached_state():
    layer = make("LSTM", 3, 4)
    x = gb.tensor(numbers(6, 2, 3), requires_grad=True)
    _, state = layer(x[:3])
    cut = tuple(s.detach() for s in state)
    y, _ = layer(x[3:], cut)
    y.sum().backward()
    assert not x.grad.numpy()[:3].any() and x.grad.numpy()[3:].all()
    # The gradient is that of the second piece alone, from a constant state.
    alone = make("LSTM", 3, 4)
    alone(gb.tensor(x.numpy()[3:]), cut)[0].sum().backward()
    for p, q in zip(layer.parameters(), alone.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)
    # With the state's history, the gradient reaches the first steps.
    x.grad = None
    _, state = layer(x[:3])
    layer(x[3:], state)[0].sum().backward()
    assert x.grad.numpy()[:3].all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_it_learns_to_remember_the_first_token(kind):
    rng = np.random.default_rng(0)
    generator = Generator(3)
    embedding = nn.Embedding(4, 8, generator=generator)
    layer = KINDS[kind](8, 24, generator=generator)
    # Block 1 is the gate that keeps the state, in both kinds: at first it is to be open (Jozefowicz
    # et al. 2015).
    layer.bias_ih_l0.array[24:48] = 3.0
    head = nn.Linear(24, 4, generator=generator)
    parameters = [p for m in (embedding, layer, head) for p in m.parameters()]
    optimizer = optim.Adam(parameters, lr=0.02)

    def answer(tokens):
        _, state = layer(embedding(gb.tensor(tokens)))
        return head(parts(state)[0][0])

    for _ in range(150):
        tokens = rng.integers(0, 4, (20, 32))
        loss = F.cross_entropy(answer(tokens), gb.tensor(tokens[0]))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    tokens = rng.integers(0, 4, (20, 200))
    with gb.no_grad():
        found = answer(tokens).numpy().argmax(axis=1)
    assert (found == tokens[0]).mean() > 0.95


def test_copies_casts_and_inference_leave_nothing_behind():
    layer = make("GRU", 3, 4, 2, dropout=0.25).eval()
    twin = copy.deepcopy(layer)
    same(twin(X)[0], layer(X)[0])
    with gb.no_grad():
        y, state = layer(X)
    assert not y.requires_grad and not state.requires_grad
    narrow = layer.to(dtype=np.float32)(X.astype("float32"))[0]
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow.numpy(), twin(X)[0].numpy(), rtol=1e-4, atol=1e-5)
