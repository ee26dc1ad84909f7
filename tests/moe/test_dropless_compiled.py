"""The compilers of GPUs and TPUs, without one: no expert's matrix is copied."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.compilers import needs_cuda, needs_libtpu

SOFTMOE = pathlib.Path(__file__).parents[2]
WIDTH, HIDDEN, HERE = 256, 640, 3  # experts of a device
# In a process of its own: the compiler's library stays where it is loaded.
PROGRAM = """
import json, sys
import jax
from flax import nnx
from jax import numpy as jnp
from softmoe import sharding
from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.plan import targets

mesh = sharding.make_mesh(
  'data:2,expert:4', targets.open_target(sys.argv[2]).devices
)
jax.set_mesh(mesh)
options = json.loads(sys.argv[1])
moe = model_config.MoEConfig(num_experts=12, **options)
config = vit.ViTConfig(width=256, mlp_dim=640, moe=moe, dtype='bfloat16')
layer = sharding.abstract(lambda: mixtures.make_moe(config, nnx.Rngs(0)), mesh)
place = jax.NamedSharding(mesh, sharding.batch_spec())
x = jax.ShapeDtypeStruct((128, 64, 256), jnp.bfloat16, sharding=place)
loss = lambda m, x: jnp.sum(jnp.sin(m(x)[0].astype(jnp.float32)))
compiled = jax.jit(jax.grad(loss, (0, 1))).lower(layer, x).compile()
print(json.dumps(compiled.as_text()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'call'),
  [
    pytest.param('h100:8', '__gpu$xla.gpu.triton', marks=needs_cuda),
    pytest.param('v5p:2x2x2', 'tpu_custom_call', marks=needs_libtpu),
  ],
)
@pytest.mark.parametrize(
  'moe',
  [
    dict(router='tokens_choice', capacity_factor=0.0, k=2),
    dict(router='threshold', capacity_factor=0.0),
  ],
  ids=lambda moe: moe['router'],
)
def test_kernels_read_matrices_where_they_are(target, call, moe):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, json.dumps(moe), target],
    env=os.environ | {'PYTHONPATH': str(SOFTMOE), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  text = json.loads(done.stdout.splitlines()[-1])
  # Two matmuls and the gradients of both.
  assert text.count(f'custom_call_target="{call}"') >= 6
  shapes = {
    tuple(map(int, sizes.split(',')))
    for sizes in re.findall(r'\b(?:bf16|f32)\[([\d,]+)\]', text)
  }
  # A matrix for every row or block would have more of them.
  matrices = {s[:-2] for s in shapes if {WIDTH, HIDDEN} == set(s[-2:])}
  assert (HERE,) in matrices
  assert all(len(s) <= 1 and s <= (HERE,) for s in matrices)
  # A product of all rows with every expert, masked, would have rows of each.
  sides = {WIDTH, HIDDEN}
  assert not [
    s for s in shapes if s[:1] == (HERE,) and len(s) == 3 and s[1] not in sides
  ]
