"""Translation from a config: parts, meshes, scores, files, text."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.data.text import parallel
from softmoe.data.text.pairs import PairDataConfig
from softmoe.errors import UserError
from softmoe.models import beam_search, generation
from softmoe.models import config as model_config
from softmoe.runs import load
from softmoe.runs import state as state_lib
from softmoe.tasks import scores, translation
from softmoe.training import loop
from softmoe.training import step as step_lib
from tests.data.text import trained

MOE = model_config.MoEConfig(
  router='threshold', threshold=0.6, blocks=(1,), num_experts=8, expert_dim=8
)
MODEL = model_config.EncoderDecoderConfig(
  width=8,
  depth=2,
  mlp_dim=16,
  num_heads=2,
  norm='post',
  activation='relu',
  loss_chunk=7,
  moe=MOE,
  decoder_moe_blocks=(0,),
)
RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of pairs of unequal length, and a tokenizer."""
  folder = tmp_path_factory.mktemp('pairs')
  words = ['ja', 'nein', 'danke', 'guten', 'tag']
  for split, count in (('train', 40), ('val', 5)):
    for language in ('2en', '2de'):  # the special tokens that there are
      lines = (
        ' '.join(RNG.choice(words, n)) + '\t' + ' '.join(RNG.choice(words, n))
        for n in RNG.integers(1, 7, count)
      )
      path = folder / f'{split}.{language}-en.tsv'
      path.write_text('\n'.join(lines))
  (folder / 'tokenizer.json').write_bytes(trained.content('bpe'))
  return folder


@pytest.fixture
def config_of(folder):
  """Returns a function that makes a config, with changes to its parts."""

  def make(**changes):
    optimizer = dataclasses.replace(
      translation.Config().optimizer, **changes.pop('optimizer', {})
    )
    data = PairDataConfig(
      source=f'parallel:{folder}',
      tokenizer=f'bpe:{folder}/tokenizer.json',
      buckets=(16, 48),
      batch_size=16,
      eval_batch_size=8,
      threads=0,
    )
    return dataclasses.replace(
      translation.Config(steps=2, model=MODEL, data=data),
      optimizer=optimizer,
      **changes,
    )

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
    names = ('loss', 'accuracy', 'moe/wanted', 'moe/decoder_balance')
    losses.append([float(metrics[n]) for n in names if n in metrics])
  return losses


@pytest.mark.slow
def test_any_mesh_any_parts(config_of):
  expected = curve(config_of(mesh='data:1'), 1)
  changes = dict(mesh='data:2,expert:4', optimizer={'accumulate': 2})
  found = curve(config_of(**changes), 8)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_run_scores_and_translates(config_of, folder, tmp_path):
  search = translation.SearchConfig(beam=2)
  config = config_of(search=search, mesh='data:2,expert:4')
  result = loop.train(config, tmp_path / 'run')
  assert {'bleu', 'chrf/2en', 'bleu/2de', 'perplexity'} <= {*result}
  assert {*translation.Translation(config).ratings()} <= {*result}
  assert result['perplexity'] == pytest.approx(np.exp(result['cross_entropy']))
  assert 'nw:2' in result['notes']['chrf']
  experiment, _, params = load.restore(tmp_path / 'run')
  assert str(tmp_path) in experiment.config.data.tokenizer
  model = nnx.merge(experiment.graphdef, params)
  how = generation.Sampling(1, beam=2)
  prompts = ['<2de> ja nein', 'danke', '<2en> ja']
  written = experiment.task.write(model, prompts, how)
  assert len(written) == 3
  with pytest.raises(UserError, match='at most 48 tokens'):
    experiment.task.write(model, ['danke ' * 50], how)


@pytest.mark.slow
def test_greedy_is_the_best_of_the_full_pass(config_of):
  experiment = experiment_lib.build(config_of(mesh='data:1'), jax.devices()[:1])
  params = jax.tree.map(lambda w: 3 * w, jax.jit(experiment.init_params)())
  model = nnx.merge(experiment.graphdef, params)
  source = jnp.asarray(RNG.integers(1, 300, (3, 6)), jnp.int32)
  mask = jnp.arange(6)[None] < jnp.array([[6], [4], [1]])
  how = beam_search.Search(1, 5)
  found = translation.translate(model, source, mask, 0, how)
  memory, _ = model.encode(source, mask)
  read = jnp.concatenate([jnp.zeros_like(found[:, :1]), found[:, :-1]], 1)
  best = jnp.argmax(model.logits(model.decode(read, memory, mask)[0]), -1)
  for row in range(3):
    ends = np.flatnonzero(found[row] == 0)
    stop = ends[0] + 1 if len(ends) else 5
    np.testing.assert_array_equal(best[row, :stop], found[row, :stop])


@pytest.mark.slow
def test_groups_of_sentences_are_filled_up(config_of):
  rng = np.random.default_rng(0)
  draw = lambda w: rng.normal(size=w.shape).astype(w.dtype)
  written, params = [], None
  for size in (1, 4):
    moe = dataclasses.replace(MOE, group_size=size)
    model = dataclasses.replace(MODEL, moe=moe)
    config = config_of(mesh='data:1', model=model)
    experiment = experiment_lib.build(config, jax.devices()[:1])
    params = params or jax.tree.map(draw, experiment.abstract_params)
    model = nnx.merge(experiment.graphdef, params)
    how = generation.Sampling(6, beam=2)
    prompts = ['<2de> ja nein', 'danke']
    written.append(experiment.task.write(model, prompts, how))
  assert written[0] == written[1] and all(written[0])


@pytest.mark.parametrize('size', [2, 64])
def test_lines_are_written_in_batches_and_come_back_in_order(
  config_of, monkeypatch, size
):
  shapes = set()

  def echo(model, source, *_):
    shapes.add(source.shape)
    return source

  monkeypatch.setattr(translation, 'translate', echo)
  config = config_of()
  data = dataclasses.replace(config.data, eval_batch_size=size)
  task = translation.Translation(dataclasses.replace(config, data=data))
  lines = ['ja', 'danke ' * 5, 'tag', 'guten tag ' * 3, 'nein', 'ja', 'nein ja']
  prompts = [f'<2de> {line}' for line in lines]
  model = experiment_lib.abstract_model(task)
  written = task.write(model, prompts, generation.Sampling(6, beam=2))
  said = [text.removeprefix('<2de>').strip() for text in written]
  assert said == [line.strip() for line in lines]
  assert shapes == {(min(size, 7), length) for length in (16, 48)}


@pytest.mark.parametrize(
  'scan', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_search_moves_nothing(config_of, hlo, scan):
  model = dataclasses.replace(
    MODEL,
    positions='rotary',
    scan=scan,
    moe=model_config.MoEConfig(),
    decoder_moe_blocks=(),
  )
  experiment = experiment_lib.build(config_of(mesh='data:8', model=model))
  model = nnx.merge(experiment.graphdef, experiment.abstract_params)
  source = experiment.abstract_batch(16)['source']
  mask = source.update(dtype=jnp.bool_)
  how = beam_search.Search(2, 5)
  lowered = translation.translate.lower(model, source, mask, 0, how)
  assert not hlo.collectives(lowered.compile().as_text(), 8)


def test_scores():
  pairs = parallel.Pairs(
    ['a', 'b'], ['one two three four', 'five six'], ['de', 'ru']
  )
  found = scores.corpus(['one two three four', 'six'], pairs)
  assert found['bleu/de'] == pytest.approx(100)
  assert found['chrf/ru'] < found['chrf'] < found['chrf/de'] == 100
