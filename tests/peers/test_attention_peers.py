"""Attention and transformers beside PyTorch: values, gradients, state dicts."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn, testing  # noqa: E402
from gpubackprop.nn import functional as F  # noqa: E402, N812

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
]
RNG = np.random.default_rng(5)


def draw(*shape):
    return RNG.standard_normal(shape)


def close(what, ours, theirs, dtype=np.float64, length=1):
    found, expected = ours.numpy(), theirs.detach().numpy()
    relative = 1e-10 if dtype == np.float64 else testing.tolerance(dtype, length)
    testing.require_close(what, found, expected, relative)


def pair(arrays, dtype):
    ours = [gb.tensor(x.astype(dtype), requires_grad=True) for x in arrays]
    return ours, [torch.tensor(x.astype(dtype), requires_grad=True) for x in arrays]


def both_backward(y, z):
    weights = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    (y * weights).sum().backward()
    (z * torch.tensor(weights)).sum().backward()


# Scaled dot products.

SHAPES = {
    "4 axes": ((2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 2)),
    "one head": ((5, 3), (6, 3), (6, 4)),
    "no batch": ((4, 5, 3), (4, 6, 3), (4, 6, 3)),
    "5 axes": ((2, 1, 3, 5, 2), (2, 1, 3, 6, 2), (2, 1, 3, 6, 2)),
    "repeated": ((2, 3, 5, 2), (1, 3, 6, 2), (2, 1, 6, 2)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, "bool", "float"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_scaled_dot_product_attention(shapes, options, dtype):
    ours, theirs = pair([draw(*s) for s in shapes], dtype)
    extra, extra_theirs = {}, {}
    if options == "bool":
        mask = RNG.random((5, 6)) < 0.5
        mask[2] = False  # a query that may attend to nothing
        extra, extra_theirs = {"attn_mask": gb.tensor(mask)}, {"attn_mask": torch.tensor(mask)}
    elif options == "float":
        full = np.broadcast_shapes(*[s[:-2] for s in shapes]) + (5, 6)
        a, b = pair([draw(*full)], dtype)
        extra, extra_theirs = {"attn_mask": a[0]}, {"attn_mask": b[0]}
        ours, theirs = ours + a, theirs + b
    else:
        extra = extra_theirs = options
    y = F.scaled_dot_product_attention(*ours[:3], **extra)
    z = torch.nn.functional.scaled_dot_product_attention(*theirs[:3], **extra_theirs)
    close("result", y, z, dtype, 64)
    both_backward(y, z)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(f"gradient {i}", a.grad, b.grad, dtype, 256)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_shared_heads(heads, is_causal):
    shapes = ((2, 4, 5, 3), (2, heads, 6, 3), (2, heads, 6, 2))
    ours, theirs = pair([draw(*s) for s in shapes], np.float64)
    options = {"is_causal": is_causal, "enable_gqa": True}
    y = F.scaled_dot_product_attention(*ours, **options)
    z = torch.nn.functional.scaled_dot_product_attention(*theirs, **options)
    close("result", y, z)
    both_backward(y, z)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(f"gradient {i}", a.grad, b.grad)


# Modules.


def twins(make, dtype=np.float64):
    """The module in both libraries, with the same values away from where layers begin."""
    ours, theirs = make(nn).to(dtype=dtype), make(torch.nn).to(getattr(torch, np.dtype(dtype).name))
    state = theirs.state_dict()
    for value in state.values():
        value += 0.1 * torch.randn(value.shape, dtype=value.dtype)
    assert list(ours.state_dict()) == list(state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    ours.load_state_dict(state)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    return ours, theirs


def compare(ours, theirs, arrays, results, dtype=np.float64):
    """Values, gradients of inputs and of parameters."""
    a, b = arrays
    for y, z in zip(*results, strict=True):
        close("result", y, z, dtype, 256)
    both_backward(results[0][0], results[1][0])
    for i, (x, t) in enumerate(zip(a, b, strict=True)):
        close(f"gradient of input {i}", x.grad, t.grad, dtype, 4096)
    for (name, p), t in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if t.grad is not None:
            close(f"gradient of {name}", p.grad, t.grad, dtype, 4096)


LAYOUTS = {
    "self": ((5, 2, 8), None, None),
    "batch first": ((2, 5, 8), None, None),
    "unbatched": ((5, 8), (6, 8), (6, 8)),
    "cross": ((5, 2, 8), (6, 2, 8), (6, 2, 8)),
    "sizes": ((5, 2, 8), (6, 2, 3), (6, 2, 7)),
}


@pytest.mark.parametrize("weights", [True, False, "each"])
@pytest.mark.parametrize("masks", ["none", "bool", "float", "heads", "padding", "both", "mixed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_multihead_attention(layout, masks, weights):
    shapes = LAYOUTS[layout]
    options = {"batch_first": layout == "batch first"}
    if layout == "sizes":
        options |= {"kdim": 3, "vdim": 7, "bias": masks != "none"}
    ours, theirs = twins(lambda m: m.MultiheadAttention(8, 4, **options))
    arrays = [draw(*s) for s in shapes if s]
    a, b = pair(arrays, np.float64)
    queries, keys = 5, shapes[1][0] if shapes[1] else 5
    batch = 2 if len(shapes[0]) == 3 else 1
    given = {}
    kinds = {"bool": "b", "float": "f", "heads": "h", "both": "b", "mixed": "f"}
    if masks in kinds:
        shape = (4 * batch, queries, keys) if masks == "heads" else (queries, keys)
        mask = draw(*shape) > 0.3
        mask[..., 0] = False  # some key may always be attended to
        given["attn_mask"] = draw(*shape) if kinds[masks] == "f" else mask
    if masks in ("padding", "both", "mixed"):
        padding = np.zeros((batch, keys), bool)
        padding[-1, 3:] = True
        given["key_padding_mask"] = padding if len(shapes[0]) == 3 else padding[0]
    call = {"need_weights": weights is not False, "average_attn_weights": weights is True}
    x = a * 3 if len(a) == 1 else a
    t = b * 3 if len(b) == 1 else b
    y = ours(*x, **{k: gb.tensor(v) for k, v in given.items()}, **call)
    z = theirs(*t, **{k: torch.tensor(v) for k, v in given.items()}, **call)
    assert (y[1] is None) == (z[1] is None)
    results = [[r for r in pair_ if r is not None] for pair_ in (y, z)]
    compare(ours, theirs, (a, b), results)


@pytest.mark.parametrize("extra", [{"add_bias_kv": True}, {"add_zero_attn": True}, "both"])
def test_multihead_attention_with_added_keys(extra):
    options = {"add_bias_kv": True, "add_zero_attn": True} if extra == "both" else extra
    ours, theirs = twins(lambda m: m.MultiheadAttention(8, 2, **options))
    a, b = pair([draw(5, 2, 8), draw(6, 2, 8)], np.float64)
    mask = draw(5, 6) > 0
    y = ours(a[0], a[1], a[1], attn_mask=gb.tensor(mask))
    z = theirs(b[0], b[1], b[1], attn_mask=torch.tensor(mask))
    compare(ours, theirs, (a, b), (y, z))


def test_initial_values_of_multihead_attention():
    ours, theirs = nn.MultiheadAttention(64, 4), torch.nn.MultiheadAttention(64, 4)
    for (name, p), t in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.numpy().std() == pytest.approx(t.detach().numpy().std(), rel=0.1), name


CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask
LAYERS = {
    "defaults": {},
    "norm first": {"norm_first": True},
    "gelu": {"activation": "gelu", "layer_norm_eps": 1e-3},
    "batch first, no bias": {"batch_first": True, "bias": False},
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_encoder_layer(options, masked, dtype):
    ours, theirs = twins(
        lambda m: m.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **options), dtype
    )
    a, b = pair([draw(5, 5, 8)], dtype)
    given, also = {}, {}
    if masked:
        padding = np.zeros((5, 5), bool)
        padding[1:, 3:] = True
        triangle = np.triu(np.ones((5, 5), bool), 1)
        given = {"src_mask": gb.tensor(triangle), "src_key_padding_mask": gb.tensor(padding)}
        also = {
            "src_mask": torch.tensor(triangle),
            "src_key_padding_mask": torch.tensor(padding),
        }
    results = [[ours(*a, **given)], [theirs(*b, **also)]]
    compare(ours, theirs, (a, b), results, dtype)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_decoder_layer(options):
    ours, theirs = twins(lambda m: m.TransformerDecoderLayer(8, 4, 12, dropout=0.0, **options))
    first = options.get("batch_first")
    a, b = pair([draw(2, 5, 8), draw(2, 6, 8)] if first else [draw(5, 2, 8), draw(6, 2, 8)], "f8")
    memory_mask = draw(5, 6)
    y = ours(*a, tgt_is_causal=True, memory_mask=gb.tensor(memory_mask))
    z = theirs(
        *b,
        tgt_mask=CAUSAL(5, dtype=torch.float64),
        tgt_is_causal=True,
        memory_mask=torch.tensor(memory_mask),
    )
    compare(ours, theirs, (a, b), ([y], [z]))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer(norm_first, batch_first):
    ours, theirs = twins(
        lambda m: m.Transformer(
            8, 2, 2, 2, 16, dropout=0.0, norm_first=norm_first, batch_first=batch_first
        )
    )
    shapes = [(2, 6, 8), (2, 5, 8)] if batch_first else [(6, 2, 8), (5, 2, 8)]
    a, b = pair([draw(*s) for s in shapes], np.float64)
    padding = np.zeros((2, 6), bool)
    padding[0, 4:] = True
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=np.float64)
    np.testing.assert_array_equal(mask.numpy(), CAUSAL(5).numpy())
    y = ours(
        *a,
        tgt_mask=mask,
        src_key_padding_mask=gb.tensor(padding),
        memory_key_padding_mask=gb.tensor(padding),
    )
    z = theirs(
        *b,
        tgt_mask=CAUSAL(5, dtype=torch.float64),
        src_key_padding_mask=torch.tensor(padding),
        memory_key_padding_mask=torch.tensor(padding),
    )
    compare(ours, theirs, (a, b), ([y], [z]))


def test_stacks_with_norms():
    def make(m):
        layer = m.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        return m.TransformerEncoder(layer, 3, m.LayerNorm(8))

    ours, theirs = twins(make)
    a, b = pair([draw(5, 2, 8)], np.float64)
    mask = CAUSAL(5, dtype=torch.float64)
    y, z = ours(*a, is_causal=True), theirs(*b, mask=mask, is_causal=True)
    compare(ours, theirs, (a, b), ([y], [z]))


# A language model out of PyTorch's parts.


def torch_logits(state, tokens, heads):
    """nanoGPT's forward pass over the parameters of a TransformerLM (pre-norm, exact GELU)."""
    f = torch.nn.functional

    def norm(x, name):
        return f.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x, name):
        return f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    n, steps = tokens.shape
    x = f.embedding(tokens, state["embedding.weight"]) + state["positions.weight"][:steps]
    layers = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    for i in range(layers):
        at = f"blocks.{i}"
        y = norm(x, f"{at}.norm1")
        qkv = f.linear(
            y, state[f"{at}.attention.in_proj_weight"], state[f"{at}.attention.in_proj_bias"]
        )
        q, k, v = (z.reshape(n, steps, heads, -1).transpose(1, 2) for z in qkv.chunk(3, dim=-1))
        y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(n, steps, -1), f"{at}.attention.out_proj")
        y = f.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.expand"))
        x = x + linear(y, f"{at}.contract")
    return f.linear(norm(x, "norm"), state["head.weight"])


def test_language_model():
    gb.manual_seed(3)
    model = nn.TransformerLM(13, 16, 2, 4, 12, dtype=np.float64)
    tokens = RNG.integers(0, 13, (3, 9))
    leaves = {n: torch.tensor(p.numpy(), requires_grad=True) for n, p in model.named_parameters()}
    state = {**leaves, "head.weight": leaves["embedding.weight"]}
    y, z = model(gb.tensor(tokens)), torch_logits(state, torch.tensor(tokens), 4)
    close("logits", y, z)
    target = RNG.integers(0, 13, 27)
    F.cross_entropy(y.reshape(27, 13), gb.tensor(target)).backward()
    torch.nn.functional.cross_entropy(z.reshape(27, 13), torch.tensor(target)).backward()
    for name, p in model.named_parameters():
        close(f"gradient of {name}", p.grad, leaves[name].grad)
    assert math.isclose(0.02 / 2, float(model.blocks[0].contract.weight.numpy().std()), rel_tol=0.2)
