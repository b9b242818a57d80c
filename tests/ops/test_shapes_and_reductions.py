"""What the suites over samples cannot know: ties, zeros, duplicates, messages, conventions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.errors import ConfigError, DTypeError, ShapeError


def leaf(values):
    return gb.tensor(np.array(values, np.float64), requires_grad=True)


def gradient(f, *values):
    """Derivatives of the sum of f, by each of its arguments."""
    leaves = [leaf(v) for v in values]
    f(*leaves).sum().backward()
    return [t.grad.numpy() for t in leaves]


class TestReductions:
    @pytest.mark.parametrize("f", [gb.max, gb.min])
    def test_ties_share_the_derivative(self, f):
        x = [[2.0, 5.0, 2.0], [1.0, 1.0, 1.0]]
        expected = {gb.max: [[0, 1, 0], [1 / 3] * 3], gb.min: [[0.5, 0, 0.5], [1 / 3] * 3]}[f]
        np.testing.assert_allclose(gradient(lambda t: f(t, axis=1), x)[0], expected)
        np.testing.assert_allclose(gradient(lambda t: f(t, axis=1, keepdims=True), x)[0], expected)

    def test_a_tie_over_all_axes(self):
        (g,) = gradient(gb.max, [[3.0, 3.0], [0.0, 3.0]])
        np.testing.assert_allclose(g, [[1 / 3, 1 / 3], [0, 1 / 3]])

    def test_nan_wins_a_maximum_without_a_warning_in_the_derivative(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x = leaf([1.0, np.nan])
            y = gb.max(x)
            y.backward()
        assert np.isnan(y.item()) and np.array_equal(x.grad.numpy(), [0, 0])

    @pytest.mark.parametrize("f", [gb.max, gb.min, gb.argmax, gb.argmin, gb.logsumexp])
    def test_nothing_has_no_largest(self, f):
        with pytest.raises(
            ShapeError, match=rf"{f.__name__}: no elements to choose from along axis 0 of x"
        ):
            f(gb.zeros((0, 3)), axis=0)

    def test_nothing_sums_to_zero_and_multiplies_to_one(self):
        assert gb.sum(gb.zeros((0, 3))).item() == 0
        assert gb.prod(gb.zeros((0, 3)), axis=0).tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        ("x", "expected"),
        [
            ([2.0, 3.0, 4.0], [12, 8, 6]),
            ([2.0, 0.0, 4.0], [0, 8, 0]),
            ([0.0, 0.0, 4.0], [0, 0, 0]),
            ([5.0], [1]),
        ],
    )
    def test_derivative_of_a_product_with_zeros(self, x, expected):
        np.testing.assert_array_equal(gradient(gb.prod, x)[0], expected)

    def test_second_derivative_of_a_product_with_a_zero(self):
        x = leaf([2.0, 0.0, 4.0, 3.0, 5.0])
        (slope,) = gb.grad(gb.prod(x), x, create_graph=True)
        (row,) = gb.grad(slope[1], x)  # d2/dx1 dxj is the product of the other three
        np.testing.assert_array_equal(row.numpy(), [60, 0, 30, 40, 24])

    def test_product_over_several_axes(self):
        x = np.arange(1.0, 13.0).reshape(2, 3, 2)
        x[0, 1, 1] = 0
        (g,) = gradient(lambda t: gb.prod(t, axis=(0, 2)), x)
        others = [
            [np.prod(np.delete(x[:, j].ravel(), 2 * i + k)) for k in (0, 1)]
            for i in (0, 1)
            for j in range(3)
        ]
        np.testing.assert_allclose(g, np.reshape(others, (2, 3, 2)))

    def test_variance_takes_ddof(self):
        x = [1.0, 2.0, 4.0, 9.0]
        assert gb.var(leaf(x), ddof=1).item() == pytest.approx(np.var(x, ddof=1))
        assert gb.std(leaf(x), ddof=1).item() == pytest.approx(np.std(x, ddof=1))
        np.testing.assert_allclose(
            gradient(lambda t: gb.var(t, ddof=1), x)[0], 2 * (np.array(x) - 4) / 3
        )

    def test_logsumexp_neither_overflows_nor_makes_nan(self):
        x = [[1000.0, 1000.0], [-np.inf, 3.0], [-np.inf, -np.inf]]
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(
                gb.logsumexp(leaf(x), axis=1).numpy(), [1000 + np.log(2), 3, -np.inf]
            )
            (g,) = gradient(lambda t: gb.logsumexp(t, axis=1), x)
        np.testing.assert_allclose(g, [[0.5, 0.5], [0, 1], [0, 0]], rtol=1e-12)

    def test_running_sum_flattens_without_an_axis(self):
        assert gb.cumsum(gb.tensor([[1, 2], [3, 4]])).tolist() == [1, 3, 6, 10]
        np.testing.assert_array_equal(
            gradient(gb.cumsum, [[1.0, 2.0], [3.0, 4.0]])[0], [[4, 3], [2, 1]]
        )

    def test_the_first_of_equal_elements_is_named(self):
        x = gb.tensor([[1.0, 7.0, 7.0], [0.0, 0.0, 2.0]])
        assert gb.argmax(x, axis=1).tolist() == [1, 2] and gb.argmin(x, axis=1).tolist() == [0, 0]
        assert gb.argmax(x).item() == 1 and gb.argmax(x, axis=0).dtype == np.int64

    def test_a_numpy_integer_names_an_axis(self):
        np.testing.assert_array_equal(
            gradient(lambda t: gb.sum(t, axis=np.int64(0)), [[1.0], [2.0]])[0], [[1], [1]]
        )

    def test_wrong_axis(self):
        with pytest.raises(
            ShapeError, match=r"sum: axis 2 is out of range for 2 axes \(x is float32\[3, 5\]\)"
        ):
            gb.sum(gb.ones((3, 5)), axis=2)
        with pytest.raises(ShapeError, match="mean: axis .* names an axis twice"):
            gb.mean(gb.ones((3, 5)), axis=(0, -2))


class TestShapes:
    def test_split_into_equal_parts_and_at_indices(self):
        x = gb.arange(6)
        assert [p.tolist() for p in gb.split(x, 3)] == [[0, 1], [2, 3], [4, 5]]
        assert [p.tolist() for p in gb.split(x, [1, 1, 4])] == [[0], [], [1, 2, 3], [4, 5]]
        assert [p.shape for p in gb.split(gb.ones((2, 6)), 2, axis=-1)] == [(2, 3), (2, 3)]
        assert [p.shape for p in gb.split(gb.ones((0, 2)), 2)] == [(0, 2), (0, 2)]

    def test_a_part_that_is_not_used_gets_zeros(self):
        (g,) = gradient(lambda t: gb.split(t, [1, 3])[1] * 2.0, [1.0, 2.0, 3.0, 4.0])
        np.testing.assert_array_equal(g, [0, 2, 2, 0])

    @pytest.mark.parametrize(
        ("cuts", "words"),
        [(4, "cannot be cut into 4 equal parts"), ([3, 1], "must rise"), ([9], "must rise")],
    )
    def test_wrong_cuts(self, cuts, words):
        with pytest.raises(ShapeError, match=f"split: .*{words}"):
            gb.split(gb.arange(6), cuts)

    def test_stack_and_concatenate(self):
        a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
        for axis in (0, 1, 2, -1):
            np.testing.assert_array_equal(
                gb.stack([gb.tensor(a), b], axis).numpy(), np.stack([a, b], axis)
            )
        np.testing.assert_array_equal(
            gb.concatenate([a, b], axis=None).numpy(), np.concatenate([a, b], axis=None)
        )
        assert gb.stack([gb.tensor(1.0), 2.0]).tolist() == [1, 2]
        g1, g2 = gradient(
            lambda s, t: gb.stack([s, t, s], 1) * gb.tensor([1.0, 2.0, 3.0]), [1.0, 2.0], [3.0, 4.0]
        )
        assert g1.tolist() == [4, 4] and g2.tolist() == [2, 2]

    def test_arrays_that_do_not_join(self):
        with pytest.raises(
            ShapeError, match=r"stack: array 1 has shape \(3,\) and array 0 has \(2,\)"
        ):
            gb.stack([gb.ones(2), gb.ones(3)])
        with pytest.raises(ShapeError, match="stack: axis 3 is no place among 1 axes"):
            gb.stack([gb.ones(2)], axis=3)
        with pytest.raises(
            ShapeError, match=r"concatenate: array 1 \(float32\[2, 4\]\) .* only along axis 0"
        ):
            gb.concatenate([gb.ones((2, 3)), gb.ones((2, 4))])
        with pytest.raises(ShapeError, match="concatenate: needs at least one array"):
            gb.concatenate([])

    def test_a_mixed_join_gives_each_its_dtype_back(self):
        a = gb.ones(2, requires_grad=True)
        b = gb.ones(2, np.float64, requires_grad=True)
        y = gb.concatenate([a, b])
        y.sum().backward()
        assert y.dtype == np.float64 and a.grad.dtype == np.float32 and b.grad.dtype == np.float64

    @pytest.mark.parametrize("width", [1, (1, 2), ((1, 2), (0, 3)), ((2, 1),)])
    def test_pad_takes_the_widths_of_numpy(self, width):
        x = np.arange(6.0).reshape(2, 3)
        np.testing.assert_array_equal(
            gb.pad(x, width, constant_values=-1.0).numpy(), np.pad(x, width, constant_values=-1.0)
        )

    def test_wrong_padding(self):
        with pytest.raises(ShapeError, match="pad: pad_width .* neither negative"):
            gb.pad(gb.ones(3), -1)
        with pytest.raises(ConfigError, match="pad: mode 'reflect' is not known"):
            gb.pad(gb.ones(3), 1, mode="reflect")

    def test_axes_come_and_go_as_in_numpy(self):
        x = np.arange(24.0).reshape(2, 1, 3, 4)
        t = gb.tensor(x)
        np.testing.assert_array_equal(gb.squeeze(t).numpy(), np.squeeze(x))
        np.testing.assert_array_equal(gb.squeeze(t, -3).numpy(), np.squeeze(x, -3))
        np.testing.assert_array_equal(
            gb.expand_dims(t, (0, -1)).numpy(), np.expand_dims(x, (0, -1))
        )
        np.testing.assert_array_equal(gb.swapaxes(t, 0, -1).numpy(), np.swapaxes(x, 0, -1))
        np.testing.assert_array_equal(gb.moveaxis(t, 0, 2).numpy(), np.moveaxis(x, 0, 2))
        np.testing.assert_array_equal(
            gb.moveaxis(t, (0, 3), (-1, 0)).numpy(), np.moveaxis(x, (0, 3), (-1, 0))
        )
        np.testing.assert_array_equal(t.permute(3, 0, 2, 1).numpy(), x.transpose(3, 0, 2, 1))
        assert (
            t.flatten().shape == (24,)
            and t.flatten(1).shape == (2, 12)
            and t.flatten(0, 1).shape == (2, 3, 4)
        )
        assert t.view(6, -1).shape == (6, 4) and gb.ravel(t).shape == (24,)
        with pytest.raises(ShapeError, match="squeeze: axis 0 of shape .* has 2 elements"):
            t.squeeze(0)
        with pytest.raises(ShapeError, match="expand_dims: axis .* names an axis twice"):
            t.expand_dims((0, 0))

    @pytest.mark.parametrize("shape", [(5,), (4, -1), (-1, -1), (-2, 3)])
    def test_elements_that_do_not_fill_a_shape(self, shape):
        with pytest.raises(ShapeError, match="reshape: "):
            gb.reshape(gb.ones((2, 3)), shape)

    def test_a_wrong_order_of_axes(self):
        with pytest.raises(
            ShapeError, match=r"transpose: axes \(0, 1\) must name each of the 3 axes"
        ):
            gb.transpose(gb.ones((1, 2, 3)), (0, 1))

    def test_a_shape_that_does_not_broadcast(self):
        with pytest.raises(
            ShapeError, match=r"broadcast_to: shape \(2,\) does not broadcast to \(3,\)"
        ):
            gb.broadcast_to(gb.ones(2), (3,))

    def test_a_cast_passes_the_derivative_in_the_input_dtype(self):
        x = gb.ones(3, requires_grad=True)
        (x.astype(np.float64) * 2.0).sum().backward()
        assert x.grad.dtype == np.float32 and x.grad.tolist() == [2, 2, 2]
        assert not x.astype(np.int64).requires_grad

    def test_a_copy_owns_its_memory(self):
        x = gb.ones(3, requires_grad=True)
        y = gb.copy(x)
        y.array[0] = 5.0
        y.sum().backward()
        assert x.tolist() == [1, 1, 1] and x.grad.tolist() == [1, 1, 1]


class TestIndexing:
    def test_an_element_taken_twice_gets_both_derivatives(self):
        rows = np.array([0, 2, 0, 0])
        (g,) = gradient(lambda t: t[rows], [1.0, 2.0, 3.0])
        assert g.tolist() == [3, 0, 1]
        (g,) = gradient(lambda t: t[:, [0, 2, 0], None], [[1.0, 2.0, 3.0]])
        assert g.tolist() == [[2, 0, 1]]
        (g,) = gradient(lambda t: t[:, [[0, 2], [0, -1]]], [[1.0, 2.0, 3.0]])
        assert g.tolist() == [[2, 0, 2]]
        (g,) = gradient(lambda t: gb.take(t, [[0, -1], [0, 1]]), [1.0, 2.0, 3.0])
        assert g.tolist() == [2, 1, 1]
        (g,) = gradient(lambda t: gb.take_along_axis(t, [[1, 1, 1]], 1), [[1.0, 2.0]])
        assert g.tolist() == [[0, 3]]

    def test_keys_of_tensors_lists_and_masks(self):
        x = np.arange(12.0).reshape(3, 4)
        t = gb.tensor(x)
        np.testing.assert_array_equal(t[gb.tensor([2, 0])].numpy(), x[[2, 0]])
        np.testing.assert_array_equal(t[[2, 0], [1, -1]].numpy(), x[[2, 0], [1, -1]])
        np.testing.assert_array_equal(t[t > 4.5].numpy(), x[x > 4.5])
        np.testing.assert_array_equal(t[:, (t[0] > 1.5)].numpy(), x[:, x[0] > 1.5])
        assert [row.tolist() for row in t] == x.tolist()

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            (3, r"index 3 is out of bounds for axis 0 with size 3 .*the index is \[3\]"),
            ((slice(1, None), [0, 9]), r"index 9 .*the index is \[1:, int64\[2\]\]"),
            ((0, 0, 0), r"too many indices .*the index is \[0, 0, 0\]"),
            (np.ones((2,), bool), r"boolean index did not match.*the index is \[bool\[2\]\]"),
        ],
    )
    def test_a_wrong_index_is_named(self, key, words):
        with pytest.raises(ShapeError, match=rf"getitem: {words}") as caught:
            gb.ones((3, 4))[key]
        assert isinstance(caught.value, IndexError)

    def test_wrong_kinds_of_index(self):
        with pytest.raises(ShapeError, match="getitem: only integers, slices"):
            gb.ones(3)["a"]
        with pytest.raises(
            DTypeError, match="take: indices must be an array of integers, not float64"
        ):
            gb.take(gb.ones(3), np.array([0.5]), axis=0)
        with pytest.raises(IndexError, match="take: .*out of (bounds|range)"):
            gb.take(gb.ones(3), [3], axis=0)
        with pytest.raises(ShapeError, match="take_along_axis: indices .* must have as many axes"):
            gb.take_along_axis(gb.ones((2, 3)), [0, 1], 1)

    def test_gather_and_scatter_add_have_torchs_meaning(self):
        x = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
        index = gb.tensor([[0, 2], [1, 1]])  # shorter than x along axis 0 too
        assert gb.gather(leaf(x), 1, index).tolist() == [[1, 3], [5, 5]]
        assert gb.gather(leaf(x), 0, index).tolist() == [[1, 8], [4, 5]]
        (g,) = gradient(lambda t: gb.gather(t, 1, index), x)
        assert g.tolist() == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
        src = [[10.0, 20.0, 99.0], [30.0, 40.0, 99.0]]
        expected = [[11, 2, 23], [4, 75, 6], [7, 8, 9]]
        assert gb.scatter_add(leaf(x), 1, index, leaf(src)).tolist() == expected
        weights = gb.tensor(np.arange(9.0).reshape(3, 3))
        gx, gs = gradient(lambda t, s: gb.scatter_add(t, 1, index, s) * weights, x, src)
        assert gx.tolist() == weights.tolist() and gs.tolist() == [[0, 2, 0], [4, 4, 0]]
        with pytest.raises(
            ShapeError, match="gather: index .* is longer than input .* along axis 0"
        ):
            gb.gather(gb.ones((1, 3)), 1, index)
        with pytest.raises(ShapeError, match="scatter_add: index .* as many axes as src"):
            gb.scatter_add(leaf(x), 1, index, leaf([1.0]))

    def test_clip_has_slope_one_on_its_bounds(self):
        x = [-2.0, -1.0, 0.0, 1.0, 2.0]
        np.testing.assert_array_equal(gradient(lambda t: gb.clip(t, -1, 1), x)[0], [0, 1, 1, 1, 0])
        np.testing.assert_array_equal(gradient(lambda t: t.clamp(min=0.0), x)[0], [0, 0, 1, 1, 1])
        assert gb.clip(gb.tensor(x), max=gb.tensor([0.0, -3.0, 0.0, 0.0, 3.0])).tolist() == [
            -2,
            -3,
            0,
            0,
            2,
        ]
        with pytest.raises(DTypeError, match="clip: give min, max or both"):
            gb.clip(gb.ones(3))

    def test_where_takes_numbers_lists_and_broadcasts(self):
        c = gb.tensor([True, False, True])
        assert gb.where(c, 1.0, 0).dtype == np.float32 and gb.where(c, 1, 0).dtype == np.int64
        assert gb.where([True, False], [1.0, 2.0], 0.0).tolist() == [1, 0]
        assert gb.where(c, gb.ones(3), 0.0).dtype == np.float32
        ga, gs = gradient(lambda a, b: gb.where(c, a, b), [[1.0, 2.0, 3.0]] * 2, 5.0)
        assert ga.tolist() == [[1, 0, 1]] * 2 and gs.item() == 2
        with pytest.raises(ShapeError, match="where: shapes .* do not broadcast"):
            gb.where(c, gb.ones(2), 0.0)


class TestProducts:
    @pytest.mark.parametrize(
        ("subscripts", "shapes"),
        [
            ("ij,jk", ((2, 3), (3, 4))),
            ("ba,cb", ((2, 3), (4, 2))),
            ("...ij,...jk->...ik", ((5, 2, 3), (3, 4))),
            ("i...,i...", ((3, 1, 2), (3, 4, 1))),
            ("...", ((2, 3),)),
            ("...i->i...", ((2, 3, 4),)),
            ("i...i->...", ((3, 2, 3),)),
            ("ii", ((3, 3),)),
            ("ijk,kl->il", ((2, 3, 4), (4, 5))),
            ("ijk, ilm , njm -> nkl", ((2, 3, 4), (2, 5, 6), (7, 3, 6))),
        ],
    )
    def test_einsum_reads_the_subscripts_of_numpy(self, subscripts, shapes):
        rng = np.random.default_rng(0)
        xs = [rng.standard_normal(s) for s in shapes]
        direction = [rng.standard_normal(s) for s in shapes]
        expected = np.einsum(subscripts, *xs)
        np.testing.assert_allclose(gb.einsum(subscripts, *xs).numpy(), expected, atol=1e-12)
        weights = rng.standard_normal(expected.shape)
        grads = gradient(lambda *ts: gb.einsum(subscripts, *ts) * gb.tensor(weights), *xs)
        for i, (g, d) in enumerate(zip(grads, direction, strict=True)):  # linear in each operand
            moved = np.einsum(subscripts, *[d if j == i else x for j, x in enumerate(xs)])
            assert np.sum(g * d) == pytest.approx(np.sum(weights * moved), rel=1e-10)

    @pytest.mark.parametrize(
        ("subscripts", "words"),
        [
            ("ij->ij", "name 1 operand"),
            ("ijk,jk->i", "operand 0 has 2 axes, but subscripts .* name 'ijk'"),
            ("ij,jk->iz", "letter 'z'"),
            ("ij,jk->ii", "letter 'i' of the result"),
            ("ij,j1->i", "may hold only letters"),
            ("ij,ik->jk", "letter 'i' of .* has size 3 in operand 1"),
        ],
    )
    def test_wrong_subscripts(self, subscripts, words):
        with pytest.raises(ShapeError, match=f"einsum: .*{words}"):
            gb.einsum(subscripts, gb.ones((2, 3)), gb.ones((3, 4)))

    @pytest.mark.parametrize(
        ("s1", "s2", "words"),
        [
            ((2, 3), (4, 5), "the last axis of x1 .* has 3 elements .* the second last axis of x2"),
            ((3,), (4,), "the last axis of x1 .* the axis of x2"),
            ((2, 2, 3), (3, 3, 4), "the leading axes of x1 .* do not broadcast"),
            ((), (3,), r"x1 \(float32\[\]\) needs at least one axis"),
        ],
    )
    def test_matrices_that_do_not_fit(self, s1, s2, words):
        with pytest.raises(ShapeError, match=f"matmul: {words}"):
            gb.matmul(gb.ones(s1), gb.ones(s2))

    def test_dot_and_outer(self):
        a, b = np.arange(3.0), np.arange(2.0, 5.0)
        assert gb.dot(a, b).item() == a @ b and gb.dot(2.0, [1.0, 2.0]).tolist() == [2, 4]
        np.testing.assert_array_equal(gb.outer(a, b[:2]).numpy(), np.outer(a, b[:2]))
        assert gb.outer(np.zeros(0), b).shape == (0, 3)
        with pytest.raises(ShapeError, match="dot: .* use matmul or einsum"):
            gb.dot(gb.ones((2, 2, 2)), gb.ones(2))


class TestFunctions:
    def test_numbers_stay_weak_and_lists_become_float32(self):
        assert gb.exp(1.0).dtype == np.float32 and gb.exp([1.0, 2.0]).dtype == np.float32
        assert gb.add(1, 0.5).dtype == np.float32 and gb.add(1, 2).dtype == np.int64
        assert gb.maximum(np.ones(2, np.float16), 0.5).dtype == np.float16
        assert gb.multiply([1, 2], gb.ones(2)).tolist() == [1, 2]

    def test_makers(self):
        assert gb.zeros((2, 3)).dtype == np.float32 and gb.ones(2, requires_grad=True).requires_grad
        assert gb.full((2,), True).dtype == np.bool_ and gb.full(2, 7).tolist() == [7, 7]
        assert gb.arange(3).dtype == np.int64 and gb.arange(0.0, 1.0, 0.25).tolist() == [
            0,
            0.25,
            0.5,
            0.75,
        ]
        assert gb.ones_like(gb.arange(3)).dtype == np.int64 and gb.full_like([1.0], 2).tolist() == [
            2
        ]
        np.testing.assert_array_equal(gb.eye(2, 3).numpy(), np.eye(2, 3))
        np.testing.assert_allclose(gb.linspace(0, 1, 5).numpy(), np.linspace(0, 1, 5))
        with pytest.raises(ShapeError, match="negative length"):
            gb.zeros((2, -1))
        with pytest.raises(ConfigError, match="arange: step"):
            gb.arange(0, 1, 0)
        with pytest.raises(DTypeError, match="int64 has no derivatives"):
            gb.zeros(2, np.int64, requires_grad=True)

    def test_every_public_function_says_what_it_does(self):
        for name in gb.ops.functions.__all__:
            text = getattr(gb, name).__doc__
            assert text and "Parameters\n" in text and "Returns\n" in text, name

    def test_masks_combine(self):
        a, b = gb.tensor([True, True, False]), gb.tensor([True, False, False])
        assert (a & b).tolist() == [True, False, False] and (a | b).tolist() == [True, True, False]
        assert (a ^ b).tolist() == [False, True, False] and (~a).tolist() == [False, False, True]
        with pytest.raises(DTypeError, match="& is for boolean tensors, not int64"):
            a & gb.arange(3)

    def test_methods_do_what_the_functions_do(self):
        x = gb.tensor(np.arange(1.0, 7.0).reshape(2, 3))
        for name in (
            "sum",
            "prod",
            "mean",
            "var",
            "std",
            "max",
            "min",
            "argmax",
            "cumsum",
            "logsumexp",
            "flip",
        ):
            np.testing.assert_array_equal(
                getattr(x, name)(axis=1).numpy(), getattr(gb, name)(x, axis=1).numpy()
            )
        assert x.any().item() and x.all().item() and not (x - 1.0).all().item()
        assert x.take([1, -1], axis=1).tolist() == [[2, 3], [5, 6]]
        assert x.clone().tolist() == x.tolist() and (+x) is x


def test_moments_of_half_precision_may_have_larger_sums():
    x = np.full((64, 64), 100.0, np.float16)
    x[0] = 80.0
    t = gb.tensor(x, requires_grad=True)
    for found, expected in ((t.mean(), x.astype("f8").mean()), (t.var(), x.astype("f8").var())):
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.item(), expected, rtol=1e-3)
    t.mean().backward()
    np.testing.assert_allclose(t.grad.numpy(), np.float16(1 / 4096), rtol=1e-3)
