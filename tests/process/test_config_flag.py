"""Which file `--config` means."""

import pathlib

import pytest

from softmoe.errors import UserError
from softmoe.process import config_flag

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('argument', ['', ':soft', ':a:b'])
def test_a_name_is_a_config_that_comes_along(argument, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = config_flag.find('config', f'quickstart{argument}')
  assert found == f'{CONFIGS / "quickstart.py"}{argument}'


@pytest.mark.parametrize(
  'given', ['', ':soft', 'quickstart.py:soft', 'no/such', '/no']
)
def test_a_path_stays(given):
  assert config_flag.find('config', given) == given


def test_a_file_goes_before_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cifar10').mkdir()
  (tmp_path / 'quickstart').write_text('')
  assert config_flag.find('config', 'quickstart:vit') == 'quickstart:vit'
  assert config_flag.find('config', 'cifar10') == str(CONFIGS / 'cifar10.py')


def test_an_unknown_name_is_told_the_names():
  with pytest.raises(UserError) as e:
    config_flag.find('compare', 'quickstrat:soft')
  assert str(e.value).startswith("--compare: got 'quickstrat'; a file, or one")
  for path in CONFIGS.glob('*.py'):
    assert repr(path.stem) in str(e.value)


def test_configs_inside_the_package_go_first(tmp_path, monkeypatch):
  package = tmp_path / 'softmoe'
  for folder in (tmp_path / 'configs', package / 'configs'):
    folder.mkdir(parents=True)
    (folder / 'x.py').write_text('')
  monkeypatch.setattr(
    config_flag, '__file__', str(package / 'process' / 'config_flag.py')
  )
  assert config_flag.find('config', 'x') == str(package / 'configs' / 'x.py')


def test_a_tuple_that_is_given_again_is_the_last_one():
  config = config_flag.load(
    [
      '--config=tests/tiny.py:soft',
      '--config.model.moe.blocks=(0,)',
      '--config.seed=3',
      '--config.model.moe.blocks=(1,)',
      '--config.seed=4',
    ]
  )
  assert config.model.moe.blocks == (1,)
  assert config.seed == 4
