"""The progress line, with a clock that the tests turn by hand."""

import io

import pytest

from softmoe.training import progress


class Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


class Terminal(io.StringIO):
  def isatty(self):
    return True

  def shown(self):
    """Returns the lines as a terminal shows them: a return starts over."""
    lines = [line.split('\r')[-1] for line in self.getvalue().split('\n')]
    return [line.replace('\x1b[K', '') for line in lines]


def test_rate_excludes_the_first_measured_step(clock):
  bar = progress.Progress(100, 0, 32, 'image', io.StringIO())
  assert bar.units_per_second == 0
  clock.now += 50  # compilation
  bar.update(1, {})
  assert bar.units_per_second == 0
  clock.now += 2
  bar.update(11, {})
  assert bar.units_per_second == 10 * 32 / 2


def test_rate_excludes_pauses(clock):
  bar = progress.Progress(100, 0, 32, 'image', io.StringIO())
  with bar.pause():
    clock.now += 9
  bar.update(1, {})
  clock.now += 1
  with bar.pause():
    clock.now += 70
  clock.now += 1
  bar.update(11, {})
  with bar.pause():
    clock.now += 70
  assert bar.units_per_second == 10 * 32 / 2


def test_pause_ends_when_its_body_raises(clock):
  bar = progress.Progress(100, 0, 32, 'image', io.StringIO())
  bar.update(1, {})
  with pytest.raises(KeyError), bar.pause():
    clock.now += 5
    raise KeyError
  clock.now += 1
  bar.update(2, {})
  assert bar.units_per_second == 32


def test_rate_after_a_resume_counts_new_steps_alone(clock):
  bar = progress.Progress(100, 50, 10, 'image', io.StringIO())
  bar.update(51, {})
  clock.now += 1
  bar.update(53, {})
  assert bar.units_per_second == 20


def test_plain_lines(clock):
  stream = io.StringIO()
  bar = progress.Progress(1000, 0, 100, 'image', stream)
  bar.update(100, {'loss': 2.302585})
  clock.now += 10
  bar.update(200, {'loss': 0.5, 'accuracy': 1})
  bar.message('saved')
  bar.close()
  assert stream.getvalue().splitlines() == [
    'step  100/1000  loss 2.303',
    'step  200/1000  loss 0.5  accuracy 1  images/s 1000  ETA 0:01:20',
    'saved',
  ]


def test_bar_redraws_below_messages(clock):
  stream = Terminal()
  bar = progress.Progress(10, 0, 1, 'image', stream)
  bar.message('before')
  bar.update(5, {'loss': 1})
  clock.now += 1
  bar.update(6, {'loss': 0.5})
  bar.message('saved')
  assert stream.shown() == [
    'before',
    'saved',
    '[############........]  step  6/10  loss 0.5  images/s 1.00  ETA 0:00:04',
  ]
  bar.close()
  assert stream.getvalue().endswith('\n')


def test_bar_fits_the_terminal(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  stream = Terminal()
  bar = progress.Progress(10, 0, 1, 'image', stream)
  bar.update(5, {'loss': 1})
  assert len(stream.shown()[-1]) == 29


def test_disabled_prints_nothing_but_measures(clock):
  stream = io.StringIO()
  bar = progress.Progress(10, 0, 1, 'image', stream, enabled=False)
  bar.update(1, {})
  clock.now += 1
  bar.update(2, {})
  bar.message('saved')
  bar.close()
  assert stream.getvalue() == '' and bar.units_per_second == 1
