"""A run that starts from the parameters of another."""

import contextlib
import functools
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe.data import prefetch
from softmoe.errors import Stopped, UserError
from softmoe.evaluation import run
from softmoe.models import patches, stack
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.training import loop
from softmoe.training import step as step_lib
from softmoe.weights import __main__ as weights_command
from softmoe.weights import pretrained, source
from tests.tasks import ragged
from tests.weights.starting import build, started

STEP = 5
DEEP = dict(model__depth=4, model__moe__blocks=(2, 3))


@pytest.fixture(scope='module')
def saved(tiny, tmp_path_factory):
  """Returns a function that leaves a run whose parameters are random.

  It returns its workdir and those that are evaluated.
  """

  @functools.cache
  def save(model='soft', **changes):
    experiment = build(tiny(model, **dict(mesh='data:1') | changes))
    rng = np.random.default_rng(0)
    draw = lambda x: jax.device_put(
      rng.normal(0, 0.3, x.shape).astype(x.dtype), x.sharding
    )
    abstract = state_lib.abstract(experiment)
    state = jax.tree.map(draw, {k: abstract[k] for k in ('params', 'ema')})
    start = jax.tree.map(
      lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
      abstract,
    )
    workdir = tmp_path_factory.mktemp('source')
    config = experiment.config
    workdir_lib.write_json(workdir / 'config.json', config_lib.to_dict(config))
    with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
      checkpoints.save(STEP, start | state, {'accuracy': 0.5}, force=True)
    return workdir, jax.tree.map(np.asarray, state_lib.evaluated(state))

  return save


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ('model', 'ema'),
  [pytest.param('soft', 0.0, marks=pytest.mark.slow), ('vit', 0.5)],
)
def test_it_starts_with_the_metrics_of_the_other(
  saved, tiny, tmp_path, one_device, model, ema
):
  workdir, params = saved(model, ema=ema)
  config = tiny(
    model, mesh='data:1', init=f'{workdir}@best', ema=0.9, seed=7, steps=3
  )
  experiment, state = started(config, tmp_path / 'own')
  assert_same(state['params'], params)
  assert_same(state['ema'], params)
  assert state['step'] == 0
  moments = [x for x in jax.tree.leaves(state['opt_state']) if x.ndim]
  assert moments and not any(np.any(x) for x in moments)
  metrics = run.evaluate_workdir(workdir)
  metrics = {k: v for k, v in metrics.items() if k not in ('step', 'split')}
  split = config.data.eval_split
  assert experiment.evaluate(state_lib.evaluated(state), split) == metrics


@pytest.mark.parametrize(
  ('there', 'here'),
  [
    ((False, 'data:1'), (True, 'data:2,fsdp:2,expert:2')),
    pytest.param(
      (True, 'data:2,fsdp:2,expert:2'),
      (False, 'data:2,expert:4'),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_scan_and_mesh_may_differ(saved, tiny, there, here):
  fields = lambda side: DEEP | dict(model__scan=side[0], mesh=side[1])
  workdir, params = saved(**fields(there))
  params = dict(params)
  other = tiny(**fields(there)).model
  config = tiny(**fields(here), init=str(workdir))
  experiment = build(config)
  found = pretrained.params(experiment)
  for x, like in zip(
    *map(jax.tree.leaves, (found, experiment.abstract_params)), strict=True
  ):
    assert x.sharding == like.sharding
  found = jax.tree.map(np.asarray, found)
  assert_same(
    stack.unstack(found.pop('blocks'), config.model),
    stack.unstack(params.pop('blocks'), other),
  )
  assert_same(found, params)


def test_another_resolution_type_and_head(saved, tiny, capsys):
  """And what a model is trained on with, of which there is a note."""
  workdir, params = saved('vit', model__pool='token')
  config = tiny(
    'vit',
    mesh='data:1',
    init=str(workdir),
    init_head='reset',
    loss='sigmoid',
    model__pool='token',
    model__param_dtype='bfloat16',
    model__activation='relu',
    model__norm_epsilon=1e-5,
    data__image_size=(16, 24),
    data__num_classes=20,
  )
  found = pretrained.params(build(config))
  told = capsys.readouterr().err
  note = "note: it was trained with activation 'gelu'; config.model.activation"
  assert f"{note} is 'relu'" in told
  assert 'norm_epsilon 1e-06; config.model.norm_epsilon is 1e-05' in told
  head, position = found.pop('head'), found['patches'].pop('position')
  assert head['kernel'].shape == (16, 20) and not np.any(head['kernel'])
  np.testing.assert_allclose(head['bias'].astype('f'), -np.log(20), rtol=2**-8)
  del params['head']
  expected = patches.resize_positions(
    jnp.asarray(params['patches'].pop('position')), (2, 2), (4, 6)
  )
  assert position.shape == (1, 25, 16)
  bf16 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
  np.testing.assert_allclose(
    position.astype('f'), bf16(expected).astype('f'), rtol=2**-7
  )
  assert_same(found, bf16(params))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      dict(model__mlp_dim=64),
      'a run whose blocks/0/mlp/down/kernel is (64, 16), as in this model, '
      'not (32, 16)',
    ),
    (
      dict(model__depth=1, model__moe__blocks=()),
      'a run whose blocks/1/attention/key/bias is missing, as in this model, ',
    ),
    (dict(model__depth=3), 'is (16,), as in this model, not missing'),
    (dict(model__moe__num_experts=4), 'experts'),
    (
      dict(data__num_classes=20),
      "config.init_head: got 'keep'; 'reset', since ",
    ),
    (dict(at='@7'), 'one of [5]'),
    (dict(task='tests.tasks.ragged:Regression'), 'a run of the same task'),
  ],
)
def test_what_does_not_fit_is_one_line(saved, tiny, changes, words):
  workdir, _ = saved()
  changes = dict(init=f'{workdir}{changes.pop("at", "")}') | changes
  if 'task' in changes:
    config = ragged.Config(init=str(workdir), mesh='data:1')
  else:
    config = tiny(mesh='data:1', **changes)
  with pytest.raises(UserError) as error:
    pretrained.params(build(config))
  line = str(error.value)
  assert line.startswith('config.init') and words in line
  assert '\n' not in line


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    (dict(model__num_heads=4), 'num_heads: got 4; 2'),
    (dict(model__positions='rotary'), "positions: got 'rotary'; 'none'"),
  ],
)
def test_attention_that_no_shape_tells_is_compared(saved, tiny, changes, line):
  workdir, _ = saved()
  config = tiny(mesh='data:1', init=str(workdir), **changes)
  with pytest.raises(UserError) as error:
    pretrained.params(build(config))
  expected = f'config.model.{line}, as the model of {workdir} has it'
  assert str(error.value) == expected


