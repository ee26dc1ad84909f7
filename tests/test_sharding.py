"""Mesh strings, moves between placements, and fully-sharded weights."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe.layer import SoftMoE
from softmoe.tasks import classification

P = jax.P


@pytest.mark.parametrize(
  'spec, sizes',
  [
    ('data:2,expert:4', (2, 1, 4)),
    ('expert:4,data:2', (2, 1, 4)),
    ('data:2,fsdp:2,expert:2', (2, 2, 2)),
    ('expert:2,fsdp:4', (1, 4, 2)),
    ('data:-1,expert:1', (8, 1, 1)),
    ('data:-1,expert:2', (4, 1, 2)),
    ('data:2,fsdp:-1,expert:2', (2, 2, 2)),
    ('expert:-1', (1, 1, 8)),
    ('fsdp:-1', (1, 8, 1)),
    ('data:8', (8, 1, 1)),
    ('data:8,expert:-1', (8, 1, 1)),
  ],
)
def test_mesh_string(spec, sizes):
  mesh = sharding.make_mesh(spec)
  assert mesh.axis_names == ('data', 'fsdp', 'expert')
  assert mesh.devices.shape == sizes
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh('data:-1,expert:2', jax.devices()[4:])
  assert mesh.devices.shape == (2, 1, 2)
  assert set(mesh.devices.flat) == set(jax.devices()[4:])


@pytest.mark.parametrize(
  'spec, expected',
  [
    ('data:3', 'sizes whose product is 8, the device count'),
    ('data:-1,expert:3', 'sizes whose product is 8, the device count'),
    ('data:-1,expert:-1', 'at most one size of -1'),
    ('data:16,expert:-1', 'sizes whose product is 8, the device count'),
    ('', 'NAME:SIZE,...'),
    ('model:8', 'NAME:SIZE,...'),
    ('data', 'NAME:SIZE,...'),
    ('data:0', 'NAME:SIZE,...'),
    ('data:-2', 'NAME:SIZE,...'),
    ('data:2.5', 'NAME:SIZE,...'),
    ('data:8,', 'NAME:SIZE,...'),
    ('data:2,data:8', 'each axis once'),
  ],
)
def test_bad_mesh_string_is_named(spec, expected):
  with pytest.raises(UserError) as error:
    sharding.make_mesh(spec)
  assert str(error.value).startswith(f'config.mesh: got {spec!r}; {expected}')


class Chip:
  """A TPU v5e as `mesh_utils` sees it."""

  platform, device_kind, core_on_chip = 'tpu', 'TPU v5 lite', 0
  __class__ = property(lambda self: jax.Device)  # for the types of arguments

  def __init__(self, slice_index, x, y):
    self.slice_index, self.coords = slice_index, (x, y, 0)
    self.process_index = slice_index
    self.id = (slice_index * 2 + x) * 4 + y


def slices(count, chip=Chip):
  """Returns the chips of slices of 2 x 4, those of all slices in turn."""
  return [
    chip(s, x, y) for x in range(2) for y in range(4) for s in range(count)
  ]


@pytest.mark.parametrize(
  'spec, sizes',
  [
    ('data:-1', (16, 1, 1)),
    ('data:-1,expert:8', (2, 1, 8)),
    ('data:4,fsdp:2,expert:2', (4, 2, 2)),
    ('data:-1,fsdp:8', (2, 8, 1)),
  ],
)
def test_only_data_crosses_slices(spec, sizes):
  mesh = sharding.make_mesh(spec, slices(2))
  assert mesh.devices.shape == sizes
  found = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  half = sizes[0] // 2
  assert (found[:half] == 0).all()
  assert (found[half:] == 1).all()


@pytest.mark.parametrize(
  'spec', ['expert:-1', 'data:1,fsdp:16', 'data:1,fsdp:4,expert:4']
)
def test_weights_that_would_cross_slices_are_refused(spec):
  expected = (
    r'^config\.mesh: .*; data a multiple of 2, the number of TPU slices'
  )
  with pytest.raises(UserError, match=expected):
    sharding.make_mesh(spec, slices(2))


def test_data_is_a_multiple_of_the_slices():
  with pytest.raises(UserError, match='data a multiple of 3'):
    sharding.make_mesh('data:4,fsdp:6', slices(3))


def test_one_slice_is_no_network_of_slices():
  mesh = sharding.make_mesh('expert:-1', slices(1))
  assert mesh.devices.shape == (1, 1, 8)


def test_experts_may_cross_hosts_of_gpus():
  class Gpu(Chip):
    platform, device_kind = 'gpu', 'NVIDIA H100 80GB HBM3'

  mesh = sharding.make_mesh('expert:-1', slices(2, chip=Gpu))
  assert mesh.devices.shape == (1, 1, 16)


def spec_of(x):
  """Returns the placement without its trailing Nones."""
  spec = list(x.sharding.spec.partitions)
  while spec and spec[-1] is None:
    spec.pop()
  return P(*spec, reduced=x.sharding.spec.reduced)


def placed(shape, *spec):
  x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  return jax.device_put(x, P(*spec))


def test_nothing_moves_without_a_mesh():
  x = jnp.arange(6.0).reshape(2, 3)
  assert sharding.by_expert(x) is x
  assert sharding.gather(x) is x
  assert sharding.reshape(x, 3, 1).shape == (2, 3, 1)


def test_nothing_moves_with_automatic_axes():
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 1, 4), sharding.AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    x = jnp.ones((8, 3))
    assert sharding.by_expert(x) is x
    assert sharding.gather(x) is x
    assert sharding.reshape(x, 3, 1).shape == (8, 3, 1)


def test_by_expert_gives_up_the_batch(mesh):
  mesh(2, 4)
  x = placed((4, 8, 3), None, ('data', 'expert'))
  y = sharding.by_expert(x)
  assert spec_of(y) == P('expert', 'data')
  assert y.addressable_shards[0].data.shape == (1, 4, 3)
  np.testing.assert_array_equal(y, x)


def test_by_expert_of_whole_arrays(mesh):
  mesh(2, 4)
  assert spec_of(sharding.by_expert(jnp.ones((4, 3)))) == P('expert')


LEADING = [(), (8,), (8, 3), (8, 2, 3)]


@pytest.mark.parametrize('leading', LEADING)
def test_flatten_and_back_without_a_mesh(leading):
  size = 30 * np.prod(leading, dtype=int)
  x = jnp.arange(size, dtype=jnp.float32).reshape(*leading, 5, 6)
  flat = sharding.flatten(x, 2)
  assert flat.shape == (np.prod(leading, dtype=int), 5, 6)
  assert sharding.flatten(x[..., 0], 1).shape == flat.shape[:2]
  y = sharding.unflatten(flat[..., :4], x)
  np.testing.assert_array_equal(y, x[..., :4])


@pytest.mark.parametrize('leading', LEADING)
@pytest.mark.parametrize('axes', [None, 'data', ('data', 'expert')])
def test_flatten_and_back_keep_the_split(mesh, leading, axes):
  mesh(2, 4)
  x = placed((*leading, 5, 6), *((axes,) if leading else ()))
  flat = sharding.flatten(x, 2)
  assert flat.shape == (np.prod(leading, dtype=int), 5, 6)
  assert spec_of(flat) == (P(axes) if leading and axes else P())
  # What comes back from the experts is split by batch.
  everywhere = jax.device_put(flat, P(('data', 'expert') if leading else None))
  y = sharding.unflatten(everywhere[..., :4], x)
  assert spec_of(y) == spec_of(x)
  np.testing.assert_array_equal(y, x[..., :4])


def test_gather_gives_up_fsdp_alone(mesh):
  mesh(2, 2, 2)
  module = {
    'expert': placed((4, 6, 2), 'expert', 'fsdp'),
    'matrix': placed((3, 6), None, 'fsdp'),
    'dense': placed((3, 6, 2), None, None, 'fsdp'),
    'other': placed((8,), 'data'),
  }
  whole = sharding.gather(module)
  assert {k: spec_of(v) for k, v in whole.items()} == {
    'expert': P('expert'),
    'matrix': P(reduced={'data', 'fsdp', 'expert'}),
    'dense': P(),
    'other': P('data'),
  }
  for name, w in whole.items():
    np.testing.assert_array_equal(np.asarray(w), module[name])


def test_gather_casts_what_travels(mesh):
  mesh(2, 2, 2)
  module = {'split': placed((4, 6), 'fsdp'), 'whole': jnp.ones((6,))}
  types = {k: v.dtype for k, v in sharding.gather(module, 'bfloat16').items()}
  assert types == {'split': jnp.bfloat16, 'whole': jnp.float32}


def split(weights, skip=0):
  """Returns how `fsdp` would split each array."""
  mesh = jax.sharding.get_mesh()
  shapes = sharding.abstract(lambda: weights, mesh)
  return {k: spec_of(v) for k, v in sharding.fsdp(shapes, skip).items()}


def test_fsdp_splits_the_longest_axis_that_divides(mesh):
  mesh(1, 2, 4)
  weights = {
    'longest': jnp.ones((4, 8)),
    'that divides': jnp.ones((8, 9)),
    'none divides': jnp.ones((3, 9)),
    'vector': jnp.ones((8,)),
    'scalar': jnp.ones(()),
    'experts': placed((2, 4, 8), 'expert'),
  }
  assert split(weights) == {
    'longest': P(None, 'fsdp'),
    'that divides': P('fsdp'),
    'none divides': P(),
    'vector': P(),
    'scalar': P(),
    'experts': P('expert', None, 'fsdp'),
  }


def test_fsdp_leaves_the_axis_of_a_scan(mesh):
  mesh(1, 2, 4)
  weights = {'matrix': jnp.ones((8, 4, 4)), 'vector': jnp.ones((8, 4))}
  assert split(weights, skip=1) == {'matrix': P(None, 'fsdp'), 'vector': P()}


def test_one_shard_is_no_split(mesh):
  mesh(4, 2)
  assert split({'matrix': jnp.ones((4, 8))}) == {'matrix': P()}


def test_split_batch_keeps_rows_on_their_devices(mesh):
  mesh(2, 4)
  x = placed((24, 5), ('data', 'expert'))
  parts = sharding.split_batch(x, 3)
  assert spec_of(parts) == P(None, ('data', 'expert'))
  for i in range(3):
    np.testing.assert_array_equal(parts[i], np.asarray(x)[i::3])
  text = (
    jax.jit(lambda x: sharding.split_batch(x, 3)).lower(x).compile().as_text()
  )
  for move in ('all-to-all', 'all-gather', 'collective-permute', 'all-reduce'):
    assert move not in text


def test_reshape_keeps_the_first_axis_and_its_split(mesh):
  mesh(2, 4)
  x = placed((8, 4, 6), ('data', 'expert'))
  y = sharding.reshape(x, 2, 2, 6)
  assert y.shape == (8, 2, 2, 6)
  assert spec_of(y) == P(('data', 'expert'))
  np.testing.assert_array_equal(y.reshape(x.shape), x)


def test_batch_spec_is_every_axis(mesh):
  mesh(2, 4)
  assert sharding.batch_spec() == P(('data', 'fsdp', 'expert'))


def params_of(scan, mesh):
  config = config_lib.default(classification.Config)
  config.mesh = mesh
  config.data.update(batch_size=8, eval_batch_size=8, num_classes=4)
  config.model.update(patch_size=(4, 4), width=16, mlp_dim=32, num_heads=2)
  config.model.update(qk_norm=True, scan=scan, depth=4 if scan else 2)
  config.model.moe.update(blocks=(2, 3) if scan else (1,), num_experts=4)
  return experiment_lib.build(experiment_lib.parse(config)).abstract_params


@pytest.mark.parametrize('scan', [False, True])
def test_fsdp_splits_kernels_in_two_and_experts_in_eight(mesh, scan):
  mesh(2, 4)  # `build` replaces it; the fixture takes it away
  params = params_of(scan, 'fsdp:2,expert:4')
  block = params['blocks'][len(params['blocks']) - 1]
  parts = lambda w: w.size // np.prod(w.sharding.shard_shape(w.shape))
  assert parts(block['attention']['query']['kernel']) == 2
  assert parts(block['mlp']['router']['phi']) == 2
  assert parts(block['mlp']['experts']['stacked']['up']['kernel']) == 8
  assert parts(block['mlp']['experts']['stacked']['up']['bias']) == 8
  assert parts(block['attention_norm']['scale']) == 1
  assert parts(params['head']['kernel']) == 2


def test_experts_are_split_without_fsdp(mesh):
  mesh(2, 4)
  params = params_of(True, 'data:2,expert:4')
  stacked = params['blocks'][1]['mlp'].pop('experts')
  assert {w.sharding.spec[1] for w in jax.tree.leaves(stacked)} == {'expert'}
  assert {spec_of(w) for w in jax.tree.leaves(params)} == {P()}


@pytest.mark.slow
@pytest.mark.parametrize('axes', [('data', 'expert'), ('expert',)])
def test_a_layer_needs_the_axis_of_the_experts_alone(axes):
  layer = SoftMoE(4, num_experts=4, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype('f')
  x = jnp.asarray(x)
  alone, _ = layer(x)
  sizes = (2, 4)[-len(axes) :]
  devices = jax.devices()[: np.prod(sizes)]
  with jax.set_mesh(jax.make_mesh(sizes, axes, devices=devices)):
    split = SoftMoE(4, num_experts=4, rngs=nnx.Rngs(0))
    assert spec_of(split.experts.stacked.up.kernel[...]) == P('expert')
    y, _ = jax.jit(lambda layer, x: layer(x))(split, jax.device_put(x, P(axes)))
  np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)
