"""The report on paper: sentences and the table, from known numbers."""

import dataclasses
import json

import pytest

from softmoe.tables.report import markdown, summary
from tests.tables.report import made_up

ACCURACY = {'vit': (0.70, 0.74), 'soft': (0.75, 0.77)}


@pytest.fixture
def folder(tmp_path):
  """Holds two models of two seeds, and nothing drawn at random."""
  of = made_up.suite(ACCURACY, (32,), 2)
  folder = made_up.write(tmp_path / 'made_up', of)
  for run in of.runs:
    metrics = {'test/accuracy': ACCURACY[run.model][run.seed]}
    if run.name != 'soft-width32-seed1':
      metrics['faces/accuracy'] = 0.5
    facts = made_up.facts(run, metrics=metrics)
    (folder / f'{run.name}.json').write_text(json.dumps(facts))
  return folder


def report(folder):
  of = made_up.suite(ACCURACY, (32,), 2)
  content = summary.summarise(of, 'made_up', folder)
  return markdown.write(content)


def test_the_headline_is_the_difference_with_its_interval_and_cost(folder):
  """The differences are 5 and 3 points: 4 ± 12.706 sqrt(2) / sqrt(2)."""
  text = report(folder)
  assert (
    '- soft, width 32 beside vit, width 32: +4.00 ± 12.71 points (2 pairs of '
    'seeds, not told from zero) of test accuracy, 76.00 ± 12.71 against '
    '72.00 ± 25.41 %, at 1.01 times its training FLOPs and 1.25 times its '
    'training seconds.'
  ) in text
  assert '4 of 4 runs are finished.' in text


def test_the_table(folder):
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in report(folder).splitlines()
    if line.startswith('|')
  ]
  assert rows[0][:8] == [
    'model',
    'width',
    'runs',
    'test accuracy (%)',
    'worst seed',
    'best seed',
    'over vit',
    'pairs',
  ]
  assert rows[3][:8] == [
    'soft',
    '32',
    '2 of 2',
    '76.00 ± 12.71',
    '75.00 (seed 0)',
    '77.00 (seed 1)',
    '+4.00 ± 12.71',
    '2',
  ]
  assert rows[0][8:] == [
    'parameters',
    'active',
    'MFLOP/image',
    'training teraFLOP',
    'µs/example',
    'training min',
    'faces accuracy (%)',
  ]
  assert rows[2][6:8] == ['–', '–'] and rows[3][-1] == '50.00 (n=1)'


def test_a_metric_that_a_run_lacks_is_said(folder):
  said = 'faces accuracy: 1 of 4 runs lack it (soft-width32-seed1).'
  assert said in report(folder)


def test_what_an_evaluator_measures_of_some_models_is_not_missed(folder):
  path = folder / 'soft-width32-seed0.json'
  facts = json.loads(path.read_text())
  facts['metrics'] |= {'pruned/accuracy': 0.6, 't0.5/accuracy': 0.7}
  path.write_text(json.dumps(facts))
  text = report(folder)
  assert 'pruned accuracy (%)' in text and '60.00 (n=1)' in text
  assert 'runs lack it' in text and 'pruned accuracy:' not in text
  assert 't0.5' not in text


def test_thresholds_that_were_tried_have_a_table(folder):
  assert '## Thresholds tried' not in report(folder)
  wanted = {'test': 8, 't0.2': 1, 't0.9': 6}
  for path in folder.glob('*-seed*.json'):
    facts = json.loads(path.read_text())
    soft = 'soft' in path.name
    for split, n in wanted.items() if soft else [('test', 8)]:
      own = {} if split == 'test' else {f'{split}/accuracy': 0.7 + n / 100}
      facts['metrics'] |= own | {
        f'{split}/moe/wanted': n,
        f'{split}/moe/granted': n,
        f'{split}/moe/executed': n + 0.25,
        f'{split}/moe/flops': 1e6 * n,
      }
    path.write_text(json.dumps(facts))
  text = report(folder).split('## Thresholds tried')[1]
  own, low, high = text.split('##')[0].strip().splitlines()[2:]
  cells = [cell.strip() for cell in low.strip('|').split('|')]
  gap, counts = cells.pop(4), ['1 ± 0', '1 ± 0', '1.25 ± 0', '1']
  assert cells == ['soft', '32', '0.2', '71.00 ± 0.00', *counts]
  assert gap == '−1.00 ± 25.41'  # vit has 70 and 74
  assert high.split('|')[3].strip() == '0.9'
  # A mixture of which none was tried has a row of what it is.
  cells = [cell.strip() for cell in own.strip('|').split('|')]
  assert cells[:5] == ['vit', '32', '–', '72.00 ± 25.41', '–']
  assert cells[5:] == ['8 ± 0', '8 ± 0', '8.25 ± 0', '8']


def test_missing_runs_and_broken_files_are_said(folder):
  (folder / 'soft-width32-seed1.json').write_text('{')
  text = report(folder)
  assert '3 of 4 runs are finished (soft-width32: 1 of 2).' in text
  assert 'soft-width32-seed1.json: left out: half-written' in text
  assert '+5.00 points (one seed: no interval)' in text


def test_at_equal_cost_and_where_it_comes_from(folder):
  text = report(folder)
  assert (
    'At the training FLOPs of vit, width 32 (12.3 teraFLOP): soft, width 32 '
    '+4.00 ± 12.71 points (2 pairs of seeds, not told from zero).'
  ) in text
  assert (
    'At the training seconds of vit, width 32 (2.67 min): no other model has '
    'runs on both sides of it. Not compared, since no run is near: soft, '
    'width 32 (1.25 times).'
  ) in text
  for fact in ('0123456789abcdef', 'sha256:feed', 'jax 0.10.2', '2 cores of'):
    assert fact in text
  assert 'python -m softmoe.tables run made_up' in text


def test_without_a_baseline_the_best_setting_of_each_model(folder):
  of = made_up.suite(ACCURACY, (32,), 2)
  of = dataclasses.replace(of, baseline='')
  text = markdown.write(summary.summarise(of, 'made_up', folder))
  assert '- soft, width 32: 76.00 ± 12.71 test accuracy (%), 2 seeds.' in text
  assert 'over vit' not in text and 'At equal cost' not in text


def test_of_a_loss_the_lowest_is_the_best(folder):
  for path in folder.glob('*seed*.json'):
    facts = json.loads(path.read_text())
    loss = 1 - facts['metrics']['test/accuracy']
    path.write_text(json.dumps(facts | {'metrics': {'test/loss': loss}}))
  of = made_up.suite(ACCURACY, (32,), 2)
  of = dataclasses.replace(of, metric='test/loss')
  text = markdown.write(summary.summarise(of, 'made_up', folder))
  assert 'soft, width 32 beside vit, width 32: −0.04 ± 0.127 (2 pairs' in text
  assert '| 0.25 (seed 0) | 0.23 (seed 1) |' in text


def test_runs_that_another_suite_trained_are_named(folder):
  assert 'trained by other suites' not in report(folder)
  path = folder / 'vit-width32-seed0.json'
  facts = json.loads(path.read_text()) | {'taken_from': 'main/vit-seed0'}
  path.write_text(json.dumps(facts))
  assert 'trained by other suites: main/vit-seed0' in report(folder)