def test_a_run_that_is_not_there_is_one_line(tmp_path, tiny):
  name = str(tmp_path / 'gone')
  with pytest.raises(UserError) as error:
    pretrained.params(build(tiny(init=name, mesh='data:1')))
  expected = 'a run, which has a config.json (No such file or directory)'
  assert str(error.value) == f'config.init: got {name!r}; {expected}'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(init='a', init_head='drop'), "got 'drop'; one of ('keep', 'reset')"),
    (dict(init_head='reset'), "got 'reset'; 'keep', since there is no config"),
  ],
)
def test_a_wrong_field_is_named(tiny, changes, words):
  with pytest.raises(UserError) as error:
    build(tiny(mesh='data:1', **changes))
  assert f'config.init_head: {words}' in str(error.value)


def test_a_task_that_knows_no_head_has_none_to_reset():
  config = ragged.Config(init='a', init_head='reset')
  with pytest.raises(UserError, match='config.init_head.*knows no head'):
    ragged.Regression(config).adopt({}, None, {})


@pytest.mark.parametrize(
  ('name', 'parts'),
  [
    ('runs/a', ('runs/a', 'latest')),
    ('runs/a@best', ('runs/a', 'best')),
    ('runs/a@120', ('runs/a', '120')),
    ('runs/me@home', ('runs/me@home', 'latest')),
    ('runs/a@1@latest', ('runs/a@1', 'latest')),
  ],
)
def test_a_step_may_follow_the_workdir(name, parts):
  assert source.split(name) == parts


@contextlib.contextmanager
def stopping(at):
  """Has the training end before its `at`-th step, as a crash would."""
  original, calls = step_lib.make_train_step, 0

  def make(experiment):
    step = original(experiment)

    def counted(*args):
      nonlocal calls
      calls += 1
      if calls == at:
        raise Stopped('test', at)
      return step(*args)

    counted.trace = step.trace
    return counted

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_train_step', make)
    yield


@pytest.mark.slow
def test_it_goes_on_to_the_same_bits_without_the_other(
  saved, tiny, tmp_path, one_device
):
  """Fine-tuning at twice the resolution; a resumed run reads `init` no more."""
  workdir = shutil.copytree(saved()[0], tmp_path / 'source')
  resize = dict(resize=16, crop='none')
  fields = {
    f'data__{part}__{k}': v
    for part in ('train', 'eval')
    for k, v in resize.items()
  }
  fields |= dict(data__image_size=(16, 16), init_head='reset', ema=0.5)
  config = tiny(mesh='data:1', init=str(workdir), **fields)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  loop.train(config, whole)
  with stopping(6), pytest.raises(Stopped):
    loop.train(config, parts)
  shutil.rmtree(workdir)
  loop.train(config, parts)
  ends = [started(config, path) for path in (whole, parts)]
  assert ends[0][1]['step'] == config.steps
  assert_same(*(state for _, state in ends))
  other = tiny(mesh='data:1', init='another', **fields)
  with pytest.raises(UserError, match="config.init: got 'another'; '.*source'"):
    loop.train(other, parts)


