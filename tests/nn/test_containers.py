"""Sequential, ModuleList, ModuleDict and the summary table."""

from collections import OrderedDict

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.errors import ConfigError, DTypeError, ShapeError


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_sequential_applies_its_modules_in_order():
    s = net()
    x = gb.tensor(np.ones((5, 4), np.float32))
    np.testing.assert_array_equal(s(x).numpy(), s[2](s[1](s[0](x))).numpy())
    assert nn.Sequential()(x) is x


def test_sequential_takes_named_modules():
    s = nn.Sequential(OrderedDict(b=nn.Linear(4, 3), a=nn.Tanh()))
    assert list(s.state_dict()) == ["b.weight", "b.bias"]
    assert s.b is s[0] and s.a is s[-1]


def test_it_has_the_manners_of_a_list():
    s = net()
    first, middle, last = s
    assert len(s) == 3 and s[0] is first and s[-1] is last
    part = s[1:]
    assert isinstance(part, nn.Sequential) and list(part) == [middle, last]
    assert part[1].weight is last.weight
    assert s.append(nn.ReLU()) is s and isinstance(s[3], nn.ReLU)
    s.extend([nn.Identity()]).insert(0, nn.Flatten())
    assert [type(m).__name__ for m in s] == [
        "Flatten",
        "Linear",
        "Tanh",
        "Linear",
        "ReLU",
        "Identity",
    ]
    assert list(s.state_dict()) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    del s[0]
    assert list(s.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    s[1] = nn.Sigmoid()
    assert [type(m).__name__ for m in s[:2]] == ["Linear", "Sigmoid"]


def test_appending_after_a_slice_finds_a_free_name():
    part = net()[1:]
    part.append(nn.ReLU())
    assert [type(m).__name__ for m in part] == ["Tanh", "Linear", "ReLU"]


def test_wrong_members_and_places_are_errors():
    with pytest.raises(DTypeError, match="Sequential: .* is a function, not a Module"):
        nn.Sequential(nn.Linear(2, 2), gb.exp)
    with pytest.raises(DTypeError, match="ModuleList"):
        nn.ModuleList([3])
    with pytest.raises(ShapeError, match="index 3 is out of range for 3"):
        net()[3]


def test_a_module_list_registers_but_is_not_called():
    layers = nn.ModuleList([nn.Linear(2, 2)])
    layers.append(nn.Linear(2, 3))
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(NotImplementedError, match="ModuleList"):
        layers(1)


def test_a_module_dict():
    d = nn.ModuleDict({"relu": nn.ReLU(), "line": nn.Linear(2, 2)})
    d["more"] = nn.Identity()
    assert d.keys() == ["relu", "line", "more"] == list(d)
    assert len(d) == 3 and "line" in d and "training" not in d
    assert dict(d.items())["line"] is d["line"] is d.values()[1]
    assert list(d.state_dict()) == ["line.weight", "line.bias"]
    with pytest.raises(ConfigError, match="did you mean 'line'"):
        d["lime"]
    del d["relu"]
    assert d.keys() == ["line", "more"]
    with pytest.raises(ConfigError, match="already"):
        d["forward"] = nn.ReLU()


def test_the_summary_shows_shapes_and_counts():
    s = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    s[3].bias.requires_grad_(False)
    before = s.random_state()
    rows = [line.split("  ") for line in s.summary((7, 2, 3)).splitlines()]
    cells = [[c.strip() for c in row if c.strip()] for row in rows]
    assert ["(root)", "Sequential", "(7, 2)"] in cells
    assert ["1", "Linear", "(7, 5)", "35"] in cells
    assert ["2", "Dropout", "(7, 5)", "0"] in cells
    assert cells[-1] == ["parameters: 47 (45 trainable), 188 bytes"]
    assert s.training and s[2].training and s.random_state() == before
    assert "forward" not in s[1].__dict__
    assert "(7, 5)" not in s.summary()


def test_a_summary_that_fails_leaves_the_network_as_it_was():
    s = net().train()
    with pytest.raises(ShapeError):
        s.summary((7, 3))
    assert s.training and all("forward" not in m.__dict__ for m in s.modules())


def test_the_summary_of_an_embedding_and_of_tied_weights():
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    tied[1].weight = tied[0].weight
    text = tied.summary((2, 3), dtype=np.int64)
    assert "(2, 3, 9)" in text and "parameters: 36 (36 trainable), 144 bytes" in text
