"""The command: every router, pictures and text, numbers, bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.inspect import __main__ as command
from softmoe.inspect import observed
from softmoe.models import mixtures
from softmoe.runs import load
from tests import untrained
from tests.inspect import runs
from tests.tasks import tiny_pairs

pytestmark = pytest.mark.usefixtures('launched')

FIELDS = {
  'mixture_of_tokens': dict(group_size=2),
  'tokens_choice': dict(k=2, capacity_factor=0.7),
  'experts_choice': dict(capacity_factor=1.5),
  'threshold': dict(threshold=0.5),
  'expert_threshold': dict(k=2),
  'relu': dict(k=2),
  'segment_soft': dict(segment=2),
}
# Their slots hold tokens of one example alone.
OF_ONE_EXAMPLE = (
  'soft',
  'uniform',
  'uniform_soft',
  'soft_uniform',
  'identity',
  'segment_soft',
)


def inspect(workdir, *flags):
  command.main([str(workdir), *flags])
  page = (workdir / 'inspect.html').read_text()
  return page, json.loads((workdir / 'inspect.json').read_text())


@pytest.mark.slow
def test_numbers_are_those_of_the_evaluation_scanned_or_not(tiny, tmp_path):
  """Also on eight devices, whatever the mesh of the training."""
  run = runs.images(
    tiny,
    tmp_path,
    model__scan=True,
    model__remat=True,
    data__eval_split='test[:40]',
    **runs.CAPACITY,
  )
  page, found = inspect(run)
  expected = experiment_lib.Experiment.evaluate(
    *load.restore(run, mesh='data:8')[::2], 'test[:40]'
  )
  assert found['examples'] == 40
  whole = found['dropping'][0]
  assert whole['loss'] == pytest.approx(expected['loss'], rel=1e-3)
  assert whole['accuracy'] == pytest.approx(expected['accuracy'], rel=1e-3)
  layers = found['layers']
  assert [k['name'] for k in layers] == ['blocks 0', 'blocks 1']
  granted = np.mean([k['experts_a_token'] for k in layers])
  assert granted == pytest.approx(expected['moe/granted'], rel=1e-3)
  assert all(0 < max(k['dropped']) <= 1 for k in layers)
  take = np.array(found['samples'][0]['take']['blocks 0'])
  assert take.shape == (4, 8) and (take > 0).any()
  assert page.count('<figure>') == 8 + 2 + 2 + 1 + 2 + 2 + 2


@pytest.mark.slow
def test_text_has_the_expert_of_each_token(tmp_path):
  run = runs.text(
    tmp_path, router='threshold', threshold=0.6, blocks=(1,), num_experts=4
  )
  page, found = inspect(run, '--split=train[:20]')
  sample = found['samples'][0]
  experts = sample['experts']['blocks 1']
  assert len(sample['tokens']['blocks 1']) == len(experts) == 16
  assert 'bits_per_byte' in found['dropping'][-1]
  assert len(found['layers'][0]['by_position']) == 16
  coloured = [f'--h:{90 * e}' for e in experts if e >= 0]
  assert coloured and all(hue in page for hue in coloured)


@pytest.mark.slow
def test_translation_has_the_tokens_of_both_sides(tmp_path):
  """Of the sentences of the most common length, without what fills them up."""
  run = runs.pairs(tmp_path, short=3, long=11)
  page, found = inspect(run, '--split=train')
  assert found['examples'] == 11
  assert [k['name'] for k in found['layers']] == ['decoder 0', 'encoder 1']
  sample = found['samples'][0]
  words = {k: ''.join(v) for k, v in sample['tokens'].items()}
  assert words == {'encoder 1': 'a' * 8, 'decoder 0': 'b' * 10}
  count = {name: len(experts) for name, experts in sample['experts'].items()}
  assert count == {'encoder 1': 9, 'decoder 0': 11}  # with an end or a start
  assert all(f'Text 1, {name}' in page for name in count)
  assert all(k['left_out'] == 0 for k in found['layers'])
  assert {'accuracy', 'cross_entropy'} <= set(found['dropping'][-1])


@pytest.mark.slow
def test_two_towers_have_images_and_texts(tmp_path):
  sparse = dict(moe=tiny_pairs.sparse())
  run = untrained.run(tiny_pairs.config(model=sparse, text=sparse), tmp_path)
  page, found = inspect(run)
  image, text = 'image blocks 1', 'text blocks 1'
  assert [k['name'] for k in found['layers']] == [image, text]
  assert found['examples'] == 21
  first, *_, last = found['samples']
  assert np.shape(first['take'][image]) == (4, 8)
  assert len(first['tokens'][text]) == len(first['experts'][text]) > 1
  assert set(last) == {'example', 'label', 'take'}
  for title in (
    f'Image 4, {image}',
    f'Text 2, {text}',
    f'Experts a token by position, {image}',
    'By position in the text',
  ):
    assert title in page


@pytest.mark.slow
@pytest.mark.parametrize('router', sorted(mixtures.ROUTERS))
def test_every_router(tiny, tmp_path, router):
  fields = {f'model__moe__{k}': v for k, v in FIELDS.get(router, {}).items()}
  if router == 'hash':  # it looks at the tokens of a text
    options = (('vocab_size', 257),)
    moe = dict(router='hash', router_options=options, num_experts=4)
    run = runs.text(tmp_path, blocks=(1,), **moe)
  else:
    run = runs.images(tiny, tmp_path, model__moe__router=router, **fields)
  _, found = inspect(run)
  for layer in found['layers']:
    assert 0 <= layer['experts_a_token'] <= layer['experts'] * 1.0001
    assert layer['cumulative'][-1] == pytest.approx(1, abs=1e-3)
    assert len(layer['load']) == layer['experts']
    assert (layer['tokens_a_slot'] is None) == (router not in OF_ONE_EXAMPLE)


@pytest.fixture(scope='module')
def dense(tiny, tmp_path_factory):
  config = tiny('vit', mesh='data:8')
  return untrained.run(config, tmp_path_factory.mktemp('dense'))


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ([], 'WORKDIR: .* a run with MoE layers'),
    (['--examples=0'], 'arguments: got'),
    (['--step=7'], '--step: got'),
    (['--step=x'], '--step: got'),
    (['--what'], 'arguments: got'),
  ],
)
def test_bad_input(dense, flags, words):
  with pytest.raises(UserError, match=words):
    command.main([str(dense), *flags])
  assert not list(dense.glob('inspect.*'))


def test_no_folder_is_made_for_a_run_that_is_not_there(tmp_path):
  for flags in ([], [f'--out={tmp_path}/out']):
    with pytest.raises(UserError, match='^WORKDIR: got .*nowhere'):
      command.main([f'{tmp_path}/nowhere', *flags])
  assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(observed, 'observe', lambda *run: None)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='--out: got .*file'):
    command.main([str(tmp_path), f'--out={tmp_path}/file'])


@pytest.mark.slow
def test_a_wrong_split_is_named(tiny, tmp_path):
  run = runs.images(tiny, tmp_path)
  with pytest.raises(UserError, match='--split: got'):
    command.main([str(run), '--split=nowhere'])


@pytest.mark.slow
def test_no_run_is_one_line_and_exit_code_2(tmp_path, environment):
  done = subprocess.run(
    [sys.executable, '-m', 'softmoe.inspect', str(tmp_path)],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1 and 'WORKDIR: got' in done.stderr
