"""The train state: where its arrays are, and what of it is evaluated."""

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib


def leaves(state):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


@pytest.fixture
def built(tiny):
  """Returns a function from a mesh and changes of fields to an experiment."""

  def build(data, expert, fsdp=1, **changes):
    mesh = f'data:{data},fsdp:{fsdp},expert:{expert}'
    devices = jax.devices()[: data * fsdp * expert]
    return experiment_lib.build(tiny(mesh=mesh, **changes), devices)

  return build


@pytest.mark.slow
def test_every_mesh_starts_from_the_same_state(built):
  one = leaves(state_lib.init(built(1, 1)))
  eight = leaves(state_lib.init(built(2, 4)))
  assert one.keys() == eight.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, eight[name], name)


@pytest.mark.slow
def test_split_weights_start_the_same_to_the_last_bit_but_one(built):
  """The compiler vectorises short rows otherwise, and rounds otherwise."""
  one = leaves(state_lib.init(built(1, 1)))
  for name, leaf in leaves(state_lib.init(built(1, 1, 8))).items():
    np.testing.assert_allclose(leaf, one[name], rtol=2.5e-7, atol=0)


def test_abstract_state_is_the_state_without_its_arrays(built):
  experiment = built(2, 2, 2)
  state = leaves(state_lib.init(experiment))
  abstract = leaves(state_lib.abstract(experiment))
  assert state.keys() == abstract.keys()
  for name, leaf in abstract.items():
    array = state[name]
    assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype), name
    assert leaf.sharding.is_equivalent_to(array.sharding, array.ndim), name


@pytest.mark.parametrize('name', ['adamw', 'adam', 'adafactor', 'sgd'])
def test_moments_and_average_are_where_their_parameters_are(built, name):
  abstract = state_lib.abstract(built(2, 2, 2, optimizer__name=name, ema=0.9))
  params = leaves(abstract['params'])
  found = 0
  for path, leaf in leaves(dict(abstract, params={})).items():
    for name, param in params.items():
      if path.endswith(f'/{name}') and leaf.shape == param.shape:
        assert leaf.sharding == param.sharding, path
        found += 1
  assert found >= len(params)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [True, False])
def test_no_device_makes_more_than_its_part(built, scan):
  """Nor do the random numbers and the arithmetic in between."""
  wide = dict(model__width=64, model__mlp_dim=256, model__scan=scan)

  def memory(*sizes):
    experiment = built(*sizes, **wide)
    compiled = jax.jit(lambda: state_lib.create(experiment)).lower().compile()
    return compiled.memory_analysis()

  alone = memory(1, 1)
  for sizes, most in {(1, 1, 8): 0.15, (1, 8): 0.4, (2, 2, 2): 0.35}.items():
    split = memory(*sizes)
    assert split.output_size_in_bytes < most * alone.output_size_in_bytes
    assert split.temp_size_in_bytes < most * alone.temp_size_in_bytes
    assert split.peak_memory_in_bytes < most * alone.peak_memory_in_bytes


def test_average_starts_as_the_parameters_and_is_what_is_evaluated(built):
  abstract = state_lib.abstract(built(1, 1, ema=0.9))
  assert leaves(abstract['ema']).keys() == leaves(abstract['params']).keys()
  assert state_lib.evaluated(abstract) is abstract['ema']


def test_parameters_are_evaluated_where_there_is_no_average(built):
  abstract = state_lib.abstract(built(1, 1))
  assert abstract['ema'] == {}
  assert state_lib.evaluated(abstract) is abstract['params']


def test_averages_and_moments_of_bfloat16_parameters_are_float32(built):
  """In bfloat16 neither would move where a decay is near 1."""
  experiment = built(1, 1, ema=0.999, model__param_dtype='bfloat16')
  abstract = state_lib.abstract(experiment)
  types = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
  assert 'bfloat16' in types(abstract['params'])
  assert types(abstract['ema']) == {'float32'}
  assert types(abstract['opt_state']) <= {'float32', 'int32'}
