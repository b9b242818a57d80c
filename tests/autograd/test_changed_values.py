"""Tensors that are written in place, shared, printed or sent elsewhere: nothing goes wrong in
silence."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim, testing
from gpubackprop.autograd.changes import Changes
from gpubackprop.errors import DTypeError, GradientError, ShapeError


def leaf(values):
    return gb.tensor(np.array(values, "float64"), requires_grad=True)


# A value that the derivative reads was changed after it was used.


def step(w, optimizer):
    (w * w).sum().backward()
    optimizer.step()


def fill(w, optimizer):
    w.copy_(np.zeros(w.shape))


def load(w, optimizer):
    holder = nn.Module()
    holder.w = w
    holder.load_state_dict({"w": np.zeros(w.shape)})


def subtract(w, optimizer):
    with gb.no_grad():
        w -= 0.5


def initialise(w, optimizer):
    nn.init.ones_(w)


@pytest.mark.parametrize("change", [step, fill, load, subtract, initialise])
def test_a_derivative_from_a_changed_parameter_is_refused(change):
    w = nn.Parameter([[1.0, 2.0]])
    optimizer = optim.SGD([w], lr=0.1)  # from here on the memory of `w` stays the same
    stale = nn.functional.linear(gb.ones((3, 2)), w).exp().sum()
    change(w, optimizer)
    w.grad = None
    with pytest.raises(GradientError, match=r"linear: .*shape \(1, 2\).* changed in place"):
        stale.backward()
    nn.functional.linear(gb.ones((3, 2)), w).exp().sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 3 * np.exp(w.numpy().sum()) * np.ones((1, 2)), 1e-5)


def test_a_second_pass_after_an_update_is_refused():
    w = nn.Parameter([3.0])
    optimizer = optim.SGD([w], lr=0.1)
    cost = (w * w).sum()
    cost.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(GradientError, match="changed in place"):
        cost.backward(retain_graph=True)
    with pytest.raises(GradientError, match="changed in place"):
        gb.grad(cost, w, create_graph=True)


def test_a_changed_value_that_no_derivative_reads_does_no_harm():
    w = nn.Parameter([3.0, 4.0])
    optimizer = optim.SGD([w], lr=0.5)
    first, second = w.sum(), (w + 1.0).sum()
    first.backward()
    optimizer.step()
    optimizer.zero_grad()
    second.backward()
    np.testing.assert_array_equal(w.grad.numpy(), [1.0, 1.0])


def test_values_that_were_moved_before_the_change_are_still_good():
    w = nn.Parameter([3.0])
    cost = (w * w).sum()
    optimizer = optim.SGD([w], lr=0.5)  # copies `w` into its buffer
    w.grad = gb.ones(1)
    optimizer.step()
    optimizer.zero_grad()
    cost.backward()
    assert w.grad.item() == 6.0


def transposed(w):
    return gb.ones((3, 2)) @ w.T


def indexed(w):
    return w[0].exp() * 2.0 + w[0] ** 2


def reshaped_twice(w):
    return w.reshape(2, 1).T ** 2


def detached(w):
    return w * w.detach()


@pytest.mark.parametrize("change", [step, fill, load, subtract, initialise])
@pytest.mark.parametrize("use", [transposed, indexed, reshaped_twice, detached])
def test_a_derivative_from_a_view_of_a_changed_parameter_is_refused(use, change):
    w = nn.Parameter([[1.0, 2.0]])
    x = leaf(np.ones((1, 2)))
    optimizer = optim.SGD([w], lr=0.1)
    stale = (use(w) * x.sum()).exp().sum() if use is not transposed else (x @ w.T).sum()
    change(w, optimizer)
    with pytest.raises(GradientError, match=r"in place, with the tensor of shape \(1, 2\)"):
        stale.backward()


@pytest.mark.parametrize("change", [fill, load, subtract, initialise])
def test_a_derivative_that_reads_a_changed_frozen_parameter_is_refused(change):
    w = nn.Parameter([[1.0, 2.0]], requires_grad=False)
    x = leaf(np.ones((3, 2)))
    stale = nn.functional.linear(x, w).sum()
    change(w, None)
    with pytest.raises(GradientError, match=r"linear: .*\(1, 2\) was changed in place"):
        stale.backward()
    nn.functional.linear(x, w).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(w.numpy(), (3, 2)))


def test_a_window_on_a_frozen_parameter_is_seen():
    w = nn.Parameter(np.ones((1, 4, 2)), requires_grad=False)
    x = leaf(np.ones((1, 3, 2, 2)))
    seen = gb.autograd.apply(
        gb.autograd.REGISTRY["windows"], w, kernel=(2,), stride=(1,), dilation=(1,)
    )
    stale = (x * seen).sum()
    w.copy_(np.zeros(w.shape))
    with pytest.raises(GradientError, match=r"multiply: .*shape \(1, 4, 2\) that holds it"):
        stale.backward()


def test_a_neighbour_in_memory_may_change():
    w, v = nn.Parameter([3.0, 1.0]), nn.Parameter([2.0])
    optimizer = optim.SGD([w, v], lr=0.1)  # both lie in one buffer now
    cost = (w * w).sum()
    v.copy_([5.0])
    cost.backward()
    np.testing.assert_array_equal(w.grad.numpy(), [6.0, 2.0])
    assert optimizer is not None


def test_averages_that_move_between_evaluation_and_its_derivative():
    layer = nn.BatchNorm1d(2).eval()
    x = leaf(np.ones((3, 2)))
    stale = (layer(x) ** 2).sum()
    layer.train()(gb.ones((3, 2)))
    with pytest.raises(GradientError, match="changed in place"):
        stale.backward()
    layer(x).sum().backward()
    layer(layer(x)).sum().backward()


@pytest.mark.parametrize(
    "place", [p for p in testing.backends() if p.backend], ids=lambda p: p.name
)
def test_changes_are_seen_on_every_device(place):
    w = nn.Parameter(np.ones((1, 2)), requires_grad=False, device=place.backend)
    x = gb.tensor(np.ones((3, 2)), device=place.backend).requires_grad_()
    stale = (x @ w.T).sum()
    w.copy_(np.zeros(w.shape))
    with pytest.raises(GradientError, match="matmul: .* changed in place"):
        stale.backward(gb.ones((), dtype=np.float64, device=place.backend))


def test_training_looks_for_no_changes(monkeypatch):
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(Changes, "by_owner", lambda self: pytest.fail("it looked"))
    for _ in range(3):
        optimizer.zero_grad()
        model(gb.ones((3, 2))).sum().backward()
        optimizer.step()


def test_tensors_that_are_gone_are_forgotten():
    changes = Changes()
    w = nn.Parameter([1.0])
    changes.note(w)
    assert len(changes._tensors) == 1
    del w
    assert len(changes._tensors) == 0


# Augmented assignment.


def test_the_textbook_update_by_hand_trains():
    model = nn.Linear(2, 1)
    before = [p.numpy().copy() for p in model.parameters()]
    model(gb.ones((3, 2))).sum().backward()
    with gb.no_grad():
        for p in model.parameters():
            p -= 0.5 * p.grad
        model.weight *= 2
    np.testing.assert_allclose(model.weight.numpy(), 2 * (before[0] - 1.5), 1e-5)
    np.testing.assert_allclose(model.bias.numpy(), before[1] - 1.5, 1e-5)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


def test_all_four_assignments_write_a_leaf():
    w = same = leaf([8.0, 2.0])
    with gb.no_grad():
        w += 2.0
        w -= np.array([1.0, 0.0])
        w *= gb.tensor([2.0, 3.0])
        w /= 2
    assert w is same
    np.testing.assert_array_equal(w.numpy(), [9.0, 6.0])


def test_a_leaf_is_not_written_while_operations_are_recorded():
    w = leaf([1.0])
    with pytest.raises(GradientError, match=r"\+=: .*no_grad\(\)"):
        w += 1.0
    assert w.item() == 1.0


def test_a_leaf_keeps_its_shape():
    w = leaf([1.0, 2.0])
    with gb.no_grad(), pytest.raises(ShapeError, match=r"-=: .*\(3, 2\).*\(2,\)"):
        w -= gb.ones((3, 2))


def test_a_frozen_parameter_is_written_too():
    average = nn.Parameter([4.0], requires_grad=False)
    kept = average
    average *= 0.5
    assert average is kept and kept.item() == 2.0


def test_other_tensors_are_rebound_and_keep_their_history():
    x = leaf([3.0])
    y = first = x * x
    y += x
    y *= 2.0
    assert first.item() == 9.0
    y.backward()
    assert x.grad.item() == 14.0
    total = gb.zeros(())
    total += y.detach().sum()
    assert total.item() == 24.0


# Gradients own their memory.


def test_results_of_grad_can_be_written_one_by_one():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    x.grad, y.grad = gb.grad((x + y).sum(), [x, y])
    x.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 2.0])
    np.testing.assert_array_equal(y.grad.numpy(), [1.0, 1.0])
    optim.clip_grad_value_([x], 0.5)
    np.testing.assert_array_equal(x.grad.numpy(), [0.5, 0.5])


def test_the_users_cotangent_is_no_result():
    x, given = leaf([1.0]), np.array([2.0])
    (g,) = gb.grad(x.copy(), x, given)
    g.array[...] = 7.0
    assert given[0] == 2.0


def test_gradients_that_can_be_differentiated_do_not_share_memory():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    ((x + y) ** 2).sum().backward(create_graph=True)
    optim.clip_grad_norm_([x, y], 1.0)
    norm = np.sqrt((x.grad.numpy() ** 2).sum() + (y.grad.numpy() ** 2).sum())
    assert norm == pytest.approx(1.0, 1e-5)


# Integers.


def test_a_cast_to_integers_ends_the_history():
    x = leaf([1.5, 2.5])
    whole = (x * 2).astype(np.int64)
    assert whole.is_leaf and whole.node is None and not whole.requires_grad
    assert whole.to("cpu") is whole
    np.testing.assert_array_equal(copy.deepcopy(whole).numpy(), [3, 5])


def test_an_integer_leaf_never_gets_a_truncated_gradient():
    n = gb.tensor([1, 2])
    n.requires_grad = True  # past requires_grad_(), which refuses
    with pytest.raises(DTypeError, match="int64 has no derivatives"):
        (n * 0.5).sum().backward()


# What Python asks of an object.


def test_the_truth_of_many_elements_is_told_in_words():
    with pytest.raises(ShapeError, match=r"shape \(3,\).*any\(\).*all\(\)"):
        if gb.zeros(3) > 0:
            raise AssertionError
    assert gb.ones((1, 1)) and not gb.zeros(())


def test_a_single_element_formats_as_a_number():
    assert f"{leaf([2.0]).sum():.3f} {gb.tensor(7):>3d}" == "2.000   7"
    assert f"{gb.zeros(2)}" == str(gb.zeros(2))
    with pytest.raises(ShapeError, match="2 elements"):
        format(gb.zeros(2), ".3f")


def test_tensors_and_networks_travel_between_processes():
    x = leaf([1.0, 2.0])
    twin = pickle.loads(pickle.dumps(x))
    assert twin.requires_grad and twin.dtype == x.dtype and twin.backend is x.backend
    with pytest.raises(GradientError, match="only a leaf"):
        pickle.dumps(x * 2)
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Dropout(0.5), head)
    optim.SGD(model.parameters(), lr=0.1)
    model = pickle.loads(pickle.dumps(model.eval()))
    assert model[0].weight is model[2].weight and not model[1].training
    assert isinstance(model[0].weight, nn.Parameter)
    np.testing.assert_array_equal(model[0].weight.numpy(), embedding.weight.numpy())


def test_a_shallow_copy_of_a_module_has_a_registry_of_its_own():
    model = nn.Linear(2, 2)
    twin = copy.copy(model)
    twin.extra = nn.Linear(1, 1)
    assert len(list(model.parameters())) == 2 and len(list(twin.parameters())) == 4
    assert twin.weight is model.weight


def test_derivatives_of_nothing_are_refused():
    with pytest.raises(GradientError, match="no outputs"):
        gb.grad([], [leaf([1.0])])
