"""The TPU's own compiler, without a TPU: the same collectives as on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.compilers import needs_libtpu

SOFTMOE = pathlib.Path(__file__).parents[2]
# In a process of its own: the compiler's library stays where it is loaded.
PROGRAM = """
import json, sys
import jax
from flax import nnx
from jax import numpy as jnp
from softmoe.models import config as model_config
from softmoe.models import vit
from softmoe import config as config_lib, sharding
from softmoe.models import mixtures
from softmoe.plan import collectives, hlo, targets

mesh = sharding.make_mesh(
  'data:2,fsdp:2,expert:2', targets.open_target('v5p:2x2x2').devices
)
jax.set_mesh(mesh)
moe = model_config.MoEConfig(num_experts=8, **json.loads(sys.argv[1]))
config = vit.ViTConfig(width=256, mlp_dim=512, moe=moe)
layer = sharding.fsdp(
  sharding.abstract(lambda: mixtures.make_moe(config, nnx.Rngs(0)), mesh)
)
place = jax.NamedSharding(mesh, sharding.batch_spec())
x = jax.ShapeDtypeStruct((32, 64, 256), jnp.float32, sharding=place)
gradient = jax.grad(lambda m, x: jnp.sum(jnp.sin(m(x)[0])), (0, 1))
text = jax.jit(gradient).lower(layer, x).compile().as_text()
found = collectives.find(hlo.parse(text), mesh.size)
print(json.dumps([(c.kind, c.group, 'transpose(' in c.name) for c in found]))
"""


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
  'moe',
  [
    dict(router='soft', slots_per_expert=8),
    dict(router='tokens_choice', capacity_factor=1.0),
  ],
  ids=lambda moe: moe['router'],
)
def test_two_all_to_alls_a_direction_and_weights_over_fsdp(moe):
  environment = os.environ | {'PYTHONPATH': str(SOFTMOE)}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, json.dumps(moe)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert 'full rematerialization' not in done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  exchanges = [back for kind, _, back in found if kind == 'all-to-all']
  assert sorted(exchanges) == [False, False, True, True]
  groups = {
    kind: {tuple(g) for k, g, _ in found if k == kind}
    for kind in ('all-to-all', 'all-gather', 'reduce-scatter')
  }
  assert groups['all-to-all'] == {(0, 1)}  # `expert`
  assert groups['all-gather'] == {(0, 2)}  # `fsdp`
  assert groups['reduce-scatter'] <= {(0, 2)}
