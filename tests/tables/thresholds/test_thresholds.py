"""Runs evaluated at several thresholds, and what cannot be."""

import dataclasses
import pathlib

import pytest

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.tables.thresholds import command, evaluate, measure, page, table
from tests import untrained

pytestmark = pytest.mark.usefixtures('launched')


@pytest.fixture
def run(one_device, tmp_path):
  """Returns a function that makes a run, dense or with a router."""

  def run(name='run', seed=0, **moe):
    if moe:
      moe = dict(blocks=(0,), num_experts=8) | moe
    moe = model_config.MoEConfig(**moe)
    config = dataclasses.replace(untrained.text(depth=1, moe=moe), seed=seed)
    return str(untrained.run(config, tmp_path / name))

  return run


def row(run, threshold, value, seconds=1e-3, **metrics):
  metrics = {'loss': value, 'bits_per_byte': 2 * value} | metrics
  return measure.Row(run, threshold, metrics, 1e6, seconds, 'token', 8)


@pytest.mark.slow
def test_lower_thresholds_want_fewer_experts(run, tmp_path, capsys):
  all_on = (('all_experts', True),)
  sparse = run('sparse', router='threshold', router_options=all_on)
  plot = tmp_path / 'plot.html'
  words = [sparse, run('dense'), '--thresholds', '0.2', '0.9', 'all']
  command.main([*words, '--rounds=1', f'--plot={plot}'])
  lines = capsys.readouterr().out.splitlines()[-4:]
  low, high, every, dense = (
    [cell.strip() for cell in line.strip('| ').split('|')] for line in lines
  )
  assert [r[1] for r in (low, high, every, dense)] == ['0.2', '0.9', 'all', '–']
  wanted = 4  # after run, threshold, loss and bits per byte
  assert 1 <= float(low[wanted]) < float(high[wanted]) < 8
  assert float(every[wanted]) == 8
  assert dense[wanted] == '–'
  costs = [float(r[7]) for r in (low, high, every)]
  assert costs == sorted(set(costs))
  assert all(float(r[8]) > 0 for r in (low, high, every, dense))
  html = plot.read_text()
  assert html.count('<figure>') == 2
  assert f'softmoe.tables thresholds {sparse}' in html


def test_a_suite_keeps_the_metrics_of_each_threshold(run):
  options = {'thresholds': (0.2, measure.ALL), 'split': 'train'}
  sparse = pathlib.Path(run('sparse', router='threshold'))
  found = evaluate.evaluate(sparse, **options)
  assert found['t0.2/moe/wanted'] < found['tall/moe/wanted'] == 8
  assert found['t0.2/loss'] != found['tall/loss']
  assert not evaluate.evaluate(pathlib.Path(run('dense')), **options)


def test_other_routers_know_no_threshold(run):
  with pytest.raises(UserError, match="one has the router 'threshold'"):
    measure.measure([run(router='relu', k=2)], [0.5])


@pytest.mark.usefixtures('other_data')
def test_other_data_than_the_run_read_is_refused(tmp_path):
  with pytest.raises(UserError, match='config.data.fingerprint'):
    measure.Run(str(tmp_path), [0.5], 'latest', '')


def test_seeds_differ_in_nothing_else(run):
  first = run('a-seed0', router='threshold')
  other = run('a-seed1', seed=1, router='threshold', num_experts=4)
  with pytest.raises(
    UserError, match="num_experts=4'; a folder not called 'a'"
  ):
    measure.measure([first, other], [0.5])


def test_a_point_is_the_mean_over_seeds():
  rows = [row(f'm-seed{i}', t, i + t) for i in range(3) for t in (0.5, 0.25)]
  (low, high) = page._line(rows, table.quality(rows), lambda r: r.threshold)
  assert (low.x, high.x) == (0.25, 0.5)
  assert low.y == pytest.approx(2 * 1.25)
  assert [value for value, _ in low.seeds] == [0.5, 2.5, 4.5]
  assert low.half > 1


def test_the_metric_is_one_that_all_runs_have():
  whole, other = row('a', 0.5, 1.0), row('b', None, 1.0)
  del other.metrics['bits_per_byte']
  assert table.quality([whole, other]).name == 'loss'
  assert table.quality([whole]).name == 'bits_per_byte'


@pytest.mark.parametrize('t', [0.0, -1.0, 1.5, float('nan')])
def test_bad_thresholds(t):
  with pytest.raises(UserError, match='--thresholds'):
    command.check([0.5, measure.ALL, t])


def test_a_threshold_that_is_no_number():
  with pytest.raises(UserError, match="'most' is no number, nor 'all'"):
    command.main(['nowhere', '--thresholds', 'most'])


def test_a_plot_is_a_new_file(tmp_path):
  path = tmp_path / 'plot.html'
  path.touch()
  for plot in (path, tmp_path / 'no' / 'plot.html'):
    with pytest.raises(UserError, match='a new file'):
      command.check([0.5], str(plot))
