"""Every command without a config says how it is called."""

import importlib

import pytest

from softmoe.errors import UserError
from softmoe.tables import __main__ as tables

MODULES = (
  'softmoe.tables.__main__',
  'softmoe.tables.curves',
  'softmoe.tables.results',
  'softmoe.data.prepare.__main__',
  'softmoe.data.text.tokenize',
  'softmoe.data.text.train_tokenizer',
)


@pytest.mark.parametrize('module', MODULES)
def test_a_command_helps(module, capsys):
  with pytest.raises(SystemExit) as end:
    importlib.import_module(module).main(['--help'])
  assert end.value.code == 0
  shown = capsys.readouterr()
  assert shown.out.startswith('usage: softmoe.') and shown.err == ''


@pytest.mark.parametrize('table', tables.TABLES)
def test_a_table_helps(table, capsys):
  with pytest.raises(SystemExit) as end:
    tables.main([table, '--help'])
  assert end.value.code == 0
  assert capsys.readouterr().out.startswith(f'usage: softmoe.tables {table}')


@pytest.mark.parametrize('argv', [[], ['costs'], ['--hepl']])
def test_no_table_is_told_the_names(argv):
  with pytest.raises(UserError, match='TABLE|arguments'):
    tables.main(argv)


@pytest.mark.parametrize('module', MODULES[1:])
def test_missing_arguments_are_named(module):
  with pytest.raises(UserError, match='arguments: got .*required'):
    importlib.import_module(module).main([])
