"""What is read off a compiled program, and what is counted beside it."""

import pytest

from softmoe.costs import chips, flops
from softmoe.plan import compiling, estimate, targets
from softmoe.process import launch


@pytest.fixture
def estimated(monkeypatch):
  """Returns the estimate of a config on eight devices, compiled by nobody."""
  nothing = compiling.Compiled()
  monkeypatch.setattr(compiling, 'compile_program', lambda *_: nothing)
  target = targets.open_target('cpu:8')
  return lambda config: estimate.estimate(config, target)


def test_the_state_of_all_devices_and_the_model_of_each_program(
  tiny, estimated
):
  config = tiny(
    mesh='data:2,expert:4',
    model__param_dtype='bfloat16',
    model__moe__router='tokens_choice',
    model__moe__capacity_factor=1.0,
    model__moe__eval_capacity_factor=8.0,
    optimizer__name='adamw',
  )
  report = estimated(config)
  train, inference = report['train'], report['inference']
  # Two moments in float32, and some counters.
  state = report['parameters'] * (2 + 4 + 4)
  assert train['whole_state_bytes'] == pytest.approx(state, rel=1e-3)
  assert report['parameter_bytes'] < report['parameters'] * 2
  in_training = flops.forward(config, training=True).flops()
  evaluated = flops.forward(config).flops()
  assert in_training < evaluated
  for step, cost in ((train, 3 * in_training), (inference, evaluated)):
    assert step['flops']['model'] == cost * step['batch_size'] / 8


@pytest.mark.parametrize(
  ('chip', 'share'), [('h100', launch.GPU_SHARE), ('v5p', 1)]
)
def test_a_training_may_use_what_the_launcher_takes(chip, share):
  target = targets.Target('', chips.named(chip), (), (), '')
  limit = int(target.chip.memory * share)
  for needed, fits in ((limit, True), (limit + 1, False)):
    compiled = compiling.Compiled(text='x', needed=needed)
    memory = estimate._memory(compiled, target)
    assert (memory['limit'], memory['fits']) == (limit, fits)
