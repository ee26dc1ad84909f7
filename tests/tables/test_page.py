"""What a person sees of a suite that runs."""

import io
import json

import pytest

from softmoe.tables import page as page_lib


class Terminal(io.StringIO):
  def isatty(self):
    return True


def record(value):
  return {'metrics': {'test/accuracy': value}, 'seconds': 61.7}


@pytest.fixture
def metrics(tmp_path):
  """Returns a function that makes a workdir whose run is at a step."""

  def metrics(name, step, rest=''):
    workdir = tmp_path / name
    workdir.mkdir(exist_ok=True)
    lines = ''.join(json.dumps({'step': s}) + '\n' for s in range(step + 1))
    (workdir / 'metrics.jsonl').write_text(lines + rest)
    return workdir

  return metrics


def test_the_last_step_is_of_the_last_whole_line(metrics, tmp_path):
  assert page_lib.last_step(metrics('a', 20_000)) == 20_000
  assert page_lib.last_step(metrics('a', 3, rest='{"step": 4')) == 3
  assert page_lib.last_step(tmp_path / 'none') == 0
  (tmp_path / 'a' / 'metrics.jsonl').write_text('')
  assert page_lib.last_step(tmp_path / 'a') == 0


def test_plain_lines_where_there_is_no_terminal(metrics):
  stream = io.StringIO()
  page = page_lib.Page('main', 'test/accuracy', stream)
  for name in ('a', 'b', 'c', 'd'):
    page.expect(name, 10)
  page.found('old')
  page.start('a', metrics('a', 0))
  page.show()
  page.finish('a', record(0.5))
  page.fail('b', 'error: of b')
  page.skip('c')
  page.close()
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith(
    'done a: test/accuracy 0.5000 in 0:01:02; 2 done, 3 waiting, 0:00:00 left'
  )
  assert lines[1:3] == [
    'failed b: error: of b',
    'c is in use by another runner: skipped',
  ]
  assert lines[3].startswith('main: 2 done, 1 waiting, 1 failed')
  assert page.failed == {'b': 'error: of b'}


def test_a_page_on_a_terminal_is_drawn_over(metrics):
  stream = Terminal()
  page = page_lib.Page('main', 'test/accuracy', stream)
  page.expect('a', 10)
  page.start('a', metrics('a', 0))
  page.show()
  metrics('a', 5)
  page.show()
  first, second = stream.getvalue().split('\x1b[2F\x1b[J')
  assert first == 'main: 1 running\n  a: step 0/10\n'
  assert second.startswith('main: 1 running, 0:00:00 left\n  a: step 5/10\n')


def test_time_left_counts_what_was_gained_here(metrics, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(page_lib.time, 'monotonic', lambda: now[0])
  stream = Terminal()
  page = page_lib.Page('main', 'test/accuracy', stream)
  for name in ('a', 'b'):
    page.expect(name, 100)
  page.start('a', metrics('a', 40))  # from an earlier start
  metrics('a', 60)
  now[0] = 10.0  # 2 steps a second; 40 and 100 are left
  page.show()
  assert 'main: 1 running, 1 waiting, 0:01:10 left' in stream.getvalue()
  metrics('a', 100)
  page.finish('a', record(0.5))
  assert '1 done, 1 waiting, 0:00:17 left' in stream.getvalue()
