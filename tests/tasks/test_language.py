"""Language modelling from a config: loss, bits a byte, parts, files, text."""

import dataclasses
import functools
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import generation
from softmoe.runs import load
from softmoe.runs import state as state_lib
from softmoe.tasks import language
from softmoe.training import loop
from softmoe.training import step as step_lib
from tests.data.text import trained

MOE = model_config.MoEConfig(
  router='threshold', threshold=0.6, blocks=(1,), num_experts=8, expert_dim=8
)
MODEL = model_config.DecoderConfig(
  width=8, depth=2, mlp_dim=16, num_heads=2, loss_chunk=7, moe=MOE
)
TEXTS = ('one two, three', 'ab', '', 'four five six seven eight nine ' * 3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of documents of unequal length."""
  folder = tmp_path_factory.mktemp('text')
  for i, text in enumerate(TEXTS * 5):
    if text:
      (folder / f'{i:02}.txt').write_text(text)
  return folder


@pytest.fixture
def config_of(folder):
  """Returns a function that makes a config, with changes to its parts."""

  def make(model=None, optimizer=None, data=None, **changes):
    config = language.Config(steps=2, model=MODEL, **changes)
    data = dict(
      source=f'text:{folder}',
      train_split='train',
      eval_split='train[:5]',
      length=16,
      batch_size=16,
      eval_batch_size=8,
      threads=0,
    ) | (data or {})
    parts = {'model': model or {}, 'optimizer': optimizer or {}, 'data': data}
    for name, fields in parts.items():
      part = dataclasses.replace(getattr(config, name), **fields)
      config = dataclasses.replace(config, **{name: part})
    return config

  return make


def curve(config, devices):
  experiment = experiment_lib.build(config, jax.devices()[:devices])
  step = step_lib.make_train_step(experiment)
  rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
  batches = experiment.task.train_batches(rows)
  placed = prefetch.to_devices(batches, experiment.mesh, 0)
  state, losses = state_lib.init(experiment), []
  for _ in range(3):
    state, metrics = step(state, next(placed))
    losses.append([float(metrics[name]) for name in ('loss', 'bits_per_byte')])
  return losses


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mesh', 'parts', 'scan'),
  [('data:2,expert:4', 2, True), ('fsdp:2,expert:4', 1, False)],
)
def test_any_mesh_any_parts(config_of, mesh, parts, scan):
  expected = curve(config_of(mesh='data:1'), 1)
  changes = dict(mesh=mesh, optimizer={'accumulate': parts})
  found = curve(config_of(model={'scan': scan}, **changes), 8)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def log_softmax(graphdef, params, batch):
  model = nnx.merge(graphdef, params)
  where = {name: batch[name] for name in ('segments', 'positions')}
  x, _, _ = model(batch['tokens'], **where)
  return jax.nn.log_softmax(model.logits(x))


def test_loss_is_a_mean_over_tokens(config_of):
  experiment = experiment_lib.build(config_of(mesh='data:1'), jax.devices()[:1])
  params = jax.jit(experiment.init_params)()
  found = experiment.evaluate(params, 'train[:5]')
  assert {*experiment.task.ratings()} <= {*found}
  forward = jax.jit(functools.partial(log_softmax, experiment.graphdef))
  losses, num_bytes = [], 0
  tokenizer = experiment.task.tokenizer
  batches = experiment.task.eval_batches('train[:5]', np.arange(8))
  per_document = {}
  count = 0
  for batch in batches:
    logs = np.asarray(forward(params, batch))
    for at in zip(*np.nonzero(batch['weights']), strict=True):
      target = batch['targets'][at]
      losses.append(-logs[at][target])
      num_bytes += int(tokenizer.num_bytes[target])
      per_document.setdefault(count, []).append(losses[-1])
      count += target == tokenizer.eos
  documents = [np.mean(v) for v in per_document.values()]
  assert len(documents) == 5
  np.testing.assert_allclose(found['loss'], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(
    found['bits_per_byte'], np.sum(losses) / math.log(2) / num_bytes, rtol=1e-5
  )
  np.testing.assert_allclose(
    found['document_loss'], np.mean(documents), rtol=1e-5
  )
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))


@pytest.mark.slow
def test_run_keeps_its_tokenizer(config_of, tmp_path, capsys):
  name = trained.name('bpe', tmp_path)
  data = {'tokenizer': name}
  sample = language.SampleConfig(tokens=4, prompt='one')
  workdir = tmp_path / 'run'
  config = config_of(data=data, sample=sample, model={'positions': 'rotary'})
  result = loop.train(config, workdir)
  assert result['perplexity'] > 1
  assert '| one' in capsys.readouterr().err
  (tmp_path / 'file.bpe').unlink()
  experiment, _, params = load.restore(workdir)
  model = nnx.merge(experiment.graphdef, params)
  how = generation.Sampling(5, temperature=0)
  written = experiment.task.write(model, ['one', 'two three'], how)
  assert [text[:3] for text in written] == ['one', 'two']


@pytest.mark.parametrize(
  ('changes', 'field'),
  [
    ({'model': {'vocab_size': 100}}, 'config.model.vocab_size'),
    ({'data': {'tokenizer': 'words'}}, 'config.data.tokenizer'),
  ],
)
def test_bad_fields(config_of, changes, field):
  with pytest.raises(UserError, match=field):
    task = language.Language(config_of(**changes))
    _ = task.tokenizer


def test_a_sample_has_to_fit_the_positions(config_of):
  sample = language.SampleConfig(tokens=12, prompt='one')
  fits = experiment_lib.build(config_of(sample=sample, mesh='data:8'))
  assert len(fits.evaluators) == 1
  sample = dataclasses.replace(sample, tokens=13)
  config = config_of(sample=sample, mesh='data:8')
  with pytest.raises(
    UserError, match='config.sample.tokens: got 13; at most 12'
  ):
    _ = dataclasses.replace(
      fits, config=config, task=language.Language(config)
    ).evaluators


def test_too_long_for_learned_positions(config_of):
  experiment = experiment_lib.build(config_of(mesh='data:8'))
  zeros = lambda w: np.zeros(w.shape, w.dtype)
  params = jax.tree.map(zeros, experiment.abstract_params)
  model = nnx.merge(experiment.graphdef, params)
  with pytest.raises(UserError, match='at most 16, the positions'):
    how = generation.Sampling(20)
    experiment.task.write(model, ['one'], how)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--output={}/there'], 'a new file'),
    (['--input={}/missing'], 'a UTF-8 text file'),
    (['--input={}/binary'], 'a UTF-8 text file'),
    (['--input={}/empty'], 'a file with lines'),
    (['--input={}/there', '--prompt=one'], 'nothing beside --input'),
    (['--temperature=inf'], '--temperature: got inf; finite'),
  ],
)
def test_generate_refuses_bad_flags(tmp_path, environment, flags, message):
  for name, content in (('there', b'x'), ('binary', b'\xff'), ('empty', b'')):
    (tmp_path / name).write_bytes(content)
  flags = [flag.format(tmp_path) for flag in flags]
  command = [sys.executable, '-m', 'softmoe.generate', '--workdir=w', *flags]
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  assert re.fullmatch(f'error: .*{message}.*\n', done.stderr)
