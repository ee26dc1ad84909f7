"""Metric lines and TensorBoard events, before and after a kill."""

import json
import math
import pathlib
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from softmoe.errors import WriteFailed
from softmoe.runs import disk
from softmoe.training import writers


def read_lines(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def read_records(workdir):
  """Yields the events of all files; each is behind its length."""
  for path in sorted(workdir.glob('events.out.tfevents.*')):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def read_events(workdir):
  """Returns (step, tag, value) of each scalar."""
  return [
    (event.step, value.tag, value.simple_value)
    for event in read_records(workdir)
    for value in event.summary.value
  ]


def test_writes_lines_and_events(tmp_path):
  workdir = tmp_path / 'made' / 'for it'
  writer = writers.MetricWriter(workdir)
  writer.write_scalars(1, {'loss': jnp.float32(0.5), 'rate': 1})
  writer.write_scalars(2, {'loss': 0.25})
  writer.close()
  assert read_lines(workdir) == [
    {'step': 1, 'loss': 0.5, 'rate': 1.0},
    {'step': 2, 'loss': 0.25},
  ]
  assert read_events(workdir) == [
    (1, 'loss', 0.5),
    (1, 'rate', 1.0),
    (2, 'loss', 0.25),
  ]


def test_a_line_is_on_disk_at_once(tmp_path):
  """What was written must outlive a kill that leaves no time to flush."""
  writer = writers.MetricWriter(tmp_path)
  writer.write_scalars(1, {'loss': 0.5})
  assert read_lines(tmp_path) == [{'step': 1, 'loss': 0.5}]
  writer.close()


def test_float32_survives_the_round_trip(tmp_path):
  value = jnp.float32(1) / 3
  writer = writers.MetricWriter(tmp_path)
  writer.write_scalars(0, {'x': value})
  writer.close()
  assert jnp.float32(read_lines(tmp_path)[0]['x']) == value


def test_numbers_that_are_not_finite_are_valid_json(tmp_path):
  writer = writers.MetricWriter(tmp_path)
  writer.write_scalars(0, {'a': math.nan, 'b': math.inf, 'c': -math.inf})
  writer.close()
  (row,) = read_lines(tmp_path)
  assert row == {'step': 0, 'a': 'NaN', 'b': 'Infinity', 'c': '-Infinity'}
  assert math.isnan(float(row['a'])) and float(row['c']) == -math.inf


def test_resume_drops_what_came_after_and_a_torn_line(tmp_path):
  writer = writers.MetricWriter(tmp_path)
  for step in range(1, 5):
    writer.write_scalars(step, {'loss': step})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 5, "lo')
  writer = writers.MetricWriter(tmp_path, resume_step=2)
  writer.write_scalars(3, {'loss': 30})
  writer.close()
  assert read_lines(tmp_path) == [
    {'step': 1, 'loss': 1.0},
    {'step': 2, 'loss': 2.0},
    {'step': 3, 'loss': 30.0},
  ]
  assert {p.suffix for p in tmp_path.glob('metrics*')} == {'.jsonl'}


def test_resume_tells_tensorboard_what_to_drop(tmp_path):
  writers.MetricWriter(tmp_path, resume_step=2).close()
  logs = [e for e in read_records(tmp_path) if e.HasField('session_log')]
  start = event_pb2.SessionLog.START
  assert [(e.step, e.session_log.status) for e in logs] == [(3, start)]


def test_torn_number_is_dropped(tmp_path):
  """A line cut inside its last number would be valid JSON with a brace."""
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}')
  writers.MetricWriter(tmp_path, resume_step=2).close()
  assert read_lines(tmp_path) == [{'step': 1, 'loss': 0.5}]


def test_without_resume_step_nothing_is_dropped(tmp_path):
  for step in (1, 2):
    writer = writers.MetricWriter(tmp_path)
    writer.write_scalars(step, {'loss': 0})
    writer.close()
  assert [row['step'] for row in read_lines(tmp_path)] == [1, 2]


def test_a_full_disk_is_told_to_whoever_writes(tmp_path):
  """Of the events too, which once a thread of their own wrote."""
  for number, name in enumerate(['metrics.jsonl', 'events.out.tfevents']):
    writer = writers.MetricWriter(tmp_path)
    file = (writer._lines, writer._events)[number]
    file._file.close()
    file._file = disk.Log(pathlib.Path('/dev/full'))._file
    with pytest.raises(WriteFailed, match=f'{name}.*No space left on device'):
      for step in range(100):
        writer.write_scalars(step, {'loss': 1.0})
    writer.close()


def test_binary_rubbish_is_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "loss": 0.5}\n\xff\xfe\0\n')
  writers.MetricWriter(tmp_path, resume_step=2).close()
  assert read_lines(tmp_path) == [{'step': 1, 'loss': 0.5}]


def test_disabled_writer_touches_nothing(tmp_path):
  writer = writers.MetricWriter(tmp_path / 'workdir', enabled=False)
  writer.write_scalars(1, {'loss': 0.5})
  writer.sync()
  writer.close()
  assert not list(tmp_path.iterdir())
