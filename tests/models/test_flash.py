"""JAX's kernel for TPUs and ours for GPUs: interpreted, and compiled.

Interpreted against loops, their float32 matmuls are a CPU's own, as the other
implementations' are, so they meet their tolerances. On a TPU float32 is
multiplied in bfloat16 passes, by the kernel as by the others.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from softmoe import sharding
from softmoe.models import attention, flash_tpu
from tests.compilers import needs_cuda, needs_libtpu
from tests.models.attention_cases import (
  CASES,
  MASK,
  B,
  N,
  arrays,
  draw_tokens,
  exact,
  make,
)

SOFTMOE = pathlib.Path(__file__).parents[2]


@pytest.fixture
def on_tpu(monkeypatch):
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')


@pytest.fixture(params=['tpu', 'gpu'])
def interpreted(request, monkeypatch):
  """A CPU that runs the kernels of another platform, step by step."""
  if request.param == 'gpu':  # on a CPU it interprets by itself
    monkeypatch.setattr(attention, 'choose', lambda name, platform: name)
    yield
    return
  request.getfixturevalue('on_tpu')
  with pltpu.force_tpu_interpret_mode():
    yield


@pytest.mark.parametrize('case', CASES)
def test_equals_loops(interpreted, case):
  _, params, layer = make(attention='pallas')
  x, arguments = draw_tokens(), CASES[case]
  y, _ = layer(x, **arrays(arguments))
  expected = exact(params, x, arguments)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_reads_a_memory_of_another_length(interpreted):
  x, memory = draw_tokens(2), draw_tokens(5)
  mask = jnp.asarray(MASK[:, :5])
  expected, _ = make(attention='plain')[2](x, memory, mask=mask)
  y, _ = make(attention='pallas')[2](x, memory, mask=mask)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def draw_heads(n, k):
  draw = lambda i: jax.random.normal(jax.random.key(i), (2, 1, n, k))
  return draw(0), draw(1), draw(2), draw(3)


def results(name, weight, heads, arguments):
  """Returns what is read, and the gradients of queries, keys and values."""
  attend = functools.partial(attention.attend, implementation=name, **arguments)

  @jax.jit
  def run(*heads):
    y, backward = jax.vjp(attend, *heads)
    return y, *backward(weight)

  return run(*heads)


@pytest.mark.parametrize(
  'case', [pytest.param('all', marks=pytest.mark.slow), 'everything']
)
def test_many_blocks_and_gradients(interpreted, monkeypatch, case):
  """Of 130 tokens, and a head of 130: neither fills up its last block."""
  monkeypatch.setattr(flash_tpu, '_BLOCKS', (128,))
  n = 130
  *heads, weight = draw_heads(n, n)
  arguments = {}
  if case == 'everything':
    # Example 1 has nothing to read, the first tokens of example 0 neither.
    visible = (np.arange(n) > 2) & (np.arange(n) % 5 > 0) & [[True], [False]]
    segments = np.stack([np.arange(n) // 50, np.arange(n) // 129])
    arguments = dict(
      visible=jnp.asarray(visible)[:, None, None],
      segments=jnp.asarray(segments),
      causal=True,
    )
  expected = results('plain', weight, heads, arguments)
  actual = results('pallas', weight, heads, arguments)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  if arguments:
    assert not np.any(actual[0][1]) and not np.any(actual[0][0, :, :3])
    assert not any(np.any(gradient[1]) for gradient in actual[1:])


def test_bfloat16_has_its_softmax_in_float32(interpreted):
  *heads, weight = draw_heads(33, 16)
  half = [v.astype(jnp.bfloat16) for v in (weight, *heads)]
  expected = results('plain', weight, heads, {})
  actual = results('pallas', half[0], half[1:], {})
  for a, b in zip(actual, expected, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02)


@pytest.mark.parametrize('shared', [False, True])
def test_on_a_mesh(interpreted, mesh, shared):
  layer = make(attention='pallas')[2]
  x, mask = draw_tokens(), jnp.asarray(MASK[1:2] if shared else MASK)
  expected, _ = make()[2](x, mask=mask)
  mesh(2)
  layer = jax.tree.map(lambda w: jax.device_put(w, jax.P()), layer)
  x = jax.device_put(x, sharding.batch_spec())
  mask = jax.device_put(mask, jax.P() if shared else sharding.batch_spec())
  y = jax.jit(lambda layer, x, mask: layer(x, mask=mask)[0])(layer, x, mask)
  assert jax.typeof(y).sharding.spec[0] == sharding.AXES
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_cache_and_a_lone_query_are_left_to_xla(on_tpu):
  """The kernel itself would be refused by the CPU that this runs on."""
  config, _, layer = make(attention='pallas')
  x = draw_tokens()
  expected, _ = make()[2](x, causal=True)
  cache = attention.init_cache(config, B, N)
  first, cache = layer(x[:, :5], causal=True, cache=cache)
  last, _ = layer(x[:, 5:], causal=True, cache=cache)
  y = jnp.concatenate([first, last], axis=1)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match='interpret mode'):
    layer(x, causal=True)


# In a process of its own: the compiler's library stays where it is loaded.
PROGRAM = """
import json, re, sys
import jax
from flax import nnx
from jax import numpy as jnp
from softmoe import sharding
from softmoe.models import attention, config as config_lib
from softmoe.plan import hlo, targets

