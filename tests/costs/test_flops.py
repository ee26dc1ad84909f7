"""Cost against the paper's column of GFLOP an image."""

import runpy

import jax
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.costs import flops
from softmoe.moe import routing
from softmoe.tasks import classification

JFT = runpy.run_path('configs/jft4b.py')


def config_of(argument, **changes):
  config = JFT['get_config'](argument)
  config.model.moe.update(changes.pop('moe', {}))
  config.model.update(changes)
  return experiment_lib.parse(config)


# Tables 1 and 8 of the paper. What is counted agrees to its last digit but for
# 0.04 % of the two largest, which have the most LayerNorms and softmaxes.
@pytest.mark.parametrize(
  'argument, experts, gflop',
  [
    ('vit-s16', 0, 9.2),
    ('vit-b16', 0, 35.1),
    ('soft-s16', 128, 8.6),
    ('soft-s14', 256, 13.2),
    ('soft-b16', 128, 32.0),
    pytest.param('vit-l16', 0, 122.9, marks=pytest.mark.slow),
    pytest.param('vit-h14', 0, 334.2, marks=pytest.mark.slow),
    pytest.param('soft-l16', 128, 111.1, marks=pytest.mark.slow),
    pytest.param('soft-h14', 128, 284.6, marks=pytest.mark.slow),
    pytest.param('soft-h14', 256, 342.4, marks=pytest.mark.slow),
  ],
)
def test_paper_cost(argument, experts, gflop):
  moe = {'num_experts': experts} if experts else {}
  counted = flops.forward(config_of(argument, moe=moe)).flops() / 1e9
  assert counted == pytest.approx(gflop, rel=5e-4, abs=0.05)


def test_an_accelerator_is_not_asked(monkeypatch):
  config = experiment_lib.parse(tiny())
  expected = flops.forward(config).flops()
  refuse = lambda *_: pytest.fail('nothing is counted on an accelerator')
  monkeypatch.setattr(jax, 'devices', refuse)
  assert flops.forward(config).flops() == expected


def tiny(**changes):
  config = config_lib.default(classification.Config)
  config.data.update(image_size=(32, 32), channels=3)
  config.model.update(patch_size=(4, 4), depth=3, width=32, mlp_dim=64)
  config.model.update({'num_heads': 2} | changes)
  return config


def test_matmuls_make_up_nearly_all_of_it():
  n, d, f, patch, classes = 64, 128, 256, 48, 10
  config = tiny(width=d, mlp_dim=f)
  block = 2 * n * (4 * d * d + 2 * n * d + 2 * d * f)
  expected = 2 * n * patch * d + 3 * block + 2 * d * classes
  counted = flops.forward(experiment_lib.parse(config)).flops()
  assert expected < counted < 1.1 * expected


def test_soft_moe_costs_its_slots_and_its_routing():
  n, d, f, experts, slots = 64, 128, 256, 4, 4
  config = tiny(width=d, mlp_dim=f)
  dense = flops.forward(experiment_lib.parse(config)).flops()
  config.model.moe.update(
    blocks=(1, 2), num_experts=experts, slots_per_expert=slots
  )
  soft = flops.forward(experiment_lib.parse(config)).flops()
  mlp = 2 * 2 * d * f
  routing = 3 * 2 * n * experts * slots * d  # logits, dispatch, combine
  expected = 2 * (routing + (experts * slots - n) * mlp)
  assert soft - dense == pytest.approx(expected, rel=0.1)


def test_segments_cost_what_as_many_slots_cost_less_their_routing():
  config = tiny(width=128, mlp_dim=256)
  slots = dict(blocks=(1,), num_experts=4, slots_per_expert=4)
  config.model.moe.update(slots)
  soft = flops.forward(experiment_lib.parse(config))
  config.model.moe.update(
    slots | dict(router='segment_soft', slots_per_expert=1, segment=16)
  )
  ours = flops.forward(experiment_lib.parse(config))
  assert ours.is_fixed and ours.active == soft.active == (16 / 64 / 4,)
  routing = 3 * 2 * 64 * 128 * 4  # logits, dispatch, combine; 16 slots: 4-fold
  expected = soft.flops() - 3 * routing
  assert ours.flops() == pytest.approx(expected, rel=0.01)


def sparse(router, **fields):
  """Returns the FLOPs beyond the dense model's, of one MoE block of three."""
  config = tiny(width=128, mlp_dim=256)
  dense = flops.forward(experiment_lib.parse(config)).flops()
  config.model.moe.update(
    router=router, blocks=(1,), num_experts=8, group_size=2, **fields
  )
  parsed = experiment_lib.parse(config)
  return lambda *experts: flops.forward(parsed).flops(*experts) - dense


MLP = 64 * 2 * 2 * 128 * 256  # of all 64 tokens of an image
ROUTING = 64 * 2 * 128 * 8


def test_buffers_count_whole():
  twice = sparse('tokens_choice', k=2, capacity_factor=1.0)()
  assert twice == pytest.approx(MLP + ROUTING, rel=0.05)