UPCYCLED = dict(
  upcycle__enabled=True,
  model__moe__router='tokens_choice',
  model__moe__k=2,
  model__moe__normalize=True,
  model__moe__blocks=(2, 3),
  model__moe__num_experts=4,
  model__moe__expert_dim=16,
)


@pytest.mark.slow
def test_a_dense_run_is_upcycled_on_a_mesh(saved, tiny, capsys):
  """With low-rank parts beside the kernels, which change nothing at first."""
  dense = dict(model__depth=4, mesh='data:1')
  workdir, _ = saved('vit', **dense)
  config = tiny(
    'vit',
    **dense | UPCYCLED | dict(mesh='data:2,fsdp:2,expert:2', seed=3),
    model__scan=True,
    model__moe__lora_rank=2,
    init=str(workdir),
  )
  experiment = build(config)
  params = pretrained.params(experiment)
  printed = capsys.readouterr().err
  assert 'made of an MLP: blocks/2/mlp/experts/stacked/down/bias' in printed
  fresh = 'initialisation: blocks/2/mlp/experts/stacked/down/lora_a, '
  assert fresh in printed
  assert 'blocks/2/mlp/router/kernel and 5 more' in printed
  like = experiment.abstract_params
  assert jax.tree.all(
    jax.tree.map(lambda x, y: x.sharding == y.sharding, params, like)
  )
  found = experiment.evaluate(params, config.data.eval_split)
  state = jax.jit(lambda params: state_lib.create(experiment, params))(params)
  step = step_lib.make_train_step(experiment)
  rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
  data = prefetch.to_devices(
    experiment.task.train_batches(rows), experiment.mesh, 1
  )
  for _ in range(2):
    state, metrics = step(state, next(data))
  assert np.isfinite(metrics['loss']) and metrics['update_norm'] > 0
  expected = run.evaluate_workdir(workdir)  # which puts its mesh in force
  assert found['loss'] == pytest.approx(expected['loss'], rel=1e-5)


@pytest.mark.slow
def test_an_exported_vit_is_upcycled(saved, tiny, tmp_path, one_device):
  """A file onto a mesh whose experts are split, beside fresh low-rank parts."""
  pytest.importorskip('safetensors')
  dense = dict(model__depth=4, model__activation='gelu_exact')
  workdir, params = saved('vit', **dense, model__scan=True)
  weights_command.main(['export', str(workdir), str(tmp_path), '--to=timm'])
  dense['init'] = str(tmp_path / 'model.safetensors')
  sparse = dense | UPCYCLED | dict(model__moe__lora_rank=2)
  mesh = dict(mesh='data:2,fsdp:2,expert:2', model__scan=True)
  experiment = build(tiny('vit', **sparse, **mesh))
  exchanged = experiment.task.exchange(pretrained.params(experiment))
  found = jax.tree.map(np.asarray, exchanged)
  fresh = found['blocks'][3]['mlp']['experts']['stacked']['up']
  assert fresh['lora_a'].any() and not fresh['lora_b'].any()
  scanned = tiny('vit', **dense, model__scan=True).model
  whole = params | {'blocks': stack.unstack(params['blocks'], scanned)}
  rng = np.random.default_rng(1)
  batch = {'image': rng.integers(0, 256, (4, 8, 8, 1), np.uint8)}

  def logits(fields, params):
    one = build(tiny('vit', **fields, mesh='data:1'))
    infer = lambda p, b: one.task.infer(nnx.merge(one.graphdef, p), b)
    return jax.jit(infer)(params, batch)

  expected = logits(dense, whole)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(
    logits(sparse, found), expected, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(model__moe__blocks=()), 'upcycle.enabled: got True; False: no block'),
    (
      dict(model__moe__num_experts=3),
      'model.moe.num_experts: got 3; a multiple of 2',
    ),
    (dict(init=''), 'upcycle.enabled: got True; False, since there is no'),
    (dict(model__width=8), 'init: got'),
  ],
)
def test_what_cannot_be_upcycled_is_one_line(saved, tiny, changes, words):
  workdir, _ = saved('vit', model__depth=4, mesh='data:1')
  base = dict(model__depth=4, mesh='data:1', init=str(workdir)) | UPCYCLED
  config = tiny('vit', **base | changes)
  with pytest.raises(UserError, match=f'^config.{words}'):
    pretrained.params(build(config))
