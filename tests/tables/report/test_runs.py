"""What is read of a folder, and what is said of the rest of it."""

import json

import pytest

from softmoe.errors import UserError
from softmoe.tables.report.numbers import runs
from tests.tables.report import made_up

SUITE = made_up.suite(models=('vit', 'soft'), widths=(32,), seeds=2)
NAMES = [run.name for run in SUITE.runs]


def read(folder):
  return runs.read(folder, 'made_up', NAMES)


@pytest.fixture
def folder(tmp_path):
  return made_up.write(tmp_path / 'made_up', SUITE)


def change(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_in_the_suites_order_with_times(folder):
  found = read(folder)
  assert [run.name for run in found.runs] == NAMES
  assert found.problems == [] and found.expected == NAMES
  assert found.runs[0].steps == 4000 and found.runs[0].group == 'vit-width32'
  assert found.times['vit-width32']['examples'] == 256


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    ('{"suite": "made_up", "ru', 'half-written, or not JSON'),
    ('[1, 2]', 'not an object'),
    ('{"name": "package"}', "not of a run: 'suite' is None"),
  ],
)
def test_a_file_that_is_no_run_is_named_and_left_out(folder, text, why):
  (folder / f'{NAMES[1]}.json').write_text(text)
  found = read(folder)
  assert [run.name for run in found.runs] == [NAMES[0], *NAMES[2:]]
  (problem,) = found.problems
  assert str(folder / f'{NAMES[1]}.json') in problem and why in problem
  assert '\n' not in problem


def test_bytes_that_are_no_text_are_left_out(folder):
  (folder / f'{NAMES[1]}.json').write_bytes(b'\xff\xfe\x00')
  assert 'not a text' in read(folder).problems[0]


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'suite': 'other'}, "of the suite 'other'"),
    ({'run': 'old-seed0'}, "'old-seed0' is not among the runs of the suite"),
    ({'run': NAMES[0]}, 'is told by two files'),
    ({'seed': True}, "'seed' is True"),
    ({'metrics': None}, "'metrics' is None"),
  ],
)
def test_a_run_of_something_else_is_left_out(folder, changes, why):
  change(folder / f'{NAMES[1]}.json', **changes)
  (problem,) = read(folder).problems
  assert why in problem


def test_two_data_sets_are_refused_in_a_line_that_names_both_files(folder):
  change(folder / f'{NAMES[2]}.json', data='sha256:beef')
  with pytest.raises(UserError) as error:
    read(folder)
  line = str(error.value)
  assert f'{NAMES[0]}.json' in line and f'{NAMES[2]}.json' in line
  assert 'sha256:beef' in line and 'sha256:feed' in line


@pytest.mark.parametrize('present', [False, True])
def test_no_finished_run_is_one_line(tmp_path, present):
  (tmp_path / 'made_up').mkdir()
  if present:
    (tmp_path / 'made_up' / 'vit.json').write_text('{')
  with pytest.raises(UserError, match='with a finished run') as error:
    read(tmp_path / 'made_up')
  assert ('half-written' in str(error.value)) == present


def test_a_metric_that_is_not_finite_is_missing(folder):
  metrics = {'test/accuracy': 0.5, 'test/loss': 'NaN', 'x/accuracy': None}
  change(folder / f'{NAMES[0]}.json', metrics=metrics)
  assert read(folder).runs[0].metrics == {'test/accuracy': 0.5}


def test_dropped_is_what_was_wanted_and_not_granted(folder):
  metrics = {'test/moe/wanted': 2.0, 'test/moe/granted': 1.5}
  chosen = {'steps': 1, 'model': {'moe': {'router': 'experts_choice'}}}
  change(folder / f'{NAMES[0]}.json', metrics=metrics)
  change(folder / f'{NAMES[1]}.json', metrics=metrics, config=chosen)
  first, second, *_ = read(folder).runs
  assert first.metrics['test/moe/dropped'] == 0.25
  assert 'test/moe/dropped' not in second.metrics


@pytest.mark.parametrize(
  ('times', 'why'),
  [
    ({}, "'models' is missing"),
    (
      {'models': {'a': {'train_step_seconds': 0}}},
      "'train_step_seconds' of 'a'",
    ),
    ({'models': {'a': 3}}, "'train_step_seconds' of 'a' is None"),
  ],
)
def test_times_that_are_none_are_left_out(folder, times, why):
  (folder / 'times.json').write_text(json.dumps(times))
  found = read(folder)
  assert found.times == {} and why in found.problems[0]


def test_without_times_there_are_none(folder):
  (folder / 'times.json').unlink()
  found = read(folder)
  assert found.times == {} and found.problems == []
