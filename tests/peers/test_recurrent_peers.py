"""Recurrent layers beside PyTorch's: results, states, and gradients of input, states and
parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.testing.closeness import magnitude, require_close, tolerance

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
rnn_utils = torch.nn.utils.rnn

pytestmark = pytest.mark.peers

DOUBLE = 1e-10
STEPS, BATCH, FEATURES, HIDDEN = 5, 4, 3, 6
LENGTHS = np.array([3, 5, 1, 4])

KINDS = {
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}


def pair(name, dtype, *arguments, **options):
    """Our module and PyTorch's, with the same parameters."""
    ours = getattr(nn, name)(*arguments, **options, dtype=dtype)
    theirs = getattr(torch.nn, name)(*arguments, **options)
    theirs = theirs.to(torch.float64 if dtype == "float64" else torch.float32)
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return ours, theirs


def numbers(dtype, seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def flat(*values):
    """Tensors inside nested tuples."""
    for v in values:
        if isinstance(v, tuple):
            yield from flat(*v)
        elif v is not None:
            yield v


def compare(about, dtype, ours, theirs):
    """`ours` and `theirs`: results and leaves (inputs, states, parameters) of each."""
    relative = DOUBLE if dtype == "float64" else tolerance(dtype, STEPS * BATCH * HIDDEN)
    (found, leaves), (want, their_leaves) = ours, theirs
    found, want = list(flat(*found)), list(flat(*want))
    scale = magnitude([w.detach().numpy() for w in want])
    for k, (f, w) in enumerate(zip(found, want, strict=True)):
        require_close(f"{about}: result {k}", f.numpy(), w.detach().numpy(), relative, scale)
    weights = [numbers(dtype, 50 + k, *f.shape) for k, f in enumerate(found)]
    cost, their_cost = gb.tensor(np.zeros((), dtype)), 0.0
    for f, w, factor in zip(found, want, weights, strict=True):
        cost = cost + (f * gb.tensor(factor)).sum()
        their_cost = their_cost + (w * torch.tensor(factor)).sum()
    cost.backward()
    their_cost.backward()
    for name, (f, w) in enumerate(zip(leaves, their_leaves, strict=True)):
        want_grad = w.grad.numpy()
        top = magnitude([want_grad])
        require_close(f"{about}: gradient {name}", f.grad.numpy(), want_grad, relative, top)


def run(kind, dtype, layers, both, batch_first, lengths, given):
    name, options = KINDS[kind]
    ours, theirs = pair(
        *(name, dtype, FEATURES, HIDDEN, layers),
        **options,
        bidirectional=both,
        batch_first=batch_first,
    )
    shape = (BATCH, STEPS, FEATURES) if batch_first else (STEPS, BATCH, FEATURES)
    x = numbers(dtype, 1, *shape)
    rows, count = layers * (2 if both else 1), 2 if name == "LSTM" else 1
    states = [numbers(dtype, 2 + k, rows, BATCH, HIDDEN) for k in range(count if given else 0)]

    leaf = gb.tensor(x, requires_grad=True)
    first = [gb.tensor(s, requires_grad=True) for s in states]
    hx = None if not first else tuple(first) if count > 1 else first[0]
    found = ours(leaf, hx, LENGTHS if lengths else None)

    their_leaf = torch.tensor(x, requires_grad=True)
    their_first = [torch.tensor(s, requires_grad=True) for s in states]
    their_hx = None if not states else tuple(their_first) if count > 1 else their_first[0]
    if lengths:
        packed = rnn_utils.pack_padded_sequence(
            their_leaf, torch.tensor(LENGTHS), batch_first=batch_first, enforce_sorted=False
        )
        y, last = theirs(packed, their_hx)
        y, _ = rnn_utils.pad_packed_sequence(y, batch_first=batch_first, total_length=STEPS)
        want = (y, last)
    else:
        want = theirs(their_leaf, their_hx)
    return (
        (found, [leaf, *first, *ours.parameters()]),
        (want, [their_leaf, *their_first, *theirs.parameters()]),
    )


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("both", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, layers, both, lengths):
    ways = itertools.product((False, True), (False, True), ("float64", "float32"))
    for batch_first, given, dtype in ways:
        about = f"{kind} batch_first={batch_first} given={given} {dtype}"
        compare(about, dtype, *run(kind, dtype, layers, both, batch_first, lengths, given))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_and_no_bias(kind, dtype):
    name, options = KINDS[kind]
    ours, theirs = pair(name, dtype, FEATURES, HIDDEN, 2, **options, bias=False, bidirectional=True)
    x = numbers(dtype, 1, STEPS, FEATURES)
    leaf, their_leaf = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    compare(
        kind,
        dtype,
        (ours(leaf), [leaf, *ours.parameters()]),
        (theirs(their_leaf), [their_leaf, *theirs.parameters()]),
    )


@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_cells(kind, dtype, given, batch):
    name, options = KINDS[kind]
    ours, theirs = pair(f"{name}Cell", dtype, FEATURES, HIDDEN, **options)
    lead = () if batch is None else (batch,)
    x = numbers(dtype, 1, *lead, FEATURES)
    count = 2 if name == "LSTM" else 1
    states = [numbers(dtype, 2 + k, *lead, HIDDEN) for k in range(count if given else 0)]
    leaf, their_leaf = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    first = [gb.tensor(s, requires_grad=True) for s in states]
    their_first = [torch.tensor(s, requires_grad=True) for s in states]
    if not given:
        found, want = ours(leaf), theirs(their_leaf)
    elif count > 1:
        found, want = ours(leaf, tuple(first)), theirs(their_leaf, tuple(their_first))
    else:
        found, want = ours(leaf, first[0]), theirs(their_leaf, their_first[0])
    compare(
        kind,
        dtype,
        ((found,), [leaf, *first, *ours.parameters()]),
        ((want,), [their_leaf, *their_first, *theirs.parameters()]),
    )


def test_initial_values_are_spread_as_theirs():
    ours, theirs = nn.LSTM(30, 100), torch.nn.LSTM(30, 100)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        values, other = p.numpy(), q.detach().numpy()
        assert values.shape == other.shape
        assert abs(values).max() <= 0.1 and abs(other).max() <= 0.1
        assert values.std() == pytest.approx(other.std(), rel=0.2)
