"""Contrastive learning from a config: losses, meshes, evaluation, bad input."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.errors import UserError
from softmoe.evaluation import run
from softmoe.models.config import MoEConfig
from softmoe.runs import state as state_lib
from softmoe.tasks import task as task_lib
from softmoe.training import loop
from softmoe.training import step as step_lib
from tests.tasks import test_contrast, tiny_pairs

SPARSE = dict(moe=tiny_pairs.sparse())
NUM_TEXTS = 6  # five numbers, and 'all'


def build(devices=1, **changes):
  config = tiny_pairs.config(**changes)
  return experiment_lib.build(config, jax.devices()[:devices])


def placed(experiment, batches):
  return prefetch.to_devices(batches, experiment.mesh, 0)


def train_batches(experiment):
  size = experiment.config.data.batch_size
  rows = prefetch.local_rows(experiment.mesh, size)
  return placed(experiment, experiment.task.train_batches(rows))


@functools.cache
def once():
  experiment = build(mesh='data:1')
  params = jax.jit(experiment.init_params)()
  params = jax.tree.map(lambda w: 1.3 * w, params)
  return experiment, params, experiment.evaluate(params, 'test[:21]')


@pytest.fixture
def evaluated():
  """Returns experiment, parameters, metrics of a split that fills no batch."""
  found = once()
  jax.set_mesh(found[0].mesh)
  return found


def embedded(experiment, params):
  """Returns images, texts and labels of that split, without any padding."""
  rows = np.arange(16)
  batches = list(experiment.task.eval_batches('test[:21]', rows))
  whole = {
    name: np.concatenate([batch[name] for batch in batches])[:21]
    for name in batches[0]
  }
  model = nnx.merge(experiment.graphdef, params)
  images, texts = jax.jit(experiment.task.infer)(model, whole)
  return np.asarray(images, 'd'), np.asarray(texts, 'd'), whole['label']


def test_a_ragged_batch_counts_its_pairs_alone(evaluated):
  experiment, params, metrics = evaluated
  images, texts, _ = embedded(experiment, params)
  parameters = float(params['log_scale']), float(params['bias'])
  losses = [
    loss
    for part in (slice(0, 16), slice(16, 21))
    for loss in test_contrast.sigmoid(images[part], texts[part], *parameters)
  ]
  assert metrics['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
  assert metrics['scale'] == pytest.approx(np.exp(params['log_scale']))
  assert metrics['examples'] == 21


def test_retrieval_and_zero_shot_are_those_of_a_loop(evaluated):
  experiment, params, metrics = evaluated
  images, _, labels = embedded(experiment, params)
  texts = [*(f'number {c}' for c in range(tiny_pairs.CLASSES)), 'all']
  (matching,) = experiment.evaluators[1:]
  vectors = matching.texts(params, texts)
  assert set(labels) == set(range(tiny_pairs.CLASSES))
  nearest = [texts[np.argmax(vectors @ image)] for image in images]
  found = [
    text in ('all', f'number {label}')
    for text, label in zip(nearest, labels, strict=True)
  ]
  assert metrics['image_to_text@1'] == pytest.approx(np.mean(found))
  assert metrics['image_to_text@10'] == 1  # there are six
  best = [labels[np.argmax(images @ vector)] for vector in vectors]
  found = [
    text in ('all', f'number {label}')
    for text, label in zip(texts, best, strict=True)
  ]
  assert metrics['text_to_image@1'] == pytest.approx(np.mean(found))
  classes = [vectors[c] + vectors[-1] for c in range(tiny_pairs.CLASSES)]
  classes = np.stack([c / np.linalg.norm(c) for c in classes])
  found = np.argmax(images @ classes.T, axis=1) == labels
  assert metrics['zeroshot'] == pytest.approx(np.mean(found))


def test_classes_of_another_source_in_templates(evaluated):
  experiment, params, _ = evaluated
  zeroshot = dict(
    source='digits',
    split='test[:50]',
    captions='tests/data/captioned/digits.jsonl',
    templates=('a {}', 'the {}'),
  )
  other = build(mesh='data:1', zeroshot=zeroshot)
  (matching,) = other.evaluators[1:]
  read, seen = matching.texts, []
  matching.texts = lambda params, texts: (
    seen.append(texts) or read(params, texts)
  )
  found = matching(params, 'test[:21]')
  assert 0 <= found['zeroshot'] <= 0.5
  assert len(seen[0]) == NUM_TEXTS
  assert seen[1][:4] == ['a zero', 'the zero', 'a one', 'the one']
  assert len(seen[1]) == 20


@pytest.mark.slow
def test_losses_of_both_towers_experts_are_in():
  experiment = build(mesh='data:1', model=SPARSE, text=SPARSE)
  batch = next(train_batches(experiment))
  model = nnx.merge(experiment.graphdef, jax.jit(experiment.init_params)())
  found = jax.jit(experiment.task.loss)(model, batch)
  losses = task_lib.losses(found)
  assert set(losses) == {
    'loss', 'moe/switch', 'moe/z', 'moe/text_switch', 'moe/text_z',
  }  # fmt: skip
  assert all(mean.value() > 0 for mean in losses.values())
  tokens = np.sum(batch['text_mask']) + 16 * 4
  assert task_lib.metrics(found)['moe/wanted'].weight == tokens


def steps(experiment, count=2):
  step, data = step_lib.make_train_step(experiment), train_batches(experiment)
  state, metrics = state_lib.init(experiment), []
  for _ in range(count):
    state, values = step(state, next(data))
    metrics.append({name: float(v) for name, v in values.items()})
  return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('mesh', ['data:2,expert:4', 'data:2,fsdp:2,expert:2'])
def test_any_mesh_trains_alike(loss, mesh):
  # A softmax takes no notice of the keys' bias: its gradient is rounding alone,
  # which Adam divides by its own size.
  optimizer = dict(frozen=('.*/key/bias',))
  changes = dict(loss=loss, model=SPARSE, text=SPARSE, optimizer=optimizer)
  _, expected = steps(build(mesh='data:1', **changes))
  _, found = steps(build(8, mesh=mesh, **changes))
  for name in set(expected[0]) - {'moe/executed', 'moe/flops'}:
    np.testing.assert_allclose(
      [m[name] for m in found],
      [m[name] for m in expected],
      rtol=2e-5,
      err_msg=name,
    )


LOCKED = dict(frozen=('image/.*',))


@pytest.mark.slow
def test_a_locked_tower_has_no_backward_pass():
  assert cost(optimizer=LOCKED) < 0.6 * cost(optimizer={})


def cost(**changes):
  """Returns the FLOPs of a step, most of them of images, as it is traced."""
  sizes = dict(model=dict(depth=4), text=dict(depth=1))
  sizes['data'] = dict(image_size=(16, 16))
  experiment = build(mesh='data:1', **sizes, **changes)
  batch = experiment.abstract_batch(16)
  step = step_lib.make_train_step(experiment)
  lowered = step.lower(state_lib.abstract(experiment), batch)
  return lowered.cost_analysis()['flops']


@pytest.mark.slow
def test_a_locked_tower_stays():
  experiment = build(mesh='data:1', optimizer=LOCKED)
  state, (metrics, _) = steps(experiment)
  start = jax.jit(experiment.init_params)()
  same = lambda a, b: bool(np.array_equal(a, b))
  unmoved = jax.tree.map(same, state['params'], start)
  assert jax.tree.all(unmoved['image'])
  assert not unmoved['text']['head']['kernel'] and not unmoved['log_scale']
  assert metrics['gradient_norm'] > 0


@pytest.mark.slow
def test_a_run_from_its_config_to_its_result(tmp_path):
  checkpoint = dict(best_metric='zeroshot')
  config = tiny_pairs.config(
    mesh='data:2,expert:4', model=SPARSE, checkpoint=checkpoint
  )
  result = loop.train(config, tmp_path / 'run')
  task = experiment_lib.build(config).task
  assert {*task.ratings(), 'gflop_per_pair', 'scale'} <= {*result}
  assert result['metric'] == 'zeroshot' and len(result['data']) == 64
  again = run.evaluate_workdir(tmp_path / 'run', split='train[:30]')
  assert again['examples'] == 30 and 0 <= again['zeroshot'] <= 1


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    (dict(loss='hinge'), "config.loss: got 'hinge'; one of ('sigmoid'"),
    (dict(text=dict(num_heads=3)), 'config.text.num_heads: got 3; a divisor'),
    (dict(text=dict(norm='post')), "config.text.norm: got 'post'; 'pre'"),
    (
      dict(text=dict(moe=MoEConfig(blocks=(9,)))),
      'config.text.moe.blocks: got (9,)',
    ),
    (dict(text=dict(vocab_size=9)), 'config.text.vocab_size: got 9; at least'),
    (dict(model=dict(num_heads=3)), 'config.model.num_heads: got 3'),
    (
      dict(zeroshot=dict(templates=('a photo',))),
      "config.zeroshot.templates: got ('a photo',); texts with {}",
    ),
    (
      dict(zeroshot=dict(source='digits')),
      "config.zeroshot.captions: got ''; one where there is a source",
    ),
    (
      dict(zeroshot=dict(source='digits', captions='no.jsonl')),
      "config.zeroshot.captions: got 'no.jsonl'; a file that can be read",
    ),
    (
      dict(
        zeroshot=dict(
          source='digits',
          captions='tests/data/captioned/digits.jsonl',
          split='val',
        )
      ),
      "config.zeroshot.split: got 'val'; the source has",
    ),
    (dict(data=dict(value_range=(1.0, 0.0))), 'config.data.value_range: got'),
    (dict(data=dict(captions='')), "config.data.captions: got ''; texts of"),
    (
      dict(optimizer=dict(accumulate=2)),
      "config.optimizer.accumulate: got 2; 1: the loss of 'contrastive'",
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_bad_input_is_one_line(tmp_path, changes, line):
  with pytest.raises(UserError) as error:
    loop.train(tiny_pairs.config(mesh='data:8', **changes), tmp_path / 'run')
  message = str(error.value)
  assert message.startswith(line) and '\n' not in message
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]