def test_a_capacity_of_evaluation_alone_counts_in_evaluation_alone():
  fields = dict(k=2, eval_capacity_factor=1.5)
  assert sparse('tokens_choice', **fields)() == pytest.approx(
    2 * MLP + ROUTING, rel=0.05
  )
  config = tiny()
  fields |= dict(router='tokens_choice', num_null=2)
  config.model.moe.update(blocks=(1,), num_experts=4, **fields)
  config = experiment_lib.parse(config)
  assert flops.forward(config).is_fixed
  assert not flops.forward(config, training=True).is_fixed


@pytest.mark.slow
def test_dropless_experts_count_as_many_as_are_wanted():
  three = sparse('bias_balanced', k=3)()
  assert three == pytest.approx(2 * MLP + ROUTING, rel=0.05)
  adaptive = sparse('threshold')
  # But for what the routers themselves do: a search for the top 3, or a sum.
  assert adaptive(3.0) == pytest.approx(three, rel=1e-3)
  assert adaptive() == pytest.approx(7 * MLP + ROUTING, rel=0.05)
  assert adaptive(1.0) == pytest.approx(ROUTING, abs=0.05 * MLP)


class Nearest(nnx.Module):
  """A router of one's own, which says nothing of its cost: k of e experts."""

  def __init__(self, width, num_experts, *, k, work, rngs):
    self.num_experts, self.k = num_experts, k
    self.kernel = nnx.Param(jnp.ones((width, num_experts)))
    self.work = nnx.Param(jnp.ones((width, work)))

  def __call__(self, x, *, mask=None, key=None):
    scores = x @ self.kernel[...] + jnp.sum(x @ self.work[...]) * 1e-9
    best, _ = jax.lax.top_k(scores, self.k)
    chosen = scores >= best[:, -1:]
    priority = jnp.where(chosen, scores, -jnp.inf)
    return routing.Assignment(chosen * 1.0, priority, choices=self.k), (
      routing.Aux()
    )


def test_a_router_of_ones_own_is_counted_by_what_it_does_and_returns():
  config = tiny(width=128, mlp_dim=256)
  dense = flops.forward(experiment_lib.parse(config)).flops()
  config.model.moe.update(
    router=f'{__name__}:Nearest',
    router_options=(('k', 3), ('work', 512)),
    blocks=(1,),
    num_experts=8,
  )
  parsed = experiment_lib.parse(config)
  cost = flops.forward(parsed)
  assert cost.is_fixed and cost.active == (3 / 8,)
  own = 64 * 2 * 128 * 512
  expected = 2 * MLP + ROUTING + own
  assert cost.flops() - dense == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
  'fields, fixed',
  [
    (dict(router='threshold'), False),
    (dict(router='threshold', capacity_factor=2.0), True),
    (dict(router='relu', k=1), False),
    (dict(router='tokens_choice', k=2), True),
    (dict(router='tokens_choice', k=2, num_null=2), False),
    (dict(router='soft'), True),
  ],
)
def test_cost_is_fixed_unless_tokens_decide(fields, fixed):
  config = tiny()
  config.model.moe.update(blocks=(1,), num_experts=4, **fields)
  cost = flops.forward(experiment_lib.parse(config))
  assert cost.is_fixed == fixed


@pytest.mark.parametrize(
  'changes',
  [
    {'scan': True},
    {'remat': True},
    {'dtype': 'bfloat16'},
    {'param_dtype': 'bfloat16'},
  ],
)
def test_how_it_is_run_changes_no_count(changes):
  plain = flops.forward(experiment_lib.parse(tiny())).flops()
  assert flops.forward(experiment_lib.parse(tiny(**changes))).flops() == plain


def test_a_kernel_for_devices_that_are_not_here_costs_what_attention_does():
  counted = [
    flops.forward(experiment_lib.parse(tiny(attention=name)))
    for name in ('auto', 'pallas')
  ]
  assert counted[0] == counted[1]


def test_the_mesh_in_force_plays_no_part_and_stays(mesh):
  config = experiment_lib.parse(tiny())
  alone = flops.forward(config).flops()
  entered = mesh(2, 4)
  assert flops.forward(config).flops() == alone
  assert jax.sharding.get_mesh() == entered


@pytest.mark.parametrize('scan', [False, True])
def test_active_parameters_are_those_of_the_experts_that_run(scan):
  d, f, experts, slots = 32, 64, 4, 4
  config = tiny(depth=4, scan=scan)
  config.model.moe.update(
    blocks=(1, 2), num_experts=experts, slots_per_expert=slots
  )
  config = experiment_lib.parse(config)
  experiment = experiment_lib.build(config, jax.devices()[:1])
  active = flops.active_params(experiment, flops.forward(config))
  an_expert = 2 * d * f + d + f
  run = experts * slots / 64  # of 64 tokens
  expected = experiment.num_params() - 2 * (experts - run) * an_expert
  assert active == expected
