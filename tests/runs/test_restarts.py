"""Starts that are lost are counted, until there were too many."""

import jax
import pytest

from softmoe.errors import BAD_INPUT, FAILED, STOPPED, Diverged, GaveUp
from softmoe.process import launch, peers
from softmoe.runs import restarts


@pytest.fixture(autouse=True)
def chief(monkeypatch):
  """Makes this process the first of two."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 0)


def end_at_once(workdir, step, *code):
  """Leaves what a start leaves that ends without another line of Python.

  Returns whether it counts as lost.
  """
  path = workdir / '.restarts.json'
  with restarts.counting(workdir, step):
    for tell in peers._told:
      for each in code:  # none of a process that is killed
        tell(each)
    left = path.read_text() if path.exists() else ''
  if left:
    path.write_text(left)
  return bool(left)


def lose(workdir, step):
  assert end_at_once(workdir, step, STOPPED)


def test_the_fourth_start_gives_up_and_the_next_counts_anew(tmp_path):
  for _ in range(3):
    lose(tmp_path, 4)
  with pytest.raises(GaveUp, match='3 starts in a row .* step 4'):
    lose(tmp_path, 4)
  lose(tmp_path, 4)


def test_giving_up_is_one_line_and_no_code_to_start_again(tmp_path, capsys):
  for _ in range(3):
    lose(tmp_path, 0)
  with pytest.raises(SystemExit) as e:
    launch.guard(lambda: lose(tmp_path, 0))
  assert e.value.code == FAILED
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: gave up: 3 starts in a row were lost')


def test_a_killed_process_is_counted_too(tmp_path):
  for _ in range(3):
    assert end_at_once(tmp_path, 0)
  with pytest.raises(GaveUp):
    end_at_once(tmp_path, 0)


def test_a_step_gained_counts_anew(tmp_path):
  for step in (0, 0, 0, 2, 2, 2, 4, 4, 4):
    lose(tmp_path, step)


@pytest.mark.parametrize('code', [BAD_INPUT, FAILED])
def test_an_end_that_is_no_loss_counts_anew(tmp_path, code):
  lose(tmp_path, 0)
  lose(tmp_path, 0)
  assert not end_at_once(tmp_path, 0, code)
  for _ in range(3):
    lose(tmp_path, 0)


@pytest.mark.parametrize('error', [Diverged, KeyboardInterrupt, SystemExit])
def test_an_exception_counts_anew(tmp_path, error):
  with pytest.raises(error), restarts.counting(tmp_path, 0):
    raise error
  assert list(tmp_path.iterdir()) == []


def test_a_finished_run_leaves_nothing(tmp_path):
  with restarts.counting(tmp_path, 3) as start:
    assert start == 3
    assert list(tmp_path.iterdir())
  assert list(tmp_path.iterdir()) == []
  assert peers._told == []


@pytest.mark.parametrize('count, index', [(1, 0), (2, 1)])
def test_only_the_first_of_several_counts(tmp_path, monkeypatch, count, index):
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  for _ in range(5):
    assert not end_at_once(tmp_path, 0)
  assert list(tmp_path.iterdir()) == []
