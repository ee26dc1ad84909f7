"""Numbers of routings that are small enough to count by hand."""

import numpy as np
import pytest

from softmoe.inspect import numbers
from softmoe.inspect.observed import Layer

REAL = np.array([[True, True], [True, False]])


def sparse():
  """Two examples of two tokens, the last padding; two experts."""
  wanted = np.array([[[1, 1], [1, 0]], [[0, 1], [1, 1]]], bool)
  granted = np.array([[[1, 1], [0, 0]], [[0, 1], [0, 0]]], bool)
  gates = np.array([[[0.25, 0.75], [1, 0]], [[0, 0.5], [1, 1]]]) * granted
  return layer(gates, wanted, granted)


def dense(weights, **fields):
  return layer(np.array(weights, np.float32), None, None, **fields)


def layer(weights, wanted, granted, slots=None, real=REAL, piece=2):
  return Layer(
    'blocks 0',
    'Router',
    2,
    weights,
    weights,
    wanted,
    granted,
    real,
    token_ids=None,
    piece=piece,
    slots=slots,
  )


def test_load_and_drops_of_a_sparse_router_leave_padding_out():
  np.testing.assert_allclose(numbers.load(sparse()), [1 / 3, 2 / 3])
  np.testing.assert_allclose(numbers.dropped(sparse()), [1 / 2, 0])


def test_nothing_is_dropped_where_experts_choose_among_all_tokens():
  every = np.ones((2, 2, 2), bool)
  chosen = sparse().granted
  assert numbers.dropped(layer(chosen * 0.5, every, chosen)) is None


def test_experts_a_token_by_position_and_class():
  found = numbers.of_layer(sparse(), np.array([7, 4]))
  assert found['experts_a_token'] == 1
  assert found['left_out'] == 0.33333
  assert found['by_position'] == [1.5, 0]
  assert found['by_class'] == {
    4: {'experts': 1, 'examples': 1},
    7: {'experts': 1, 'examples': 1},
  }


def test_experts_of_slots_are_equal_shares_of_the_same_entropy():
  half, one, none = [0.25, 0.25, 0.5, 0], [0.5, 0.5, 0, 0], [0] * 4
  found = numbers.experts_a_token(dense([[half, one], [none, half]]))
  np.testing.assert_allclose(found, [[2, 1], [0, 2]])


def test_load_of_an_expert_is_that_of_all_its_slots():
  weights = [[[0.1, 0.2, 0.3, 0.4]] * 2] * 2
  np.testing.assert_allclose(numbers.load(dense(weights)), [0.3, 0.7])
  assert numbers.dropped(dense(weights)) is None


def test_cumulative_weights_are_a_mean_over_tokens_that_have_any():
  weights = [[[0.1, 0.7, 0.2, 0], [0.5, 0, 0, 0.5]], [[0] * 4, [1] * 4]]
  found = numbers.cumulative(dense(weights))
  np.testing.assert_allclose(found, [0.6, 0.95, 1, 1], rtol=1e-6)


def test_a_token_gives_its_weights_in_all_slots_or_its_gates():
  np.testing.assert_allclose(numbers.contribution(sparse()), [1, 0, 0.5])
  weights = [[[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]], [[1] * 4, [0] * 4]]
  found = numbers.contribution(dense(weights))
  np.testing.assert_allclose(found, [1, 3, 4], rtol=1e-6)


def test_tokens_that_make_a_part_of_a_slot():
  weights = [[[0.1, 0.6], [0.9, 0.4]], [[1, 0.95], [0, 0.05]]]
  found = numbers.tokens_a_slot(dense(weights))
  np.testing.assert_array_equal(found['0.5'], [1, 1])
  np.testing.assert_array_equal(found['0.9'], [1, 1.5])
  assert numbers.tokens_a_slot(sparse()) is None
  assert numbers.tokens_a_slot(dense(weights, piece=None)) is None


def test_a_slot_is_of_one_piece_of_an_example():
  """The last of which may be short, and a piece or a slot of it empty."""
  one, last = [[0.6, 0], [0.35, 1], [0.05, 0]], [[0.5, 0.2], [0.5, 0.8]]
  weights = [one + last, one + [[0, 0]] * 2]
  of = dense(weights, real=np.ones((2, 5), bool), piece=3)
  found = numbers.tokens_a_slot(of)
  np.testing.assert_array_equal(found['0.5'], [1, 1])
  np.testing.assert_allclose(found['0.9'], [2, (1 + 2 + 1) / 3])
  never = numbers.tokens_a_slot(dense([[[1, 0], [1, 0]]] * 2))
  np.testing.assert_array_equal(never['0.9'], [2, 0])


def test_similarity_within_an_expert_and_between():
  slots = np.array([[1, 2, -1, 0], [0, 0, 0, 0], [-1, -2, 1, 0.0]])
  of = layer(np.ones((2, 2, 4)), None, None, slots)
  found = numbers.similarity(of)
  expected = np.zeros((4, 4))
  expected[:3, :3] = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
  np.testing.assert_allclose(found['matrix'], expected, atol=1e-12)
  assert found['within'] == pytest.approx(0.5)
  assert found['between'] == pytest.approx(-0.5)
  assert numbers.similarity(sparse()) is None


def test_json_has_no_number_that_json_has_not():
  assert numbers.plain({'a': np.array([np.nan, 1 / 3])}) == {
    'a': [None, 0.33333]
  }
