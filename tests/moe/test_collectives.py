"""What an MoE layer moves between devices, for every router, and nothing else.

Read from the program that the compiler makes of a layer and its gradient.
"""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.moe.execution import exchange
from tests.moe import programs

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
FORCED = 'Involuntary full rematerialization'
WIDTH, HIDDEN, EXPERTS, TOKENS = 24, 40, 8, 5

SLOTS = {
  'soft': dict(router='soft', slots_per_expert=2),
  'slots': dict(router='soft', slots_per_expert=6),
  'uniform': dict(router='uniform'),
  'uniform_soft': dict(router='uniform_soft'),
  'soft_uniform': dict(router='soft_uniform'),
  'identity': dict(router='identity'),
  'mixture_of_tokens': dict(router='mixture_of_tokens', group_size=2),
  'tokens_choice': dict(router='tokens_choice', k=2, capacity_factor=1.0),
  'experts_choice': dict(router='experts_choice', capacity_factor=1.0),
  'threshold': dict(router='threshold', capacity_factor=1.0),
  'bias_balanced': dict(router='bias_balanced', k=2, capacity_factor=1.0),
}
DROPLESS = {
  'tokens_choice dropless': dict(router='tokens_choice', k=2),
  'threshold dropless': dict(router='threshold'),
  'bias_balanced dropless': dict(router='bias_balanced', k=2),
  'relu': dict(router='relu', k=2),
}
CASES = SLOTS | DROPLESS


def make(name, exchange_chunks=1):
  """Returns a layer whose parameters are shapes, in their places."""
  fields = dict(num_experts=EXPERTS, shared_dim=16) | CASES[name]
  moe = model_config.MoEConfig(exchange_chunks=exchange_chunks, **fields)
  config = vit.ViTConfig(width=WIDTH, mlp_dim=HIDDEN, moe=moe)
  return sharding.fsdp(
    sharding.abstract(
      lambda: mixtures.make_moe(config, nnx.Rngs(0)), jax.sharding.get_mesh()
    )
  )


def objective(module, x, key):
  y, aux = module(x, key=key)
  return jnp.sum(jnp.sin(y)) + sum(aux['losses'].values()), aux['metrics']


@functools.cache
def compiled(name, sizes, backward=True, exchange_chunks=1):
  """Returns the program for the mesh of these sizes, which is in force."""
  place = jax.NamedSharding(jax.sharding.get_mesh(), sharding.batch_spec())
  x = jax.ShapeDtypeStruct((32, TOKENS, WIDTH), jnp.float32, sharding=place)
  run = jax.grad(objective, (0, 1), has_aux=True) if backward else objective
  module = make(name, exchange_chunks)
  lowered = jax.jit(run).lower(module, x, jax.random.key(0))
  return lowered.compile(compiler_options=QUICK).as_text()


@pytest.fixture
def moved(mesh, hlo, capfd):
  """Returns a function from a case and (data, fsdp, expert) to collectives.

  No compilation may say that it makes a value whole by force.
  """

  def read(name, sizes, **options):
    data, fsdp, expert = sizes
    entered = mesh(data, expert, fsdp)
    found = hlo.collectives(compiled(name, sizes, **options), entered.size)
    assert FORCED not in capfd.readouterr().err
    return found, functools.partial(hlo.group_of, entered)

  return read


def of(found, kind):
  return [c for c in found if c.kind == kind]


QUICKLY = {
  'soft': [(2, 1, 4), (2, 2, 2)],
  'tokens_choice dropless': [(2, 1, 4), (2, 2, 2)],
  'mixture_of_tokens': [(2, 2, 2)],
  'tokens_choice': [(2, 2, 2)],
  'relu': [(2, 2, 2)],
}


def on_meshes(*meshes, names):
  """Returns the decorator for (sizes, name); most of them are slow."""
  quick = lambda sizes, name: sizes in QUICKLY.get(name, ())
  cases = [
    pytest.param(*case, marks=() if quick(*case) else pytest.mark.slow)
    for case in itertools.product(meshes, names)
  ]
  return pytest.mark.parametrize(('sizes', 'name'), cases, ids=str)


