"""The train state: where its arrays are, and what of it is evaluated."""

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.training import state as state_lib


def leaves(state):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


@pytest.fixture
def built(tiny):
  """Returns a function from a mesh and changes of fields to an experiment."""

  def build(data, expert, **changes):
    config = tiny(mesh=f'data:{data},expert:{expert}', **changes)
    return experiment_lib.build(config, jax.devices()[: data * expert])

  return build


def test_every_mesh_starts_from_the_same_state(built):
  one = leaves(state_lib.init(built(1, 1)))
  eight = leaves(state_lib.init(built(2, 4)))
  assert one.keys() == eight.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, eight[name], name)


def test_abstract_state_is_the_state_without_its_arrays(built):
  experiment = built(2, 4)
  state = leaves(state_lib.init(experiment))
  abstract = leaves(state_lib.abstract(experiment))
  assert state.keys() == abstract.keys()
  for name, leaf in abstract.items():
    array = state[name]
    assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype), name
    assert leaf.sharding.is_equivalent_to(array.sharding, array.ndim), name


@pytest.mark.parametrize('name', ['adamw', 'adam', 'adafactor', 'sgd'])
def test_moments_are_where_their_experts_are(built, name):
  abstract = state_lib.abstract(built(2, 4, optimizer__name=name))
  stacked = {
    path: leaf
    for path, leaf in leaves(abstract).items()
    if '/experts/' in path and leaf.shape[0] == 8
  }
  assert any(path.startswith('params/') for path in stacked)
  assert any(path.startswith('opt_state/') for path in stacked)
  for path, leaf in stacked.items():
    assert leaf.sharding.spec[0] == 'expert', path


def test_fsdp_splits_dense_weights_and_their_moments_over_data(built):
  abstract = leaves(state_lib.abstract(built(2, 4, fsdp=True)))
  name = 'blocks/0/mlp/up/kernel'
  for path, leaf in abstract.items():
    if path.endswith(name):
      assert 'data' in leaf.sharding.spec, path
  assert f'params/{name}' in abstract


def test_average_starts_as_the_parameters_and_is_what_is_evaluated(built):
  abstract = state_lib.abstract(built(1, 1, ema=0.9))
  assert leaves(abstract['ema']).keys() == leaves(abstract['params']).keys()
  assert state_lib.evaluated(abstract) is abstract['ema']


def test_parameters_are_evaluated_where_there_is_no_average(built):
  abstract = state_lib.abstract(built(1, 1))
  assert abstract['ema'] == {}
  assert state_lib.evaluated(abstract) is abstract['params']
