"""What a whole training step of a scanned and rematerialised ViT moves."""

import collections

import pytest

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
MOE = dict(blocks=(2, 3), num_experts=8)
ROUTERS = {
  'soft': MOE,
  'tokens_choice': MOE | dict(router='tokens_choice', capacity_factor=1.0),
  'dropless': MOE | dict(router='bias_balanced', k=2),
}


@pytest.fixture
def step(tiny, hlo):
  """Returns a function from a mesh and changes to mesh and collectives."""

  def build(data, fsdp, expert, router='soft', **changes):
    moe = {f'model__moe__{k}': v for k, v in ROUTERS[router].items()}
    mesh = f'data:{data},fsdp:{fsdp},expert:{expert}'
    # Without mixup, for which rows of the batch meet on other devices.
    moe |= dict(mixup=0.0, model__depth=4)
    config = tiny('vit', mesh=mesh, **moe, **changes)
    experiment = experiment_lib.build(config)
    batch = experiment.abstract_batch(config.data.batch_size)
    compiled = (
      step_lib.make_train_step(experiment)
      .lower(state_lib.abstract(experiment), batch)
      .compile(compiler_options=QUICK)
    )
    return experiment.mesh, hlo.collectives(compiled.as_text(), 8)

  return build


def count(found, kind):
  """Returns how often a kind runs in the forward and in the backward pass."""
  times = collections.Counter()
  for c in found:
    if c.kind == kind:
      times['transpose(' in c.name] += c.count
  return times[False], times[True]


@pytest.mark.slow
@pytest.mark.parametrize('remat', [True, False])
@pytest.mark.parametrize('router', ROUTERS)
def test_no_exchange_is_repeated(step, router, remat):
  """Two MoE blocks: 2 x 2 forward, 2 x 2 backward; `remat` adds none.

  Dropless those are of gates and who wants whom, which has no gradient, and
  tokens and sums travel by other means.
  """
  _, found = step(2, 1, 4, router, model__scan=True, model__remat=remat)
  dropless = router == 'dropless'
  assert count(found, 'all-to-all') == ((4, 2) if dropless else (4, 4))
  others = {'all-gather', 'reduce-scatter'} if dropless else set()
  assert {c.kind for c in found} == {'all-to-all', 'all-reduce'} | others


@pytest.mark.slow
@pytest.mark.parametrize('remat', [True, False])
def test_weights_of_a_block_are_gathered_again_and_gradients_scattered(
  step, hlo, remat
):
  mesh, found = step(2, 2, 2, model__scan=True, model__remat=remat)
  groups = lambda kind: {c.group for c in found if c.kind == kind}
  assert groups('all-gather') == {hlo.group_of(mesh, 'fsdp')}
  assert groups('reduce-scatter') == {hlo.group_of(mesh, 'fsdp')}
  assert groups('all-to-all') == {hlo.group_of(mesh, 'expert')}
  # A block's 4 kernels of attention, and 2 of its MLP or 4 of its experts and
  # 1 of its router. The backward pass needs all but what only biases need.
  forward, backward = count(found, 'all-gather')
  blocks, others = 2 * (4 + 2) + 2 * (4 + 4 + 1), 3  # patches, positions, head
  assert forward == blocks + others
  assert blocks - 2 * 2 <= backward <= blocks
  assert count(found, 'reduce-scatter') == (0, blocks + 1)  # the head
