"""Every router through the layer, against loops over tokens and experts."""

import math
import re

import jax
import numpy as np
import pytest
from flax import nnx

from softmoe.models import mixtures
from tests.moe.layer_cases import (
  CAPACITY,
  CASES,
  DROPLESS,
  GROUPED,
  QUICK,
  SHAPES,
  SLOTS,
  compiled,
  draw,
  make,
  on_mesh,
  place,
)
from tests.moe.layer_loops import by_loops

MESHES = [None, (1, 1), (2, 4), (4, 2)]
MAIN = (
  'soft',
  'tokens_choice',
  'tokens_choice dropless',
  'experts_choice',
  'threshold',
  'threshold dropless',
)
QUICKLY = ('soft', 'experts_choice', 'threshold', 'tokens_choice dropless')
SPLIT = (
  *MAIN,
  'relu',
  'segment_soft',
  'soft tiles',
)
QUICKLY_ON = {
  (1, 1): ('soft',),
  (2, 4): SPLIT,
  (4, 2): ('soft', 'tokens_choice dropless'),
}


def check(name, shape, seed, sizes):
  case = place(draw(name, shape, seed), sizes)
  y, aux, gradients = compiled(name, shape, sizes)(*case)
  expected_y, expected_aux, expected_gradients = by_loops(name, shape, seed)
  assert_close(y, expected_y)
  assert_close(aux['losses'], expected_aux['losses'])
  assert_close(gradients, expected_gradients)
  check_metrics(name, shape, aux['metrics'], expected_aux['counts'], case)


def assert_close(actual, expected):
  """Allows float32 rounding of sums of the size that the array has."""

  def one(a, e):
    size = max(1, np.max(np.abs(e)))
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * size)

  jax.tree.map(one, actual, expected)


def check_metrics(name, shape, metrics, counts, case):
  module, (b, m, width, num_experts, hidden) = make(name, shape), shape
  flops = 4 * width * hidden * metrics['executed']
  np.testing.assert_allclose(metrics['flops'], flops, rtol=1e-6)
  if name in DROPLESS | GROUPED:
    assert metrics['granted'] == metrics['wanted'] <= metrics['executed']
  if name not in SLOTS:
    for count in ('wanted', 'granted', 'used_experts'):
      np.testing.assert_allclose(metrics[count], counts[count], rtol=1e-6)
  else:
    size = CASES[name].get('group_size', 1)
    groups = b * m // size if name == 'mixture_of_tokens' else b // size
    groups *= -(-m // getattr(module.router, 'segment', m))
    slots = getattr(module.router, 'slots_per_expert', 1)
    executed = groups * num_experts * slots / np.sum(case[2])
    np.testing.assert_allclose(metrics['executed'], executed, rtol=1e-6)


def test_no_router_is_left_out():
  assert {f['router'] for f in CASES.values()} == {*mixtures.ROUTERS, 'hash'}


def some(quick, names):
  """Returns all the names; those that are not among `quick` are slow."""
  slow = lambda name: () if name in quick else pytest.mark.slow
  return [pytest.param(name, marks=slow(name)) for name in names]


@pytest.mark.parametrize(
  ('sizes', 'name'),
  [
    pytest.param(sizes, *name.values, marks=name.marks)
    for sizes in MESHES
    for name in some(QUICKLY_ON.get(sizes, QUICKLY), CASES)
  ],
  ids=str,
)
def test_equals_loops_forward_and_gradient(mesh, sizes, name):
  if sizes:
    mesh(*sizes)
  for seed in range(6):
    check(name, on_mesh(name), seed, sizes)


@pytest.mark.slow
@pytest.mark.parametrize('name', MAIN)
def test_200_random_cases(name):
  first = MAIN.index(name) % 4
  for shape in SHAPES[first::4]:
    for seed in range(67):
      check(name, shape, seed, None)


def count(text, operation):
  return text.count(f' {operation}(')


@pytest.mark.parametrize('name', some(SPLIT, sorted(SLOTS | CAPACITY)))
def test_slots_and_buffers_travel_by_two_all_to_alls_a_direction(mesh, name):
  mesh(2, 4)
  text = compiled(name, on_mesh(name), (2, 4)).as_text()
  assert count(text, 'all-to-all') == 4
  for operation in ('all-gather', 'reduce-scatter', 'collective-permute'):
    assert count(text, operation) == 0


@pytest.mark.parametrize('name', ['soft', 'tokens_choice'])
def test_forward_has_two_all_to_alls(mesh, name):
  mesh(2, 4)
  graphdef = nnx.graphdef(make(name, on_mesh(name)))
  params, x, mask, _, key, _ = place(draw(name, on_mesh(name), 0), (2, 4))
  forward = jax.jit(
    lambda params, x: nnx.merge(graphdef, params)(x, mask, key=key),
    compiler_options=QUICK,
  )
  text = forward.lower(params, x).compile().as_text()
  assert count(text, 'all-to-all') == 2
  assert count(text, 'all-gather') == 0


@pytest.mark.parametrize('name', some(SPLIT, sorted(DROPLESS | GROUPED)))
def test_dropless_gathers_tokens_and_never_weights(mesh, name):
  mesh(2, 4)
  text = compiled(name, on_mesh(name), (2, 4)).as_text()
  gathered = re.findall(r'= f32\[([\d,]*)\]\S* all-gather\(', text)
  b, m, width, num_experts, _ = on_mesh(name)
  if name in DROPLESS:
    parts = math.gcd(b * m // 8, 2)  # of the tokens of the four that share
    tokens = f'{b * m // 2 // parts},{width}'
    # Forward, for the gradients and, in a loop, for the backward pass.
    assert gathered == [tokens] * (2 if parts == 1 else 3)
    assert count(text, 'reduce-scatter') == 2
  # The weights of experts are (experts, inputs, outputs), (experts, outputs).
  assert gathered
  for shape in gathered:
    rows, columns = shape.split(',')
    assert int(columns) == width and int(rows) > num_experts


@pytest.mark.parametrize('name', some(SPLIT, CASES))
def test_gradients_of_experts_stay_where_experts_are(mesh, name):
  mesh(2, 4)
  case = place(draw(name, on_mesh(name), 0), (2, 4))
  gradients = compiled(name, on_mesh(name), (2, 4))(*case)[2][0]
  same = lambda g, w: g.sharding.is_equivalent_to(w.sharding, w.ndim)
  assert jax.tree.all(jax.tree.map(same, gradients, case[0]))
  for gradient in jax.tree.leaves(gradients['experts']):
    assert gradient.sharding.spec[0] == 'expert'


@pytest.mark.parametrize(
  'name', ['bias_balanced', pytest.param('relu', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  'sizes', [pytest.param(None, marks=pytest.mark.slow), (2, 4)], ids=str
)
def test_statistics_are_of_the_whole_batch_and_0_where_it_is_balanced(
  mesh, sizes, name
):
  if sizes:
    mesh(*sizes)
  parameter = {'bias_balanced': 'bias', 'relu': 'log_coefficient'}[name]
  balanced = 0
  for seed in range(60):
    case = place(draw(name, on_mesh(name), seed), sizes)
    _, aux, gradients = compiled(name, on_mesh(name), sizes)(*case)
    error = by_loops(name, on_mesh(name), seed)[2][0]['router'][parameter]
    np.testing.assert_array_equal(gradients[0]['router'][parameter], error)
    assert aux['losses'][f'steer_{parameter}'] == 0
    assert f'steer_{parameter}' not in aux['weights']
    balanced += np.sum(error == 0)
  assert balanced or name == 'relu'  # one number: rarely a tie
