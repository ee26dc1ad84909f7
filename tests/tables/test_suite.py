"""Which runs a suite is made of, and what they are called."""

import operator
import pathlib
import re
import shlex

import pytest

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.process import config_flag
from softmoe.tables import suite

TINY = 'tests/tables/tiny_suite.py'
FILES = sorted(pathlib.Path('configs/suites').glob('*.py'))


def test_all_runs_of_a_seed_come_first():
  names = [run.name for run in suite.load(suite.find(TINY)).runs]
  assert names == [
    'vit-width8-seed0',
    'soft-width8-seed0',
    'vit-width8-seed1',
    'soft-width8-seed1',
  ]


def test_a_point_overrides_what_all_runs_have():
  points = [({'steps': 3}, {'steps': 3})]
  (run,) = suite.product({'ViT': 'a:vit'}, [5], points, {'steps': 2})
  assert (run.name, run.overrides) == ('vit-steps3-seed5', {'steps': 3})


@pytest.mark.parametrize(
  ('config', 'sweep', 'name'),
  [
    ('configs/glyphs.py:soft', {}, 'soft'),
    ('my/own.py', {}, 'own'),
    ('glyphs:soft', {'blocks': 'last 3'}, 'soft-blockslast-3'),
    ('glyphs:vit', {'rate': 0.003, 'decay': 0.1}, 'vit-rate0.003-decay0.1'),
    ('glyphs:vit', {'blocks': (3, 4)}, 'vit-blocks-3-4'),
  ],
)
def test_names_are_names_of_files(config, sweep, name):
  assert suite.Run('M', config, 0, sweep).variant == name


def test_two_runs_of_a_name_are_refused():
  run = suite.Run('M', 'a:b', 0)
  with pytest.raises(UserError, match='b-seed0'):
    suite.Suite('T', runs=(run, run))


def test_a_baseline_that_is_no_model_is_refused():
  with pytest.raises(UserError, match="'Vit'"):
    suite.Suite('T', runs=(suite.Run('ViT', 'a:b', 0),), baseline='Vit')


def test_a_metric_of_another_split_is_refused():
  with pytest.raises(UserError, match='suite.metric'):
    suite.Suite('T', runs=(), metric='val/accuracy', splits=('test',))


def test_an_unknown_suite_is_told_which_there_are():
  with pytest.raises(UserError, match=r"'mian'.*'main'"):
    suite.find('mian')


def test_an_unknown_run_is_told_which_there_are():
  with pytest.raises(UserError, match='--only.*soft-width8-seed0'):
    suite.load(suite.find(TINY)).find('soft')


def test_a_file_without_a_suite_is_refused():
  with pytest.raises(UserError, match='get_suite'):
    suite.load(suite.find('tests/tiny.py'))


def test_a_wrong_field_is_named():
  run = suite.Run('M', 'tests/tiny.py:vit', 0, {}, {'model.widht': 3})
  with pytest.raises(UserError, match='widht'):
    run.load_config()


def test_overrides_of_all_types_reach_the_config():
  changes = {
    'name': 'a b',
    'optimizer.learning_rate': 3e-4,
    'optimizer.weight_decay': (('.*/kernel', 0.05),),
    'model.moe.blocks': (0, 1),
    'model.scan': True,
  }
  run = suite.Run('M', 'tests/tiny.py:soft', 7, {}, changes)
  words = shlex.split(run.command(pathlib.Path('my runs/a')))
  assert (words[:2], words[-1]) == (
    ['python', 'train.py'],
    '--workdir=my runs/a',
  )
  config = config_flag.load(words[2:-1])
  for path, value in ({'seed': 7} | changes).items():
    assert operator.attrgetter(path)(config) == value


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_suites_that_come_along_have_good_configs(path):
  found = suite.load(path)
  for run in found.runs:
    assert run.load_config().seed == run.seed
  for name in found.evaluators:
    assert callable(config_lib.load('evaluators', name))


def test_a_point_may_follow_from_the_run():
  start = suite.start('runs/{argument}{seed}', {'steps': 7})
  models = {'ViT': 'glyphs:vit', 'Soft MoE': 'glyphs:soft'}
  runs = suite.product(models, [3], [({}, start)], {'init': '', 'steps': 5})
  assert [run.overrides for run in runs] == [
    {'init': 'runs/vit3', 'steps': 7},
    {'init': 'runs/soft3', 'steps': 7},
  ]


def test_the_documentation_counts_the_runs():
  text = (pathlib.Path(__file__).parents[2] / 'docs/suites.md').read_text()
  row = re.compile(r'^\| `(\w+)` \|.*\| (\d+) \|$', re.MULTILINE)
  told = dict(row.findall(text))
  runs = {path.stem: str(len(suite.load(path).runs)) for path in FILES}
  assert told == runs