both = functools.partial(on_meshes, (2, 1, 4), (2, 2, 2))


@both(names=SLOTS)
def test_slots_travel_by_two_all_to_alls_a_direction(moved, sizes, name):
  found, group = moved(name, sizes)
  exchanges = of(found, 'all-to-all')
  backward = ['transpose(' in c.name for c in exchanges]
  assert sorted(backward) == [False, False, True, True]
  assert {c.group for c in exchanges} == {group('expert')}
  kinds = {c.kind for c in found} - {'all-to-all', 'all-reduce'}
  assert kinds == ({'all-gather', 'reduce-scatter'} if sizes[1] > 1 else set())


@pytest.mark.parametrize('name', ['soft', 'tokens_choice'])
def test_forward_has_two_all_to_alls(moved, name):
  found, _ = moved(name, (2, 1, 4), backward=False)
  assert len(of(found, 'all-to-all')) == 2


@both(names=DROPLESS)
def test_dropless_gathers_tokens_and_scatters_sums(moved, sizes, name):
  """Forward: tokens to all experts, partial sums back; backward the same.

  Of more than two devices that share experts it is a part at a time, in a loop
  whose backward pass gathers the tokens again. Gates and who wants whom travel
  by all-to-alls, as the gates' gradients do.
  """
  found, group = moved(name, sizes)
  over = lambda kind: [c for c in of(found, kind) if c.group == group('expert')]
  tokens = 32 * TOKENS // (sizes[0] * sizes[1])
  parts = sizes[2] if sizes[2] > 2 else 1
  shapes = [c.shapes[-1] for c in over('all-gather')]
  assert shapes == (2 if parts == 1 else 3) * [(tokens // parts, WIDTH)]
  assert len(over('reduce-scatter')) == 2
  assert len(over('all-to-all')) == len(of(found, 'all-to-all')) == 3


@pytest.mark.parametrize('implementation', ['fused', 'grouped'])
def test_remat_repeats_no_exchange_of_dropless_experts(mesh, implementation):
  """Not even where what comes after the layer needs its output again."""
  mesh(2, 4)
  place = jax.NamedSharding(jax.sharding.get_mesh(), sharding.batch_spec())
  x = jax.ShapeDtypeStruct((8, 40, WIDTH), jnp.float32, sharding=place)
  module = make('bias_balanced dropless')
  module.implementation = implementation
  block = lambda module, x: jnp.sin(x + module(x)[0])
  policy = jax.checkpoint_policies.save_only_these_names(exchange.EXCHANGED)

  def travels(block):
    loss = lambda module, x: jnp.sum(block(module, x))
    program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(module, x)
    kinds = ('all_to_all', 'all_gather', 'reduce_scatter')
    names = (e.primitive.name for e in programs.equations(program.jaxpr))
    return sorted(name for name in names if name in kinds)

  once = travels(block)
  assert once and travels(jax.checkpoint(block, policy=policy)) == once


@both(names=CASES)
def test_weights_of_experts_never_leave_their_shard(moved, sizes, name):
  """`fsdp` alone gathers them; `data` alone sums their gradients."""
  found, group = moved(name, sizes)
  local = EXPERTS // sizes[2]
  mine = lambda shape: len(shape) > 1 and shape[0] == local
  weights = lambda kind: [
    c for c in of(found, kind) if any(map(mine, c.shapes))
  ]
  # Kernels of (WIDTH, HIDDEN) and (HIDDEN, WIDTH) and their biases.
  gathered = [c.shapes[-1] for c in weights('all-gather')]
  assert len(gathered) == (4 if sizes[1] > 1 else 0)
  assert {c.group for c in weights('all-gather')} <= {group('fsdp')}
  assert {c.group for c in weights('reduce-scatter')} <= {group('fsdp')}
  assert {c.group for c in weights('all-reduce')} == {group('data')}
  summed = [s for c in weights('all-reduce') for s in c.shapes]
  elements = 2 * WIDTH * HIDDEN + WIDTH + HIDDEN
  assert sum(map(math.prod, summed)) == local * elements // sizes[1]


@on_meshes((2, 2, 2), names=CASES)
def test_nothing_else_is_split_over_fsdp(moved, sizes, name):
  """What is gathered and scattered is weights, or tokens of the experts."""
  found, group = moved(name, sizes)
  for kind in ('all-gather', 'reduce-scatter'):
    allowed = {group('fsdp')} | (
      {group('expert')} if name in DROPLESS else set()
    )
    assert {c.group for c in of(found, kind)} == allowed


def test_force_is_noticed(capfd):
  """Automatic axes make the compiler do what the tests above exclude."""
  automatic = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=automatic)
  place = lambda *spec: jax.NamedSharding(mesh, P(*spec))
  put = jax.lax.with_sharding_constraint

  def layer(x, phi, w):
    weights = jax.nn.softmax(jnp.einsum('bmd,des->bmes', x, phi), axis=1)
    slots = put(
      jnp.einsum('bmd,bmes->ebsd', x, weights), place('expert', 'data')
    )
    y = jnp.einsum('ebsd,edf->ebsf', slots, w)
    y = jax.nn.gelu(y) @ jnp.swapaxes(w, 1, 2)[:, None]
    y = put(jnp.einsum('ebsd,bmes->bmd', y, weights), place(('data', 'expert')))
    return jnp.sum(jnp.sin(y))

  x, phi, w = jnp.ones((16, 6, 8)), jnp.ones((8, 8, 2)), jnp.ones((8, 8, 16))
  x = jax.device_put(x, place(('data', 'expert')))
  w = jax.device_put(w, place('expert'))
  jax.jit(jax.grad(layer, (0, 1, 2))).lower(x, phi, w).compile()
  assert FORCED in capfd.readouterr().err


@pytest.mark.parametrize('chunks', [2, 4])
def test_every_chunk_travels_alone(moved, chunks):
  found, _ = moved('soft', (2, 1, 4), exchange_chunks=chunks)
  assert len(of(found, 'all-to-all')) == 4 * chunks


@pytest.mark.parametrize(
  ('name', 'chunks'),
  [
    ('soft', 2),
    pytest.param('tokens_choice', 4, marks=pytest.mark.slow),
    pytest.param('slots', 3, marks=pytest.mark.slow),
  ],
)
def test_chunks_change_no_number(mesh, name, chunks):
  mesh(2, 4)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(32, TOKENS, WIDTH)), jnp.float32)
  x = jax.device_put(x, sharding.batch_spec())

  def run(chunks):
    module = jax.tree.map(
      lambda w: jax.device_put(draw(w), w.sharding), make(name, chunks)
    )
    run = jax.jit(
      jax.value_and_grad(objective, (0, 1), has_aux=True),
      compiler_options=QUICK,
    )
    return jax.device_get(run(module, x, jax.random.key(0)))

  draw = lambda w: np.sin(np.arange(w.size)).reshape(w.shape).astype('f')
  expected, actual = run(1), run(chunks)
  leaves = lambda tree: jax.tree.leaves(tree)
  for a, e in zip(leaves(actual), leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.max(np.abs(e)))


def test_groups_that_do_not_divide_leave_it_to_slots(moved):
  """There are 4 groups on a device, and of 2 slots nothing makes 3."""
  with pytest.raises(UserError, match='exchange_chunks: got 3; a divisor of 4'):
    moved('soft', (2, 1, 4), exchange_chunks=3)
  found, _ = moved('slots', (2, 1, 4), exchange_chunks=3)
  assert len(of(found, 'all-to-all')) == 12


def test_dropless_has_no_chunks(mesh):
  mesh(2, 4)
  with pytest.raises(UserError, match='exchange_chunks: got 2; 1, since'):
    make('relu', 2)