target, call = sys.argv[1:]
devices = targets.open_target(target).devices
mesh = sharding.make_mesh('data:2,fsdp:2', devices)
jax.set_mesh(mesh)
place = jax.NamedSharding(mesh, sharding.batch_spec())
x = jax.ShapeDtypeStruct((8, 600, 144), jnp.bfloat16, sharding=place)
rows = jax.ShapeDtypeStruct((8, 600), jnp.int32, sharding=place)

def loss(layer, x, rows):
  y, _ = sharding.gather(layer)(x, mask=rows > 0, causal=True, segments=rows)
  return jnp.sum(jnp.sin(y.astype(jnp.float32)))

def compiled(name):
  config = config_lib.TransformerConfig(
    width=144, num_heads=2, dtype='bfloat16', attention=name
  )
  make = lambda: attention.Attention(config, qk_norm=False, rngs=nnx.Rngs(0))
  layer = sharding.fsdp(sharding.abstract(make, mesh))
  gradient = jax.jit(jax.grad(loss, (0, 1)))
  return gradient.lower(layer, x, rows).compile().as_text()

def count(name):
  program = hlo.parse(compiled(name))
  run = [i for c, _, _ in program.executed() for i in c.instructions.values()]
  kernels = sum(call in i.attributes for i in run)
  arrays = re.findall(r'\\[([\\d,]+)\\]', ' '.join(i.shape for i in run))
  long = lambda a: sum(int(n) >= 600 for n in a.split(','))
  return kernels, sum(long(a) > 1 for a in arrays)

print(json.dumps({name: count(name) for name in ('pallas', 'xla')}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'target, call',
  [
    pytest.param('v5e:2x2', '"tpu_custom_call"', marks=needs_libtpu),
    pytest.param('h100:4', '"__gpu$xla.gpu.triton"', marks=needs_cuda),
  ],
)
def test_a_compiler_takes_it_and_makes_no_square(target, call):
  """Forward, gradient of keys and values, gradient of queries: three kernels.

  600 tokens are no multiple of a block, and a head of 72 is none of 128.
  """
  env = os.environ | {
    'PYTHONPATH': os.pathsep.join([str(SOFTMOE), *sys.path]),
    # Without a device XLA finds no tiles for some of the products of 'xla'.
    'XLA_FLAGS': '--xla_gpu_enable_triton_gemm=false',
  }
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, target, call],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['pallas'] == [3, 0]
  kernels, squares = found['xla']
  assert kernels == 0 and squares > 0
