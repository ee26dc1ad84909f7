"""A run evaluated at several thresholds, and what cannot be."""

import dataclasses

import pytest

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.tables import thresholds
from softmoe.tasks import language
from softmoe.training import loop


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns a function that trains a router for two steps."""

  def run(**moe):
    folder = tmp_path_factory.mktemp('thresholds')
    moe = model_config.MoEConfig(blocks=(0,), num_experts=8, **moe)
    model = model_config.DecoderConfig(
      width=8, depth=1, mlp_dim=16, num_heads=2, moe=moe
    )
    config = language.Config(steps=2, model=model)
    data = dataclasses.replace(
      config.data,
      source='text:docs/*.md',
      eval_split='train[:1]',
      length=16,
      batch_size=8,
      eval_batch_size=8,
      threads=0,
    )
    loop.train(dataclasses.replace(config, data=data), folder / 'run')
    return folder / 'run'

  return run


@pytest.mark.slow
def test_lower_thresholds_want_fewer_experts(run, tmp_path, capsys):
  workdir, plot = run(router='threshold'), tmp_path / 'plot.png'
  thresholds.main(
    [str(workdir), '--thresholds', '0.2', '0.9', f'--plot={plot}']
  )
  lines = capsys.readouterr().out.splitlines()[-2:]
  low, high = (
    [float(v) for v in line.strip('| ').split('|')] for line in lines
  )
  assert (low[0], high[0]) == (0.2, 0.9)
  wanted = 4  # after threshold, loss, accuracy or bits per byte
  assert 1 <= low[wanted] < high[wanted] <= 8
  assert plot.stat().st_size > 1000


@pytest.mark.slow
def test_other_routers_know_no_threshold(run):
  workdir = run(router='relu', k=2)
  with pytest.raises(UserError, match="'relu'; 'threshold'"):
    thresholds.evaluate(str(workdir), [0.5])


@pytest.mark.parametrize('t', [0.0, -1.0, 1.5])
def test_bad_thresholds(t):
  with pytest.raises(UserError, match='--thresholds'):
    thresholds.check([0.5, t])


def test_a_picture_is_not_overwritten(tmp_path):
  path = tmp_path / 'plot.png'
  path.touch()
  with pytest.raises(UserError, match='a new file'):
    thresholds.check([0.5], str(path))


def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path):
  pytest.importorskip('matplotlib')
  for name in ('plot.xyz', 'plot', 'no/folder.png'):
    with pytest.raises(UserError, match='--plot: got'):
      thresholds.check([0.5], str(tmp_path / name))
