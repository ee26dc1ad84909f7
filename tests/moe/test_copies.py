"""Batches that do not fill the mesh: on copies of the tokens, as on one device.

A mesh is named by its axes `data` and `expert`; the batch is split over all of
them, over `data` alone, or not at all.
"""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from tests.moe.layer_cases import CASES, DROPLESS, QUICK, draw, make, run

P = jax.P
SHAPE = 5, 6, 8, 7  # tokens, width, experts, hidden width
MESHES = [(1, 1), (2, 4), (8, 1), (1, 8)]
# Batch, examples of a group, mesh, axes that the batch is split over.
FULL = [
  (b, b if b < 8 else 1, sizes, axes)
  for b in (1, 3, 8)
  for sizes in MESHES
  for axes in ((), ('data',), ('data', 'expert'))
  if b % np.prod(sizes[: len(axes)]) == 0
]
HALF, NONE = (8, 2, (2, 4), ('data',)), (3, 3, (1, 8), ())
FEW = [
  ('mixture_of_tokens', *HALF),
  ('bias_balanced dropless', *HALF),
  ('soft', *NONE),
  ('soft tiles', *HALF),
  *(
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
      ('relu', *NONE),
      ('tokens_choice', *HALF),
      ('hash grouped', *HALF),
      ('soft tiles', *NONE),
    )
  ),
]


@functools.cache
def layer_of(name, b, size):
  module = make(name, (b, *SHAPE))
  if name == 'mixture_of_tokens':
    module.router.group_size = 2 if b == 1 else size
  module.group_size = size if CASES[name].get('group_size', 1) > 1 else 1
  return nnx.graphdef(module)


@functools.cache
def on_one_device(name, b, size, seed):
  case = draw(name, (b, *SHAPE), seed)
  f = functools.partial(run, layer_of(name, b, size))
  return jax.tree.map(np.asarray, jax.jit(f, compiler_options=QUICK)(*case))


def place(case, axes):
  params, *tokens, key, dy = case
  put = lambda spec: lambda v: jax.device_put(v, spec)
  params = {
    name: jax.tree.map(put(P('expert') if name == 'experts' else P()), tree)
    for name, tree in params.items()
  }
  tokens, dy = jax.tree.map(put(P(axes or None)), (tokens, dy))
  return params, *tokens, jax.device_put(key, P()), dy


def assert_same(actual, expected):
  def one(a, e):
    size = max(1, np.max(np.abs(e)))
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * size)

  jax.tree.map(one, actual, expected)


def comparable(name, aux):
  """Returns aux less what depends on how rows are cut into chunks."""
  cut = ('executed', 'flops') if name in DROPLESS else ()
  metrics = {k: v for k, v in aux['metrics'].items() if k not in cut}
  return aux | {'metrics': metrics}


def check(mesh, name, b, size, sizes, axes, seed=0):
  expected = on_one_device(name, b, size, seed)
  mesh(*sizes)
  case = place(draw(name, (b, *SHAPE), seed), axes)
  f = functools.partial(run, layer_of(name, b, size))
  y, aux, gradients = jax.jit(f, compiler_options=QUICK)(*case)
  assert jax.typeof(y).sharding.spec == jax.typeof(case[1]).sharding.spec
  actual = y, comparable(name, aux), gradients
  y, aux, gradients = expected
  assert_same(actual, (y, comparable(name, aux), gradients))


@pytest.mark.parametrize(('name', 'b', 'size', 'sizes', 'axes'), FEW, ids=str)
def test_copies_change_nothing(mesh, name, b, size, sizes, axes):
  check(mesh, name, b, size, sizes, axes)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize(('b', 'size', 'sizes', 'axes'), FULL, ids=str)
def test_any_batch_on_any_mesh(mesh, name, b, size, sizes, axes):
  check(mesh, name, b, size, sizes, axes)


@pytest.mark.parametrize(
  'name', ['soft', 'tokens_choice', 'tokens_choice dropless']
)
def test_a_mesh_needs_no_axis_of_the_experts(name):
  graphdef = layer_of(name, 8, 2)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def call(params, x, mask, key):
    y, aux = nnx.merge(graphdef, params)(x, mask, key=key)
    return y, comparable(name, aux)

  params, x, mask, _, key, _ = draw(name, (8, *SHAPE), 0)
  expected = call(params, x, mask, key)
  with jax.set_mesh(jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])):
    x, mask = (jax.device_put(v, P('data')) for v in (x, mask))
    actual = call(params, x, mask, key)
  assert jax.typeof(actual[0]).sharding.spec[0] == 'data'
  assert_same(actual, jax.tree.map(np.asarray, expected))


def test_copies_along_fsdp(mesh):
  check(mesh, 'bias_balanced', 2, 1, (2, 2, 2), ('data',))
