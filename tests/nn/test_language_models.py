"""Language models: the cache against the whole text, generation, tied weights, learning."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.nn.generation import _choose

RNG = np.random.default_rng(8)
TOKENS = RNG.integers(0, 11, (2, 9))


def transformer(**options):
    given = {"dtype": np.float64, "generator": Generator(5)} | options
    model = nn.TransformerLM(11, 16, 2, 4, 9, **given)
    for p in model.parameters():  # away from the small first values, so that all of it counts
        p.copy_(p.numpy() + 0.2 * RNG.standard_normal(p.shape))
    return model


def recurrent(kind="lstm", **options):
    given = {"dtype": np.float64, "generator": Generator(6)} | options
    return nn.RecurrentLM(11, 12, 12, 2, kind, **given)


MODELS = {
    "learned": lambda: transformer(),
    "rotary": lambda: transformer(positions="rotary", kv_heads=2),
    "sinusoidal": lambda: transformer(positions="sinusoidal", bias=False, tie_weights=False),
    "lstm": lambda: recurrent(),
    "gru": lambda: recurrent("gru", tie_weights=True),
    "rnn": lambda: recurrent("rnn"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_steps_give_the_logits_of_the_whole_text(make):
    model = make()
    whole = model(gb.tensor(TOKENS)).numpy()
    assert whole.shape == (2, 9, 11)
    state, parts = None, []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        logits, state = model.step(gb.tensor(TOKENS[:, start:stop]), state)
        parts.append(logits.numpy())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_no_position_sees_what_comes(make):
    model, changed = make(), TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    y, z = (model(gb.tensor(t)).numpy() for t in (TOKENS, changed))
    np.testing.assert_array_equal(y[:, :5], z[:, :5])
    assert (y[:, 5:] != z[:, 5:]).any(axis=-1).all()


# Generation.


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_greedy_text_is_the_most_probable_token_each_time(make):
    model = make()
    text = nn.generate(model, gb.tensor(TOKENS[:, :3]), 6, temperature=0).numpy()
    assert text.shape == (2, 9) and (text[:, :3] == TOKENS[:, :3]).all()
    logits = model(gb.tensor(text)).numpy()
    np.testing.assert_array_equal(text[:, 3:], logits[:, 2:-1].argmax(axis=-1))


def test_the_same_seed_gives_the_same_text():
    model, prompt = transformer(), gb.tensor(TOKENS[:, :2])

    def text(seed, **options):
        return nn.generate(model, prompt, 7, generator=Generator(seed), **options).numpy()

    np.testing.assert_array_equal(text(1), text(1))
    assert (text(1) != text(2)).any()
    greedy = nn.generate(model, prompt, 7, temperature=0).numpy()
    np.testing.assert_array_equal(text(3, top_k=1), greedy)
    np.testing.assert_array_equal(text(3, top_p=1e-9), greedy)
    np.testing.assert_array_equal(text(3, temperature=1e-6), greedy)


def test_a_text_goes_on_beyond_the_context():
    model, prompt = transformer(), gb.tensor(TOKENS)
    text = nn.generate(model, prompt, 12, temperature=0).numpy()
    assert text.shape == (2, 21)
    # The context is full: it begins anew with its second half.
    part = text[:, 9 + 1 - 4 : 9 + 1]
    again = model(gb.tensor(part)).numpy()[:, -1].argmax(axis=-1)
    np.testing.assert_array_equal(text[:, 10], again)
    long = np.concatenate([TOKENS, TOKENS], axis=1)
    longer = nn.generate(model, gb.tensor(long), 1, temperature=0).numpy()
    np.testing.assert_array_equal(longer[:, -1], text[:, 9])


def test_generation_leaves_the_modes_and_makes_no_tape():
    model = transformer(dropout=0.5)
    model.blocks[1].eval()
    text = nn.generate(model, gb.tensor(TOKENS[:, :2]), 3, temperature=0)
    np.testing.assert_array_equal(
        text.numpy(), nn.generate(model, gb.tensor(TOKENS[:, :2]), 3, temperature=0).numpy()
    )
    assert model.training and not model.blocks[1].training and model.blocks[0].dropout.training
    assert all(p.grad is None for p in model.parameters())


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]])).repeat(20000, axis=0)

    def shares(temperature=1.0, top_k=None, top_p=None):
        chosen = _choose(logits, temperature, top_k, top_p, Generator(9))
        return np.bincount(chosen, minlength=4) / len(chosen)

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(shares(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.015)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(shares(0.5), squares / squares.sum(), atol=0.015)
    far = np.array([[1000.0, -1000.0, 0.0, 0.0]])
    assert _choose(far, 1.0, None, None, Generator(0)).tolist() == [0]


# Tied weights.


def test_a_tied_weight_is_one_parameter():
    model = nn.TransformerLM(11, 8, 1, 2, 6, generator=Generator(1))
    assert model.head.weight is model.embedding.weight
    names = [n for n, _ in model.named_parameters()]
    assert "embedding.weight" in names and "head.weight" not in names
    state = model.state_dict()
    np.testing.assert_array_equal(state["embedding.weight"], state["head.weight"])
    other = nn.TransformerLM(11, 8, 1, 2, 6, generator=Generator(2))
    other.load_state_dict(state)
    assert other.head.weight is other.embedding.weight
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    assert sum(p.size for p in model.parameters()) == sum(
        p.size for p in optimizer.arena.parameters
    )
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight is not model.head.weight
    model.to(dtype=np.float64)
    assert model.head.weight is model.embedding.weight and model.head.weight.dtype == np.float64


@pytest.mark.parametrize("in_arena", [False, True])
def test_the_gradient_of_a_tied_weight_is_the_sum_of_both_uses(in_arena):
    tied = transformer()
    apart = transformer(tie_weights=False)
    apart.load_state_dict(tied.state_dict())
    if in_arena:
        optim.SGD(tied.parameters(), lr=0.1)
    for model in (tied, apart):
        y = model(gb.tensor(TOKENS[:, :-1]))
        F.cross_entropy(y.reshape(-1, 11), gb.tensor(TOKENS[:, 1:].reshape(-1))).backward()
    both = apart.embedding.weight.grad.numpy() + apart.head.weight.grad.numpy()
    np.testing.assert_allclose(tied.embedding.weight.grad.numpy(), both, rtol=1e-12, atol=1e-14)


def train(model, optimizer, steps, seed=0):
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(steps):
        start = rng.integers(0, 11, (8, 1))
        text = (start + np.arange(7)) % 11
        y = model(gb.tensor(text[:, :-1]))
        loss = F.cross_entropy(y.reshape(-1, 11), gb.tensor(text[:, 1:].reshape(-1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.item()))
    return losses


SMALL = {
    "transformer": lambda: nn.TransformerLM(11, 16, 1, 2, 6, dropout=0.1, generator=Generator(3)),
    "rotary": lambda: nn.TransformerLM(
        11, 16, 1, 2, 6, positions="rotary", kv_heads=1, generator=Generator(3)
    ),
    "gru": lambda: nn.RecurrentLM(11, 16, 16, 1, "gru", 0.1, True, generator=Generator(3)),
}


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_model_learns_to_count(make):
    model = make()
    losses = train(model, optim.Adam(model.parameters(), lr=1e-2), 120)
    assert losses[-1] < 0.4 < losses[0]


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(make):
    whole = make()
    train(whole, optimizer := optim.Adam(whole.parameters(), lr=1e-2), 3)
    state = (whole.state_dict(), optimizer.state_dict(), whole.random_state())
    train(whole, optimizer, 3, seed=1)
    resumed = make()
    again = optim.Adam(resumed.parameters(), lr=1e-2)
    resumed.load_state_dict(state[0])
    again.load_state_dict(state[1])
    resumed.load_random_state(state[2])
    train(resumed, again, 3, seed=1)
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes(), name


# First values and errors.


def test_first_values_are_gpt_2s():
    model = nn.TransformerLM(50, 64, 8, 4, 16, generator=Generator(2))
    for name, p in model.named_parameters():
        values = p.numpy()
        if p.ndim > 1:
            added = name.endswith(("out_proj.weight", "contract.weight"))
            assert values.std() == pytest.approx(0.02 / (4 if added else 1), rel=0.1), name
        else:
            assert set(values) == {0.0 if "bias" in name else 1.0}, name
    loss = -np.log(1 / 50)
    y = model(gb.tensor(RNG.integers(0, 50, (4, 16))))
    found = F.cross_entropy(y.reshape(-1, 50), gb.tensor(RNG.integers(0, 50, 64)))
    assert float(found.item()) == pytest.approx(loss, rel=0.05)


def tokens(*shape):
    return gb.tensor(np.zeros(shape, np.int64))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nn.TransformerLM(11, 8, 1, 2, 4, positions="learnt"), ConfigError, "learned"),
        (lambda: nn.TransformerLM(11, 8, 1, 3, 4), ConfigError, "num_heads 3"),
        (lambda: nn.TransformerLM(0, 8, 1, 2, 4), ConfigError, "vocabulary"),
        (lambda: nn.TransformerLM(11, 8, 1, 2, 4)(tokens(1, 5)), ShapeError, "context of 4"),
        (lambda: nn.TransformerLM(11, 8, 1, 2, 4)(tokens(5)), ShapeError, r"\(N, T\)"),
        (lambda: nn.RecurrentLM(11, 8, 8, kind="lsmt"), ConfigError, "lstm"),
        (lambda: nn.RecurrentLM(11, 4, 8, tie_weights=True), ConfigError, "tie_weights"),
        (lambda: nn.generate(recurrent(), tokens(1, 0), 1), ShapeError, "at least one token"),
        (lambda: nn.generate(recurrent(), tokens(1, 1), -1), ConfigError, "length"),
        (lambda: nn.generate(nn.Linear(2, 2), tokens(1, 1), 1), ConfigError, "no method step"),
        (lambda: nn.generate(recurrent(), [[1, 2]], 1), DTypeError, "prompt is a list; make a ten"),
        (lambda: nn.generate(recurrent(), tokens(1, 1), 1, temperature=-1), ConfigError, "temp"),
        (lambda: nn.generate(recurrent(), tokens(1, 1), 1, top_k=0), ConfigError, "top_k"),
        (lambda: nn.generate(recurrent(), tokens(1, 1), 1, top_p=1.5), ConfigError, "top_p"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
