"""Runs that differ in the seed alone, and their baseline."""

import json

import pytest

from softmoe.tables import suite
from softmoe.tables.report.numbers import groups, runs
from tests.tables.report import made_up


def collect(tmp_path, of):
  folder = made_up.write(tmp_path / 'made_up', of)
  names = [run.name for run in of.runs]
  return groups.collect(runs.read(folder, 'made_up', names))


def test_models_of_one_sweep_stand_beside_each_other(tmp_path):
  found = collect(tmp_path, made_up.suite(('vit', 'soft')))
  labels = [group.label for group in found]
  assert labels == [
    'vit, width 32',
    'soft, width 32',
    'vit, width 64',
    'soft, width 64',
  ]
  assert [len(group.runs) for group in found] == [3] * 4
  assert found[0].expected == 3 and found[0].times['examples'] == 256


def test_the_baseline_is_that_of_the_same_width(tmp_path):
  found = collect(tmp_path, made_up.suite(('vit', 'soft')))
  vit32, soft32, vit64, soft64 = found
  assert groups.baseline_of(soft32, found, 'vit') is vit32
  assert groups.baseline_of(soft64, found, 'vit') is vit64
  assert groups.baseline_of(vit64, found, 'vit') is None
  assert groups.baseline_of(soft64, found, '') is None


def test_a_field_that_the_baseline_has_not_does_not_count(tmp_path):
  swept = [
    suite.Run('vit', 'x:vit', 0),
    suite.Run('soft', 'x:soft', 0, {'experts': 16}),
    suite.Run('soft', 'x:soft', 0, {'experts': 8}),
  ]
  of = suite.Suite('x', tuple(swept), 'vit')
  found = collect(tmp_path, of)
  assert [groups.baseline_of(g, found, 'vit') for g in found] == [
    None,
    found[0],
    found[0],
  ]
  assert groups.fields(found) == {'experts': [8, 16]}


def test_what_the_models_name_says_is_no_setting_of_it(tmp_path):
  swept = [
    suite.Run(f'soft, scale {s}', 'x:soft', 0, {'scale': s, 'steps': steps})
    for steps in (10, 20)
    for s in (1, 4)
  ]
  found = collect(tmp_path, suite.Suite('x', tuple(swept), 'soft, scale 1'))
  assert [group.label for group in found] == [
    'soft, scale 1, steps 10',
    'soft, scale 4, steps 10',
    'soft, scale 1, steps 20',
    'soft, scale 4, steps 20',
  ]
  bases = [groups.baseline_of(g, found, 'soft, scale 1') for g in found]
  assert bases == [None, found[0], None, found[2]]


def test_a_value_that_some_seeds_lack(tmp_path):
  of = made_up.suite(('vit',), (32,))
  folder = made_up.write(tmp_path / 'made_up', of)
  path = folder / f'{of.runs[1].name}.json'
  facts = json.loads(path.read_text())
  del facts['metrics']['faces/accuracy']
  path.write_text(json.dumps(facts))
  names = [run.name for run in of.runs]
  (group,) = groups.collect(runs.read(folder, 'made_up', names))
  assert set(group.values('faces/accuracy')) == {0, 2}
  assert group.estimate('faces/accuracy').n == 2
  assert group.estimate('nothing') is None


@pytest.mark.parametrize(
  ('field', 'words'),
  [('model.moe.scale_init', 'scale init'), ('width', 'width')],
)
def test_a_field_in_words(field, words):
  assert groups.short(field) == words
