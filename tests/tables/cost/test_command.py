"""`python -m softmoe.tables`, as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from softmoe.errors import UserError
from softmoe.tables import __main__ as main


def tables(*arguments):
  environment = os.environ | {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  return subprocess.run(
    [sys.executable, '-m', 'softmoe.tables', *arguments],
    env=environment,
    capture_output=True,
    text=True,
  )


def test_an_unknown_command_is_one_line():
  done = tables('costs')
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert "got 'costs'; one of [" in line and "'cost'" in line


def test_no_command_is_one_line():
  with pytest.raises(UserError, match="got ''; one of"):
    main.main([])


@pytest.mark.slow
def test_json_and_markdown():
  done = tables('cost', '--table=1', '--json')
  assert done.returncode == 0, done.stderr
  printed = json.loads(done.stdout)
  assert list(printed['tables']) == ['1'] and len(printed['tables']['1']) == 8
  assert {'jax', 'flax', 'softmoe', 'python'} == set(printed['versions'])


@pytest.mark.parametrize('argument', ['--table=2', '--tabel=9', '9'])
def test_a_wrong_argument_is_an_error(argument):
  with pytest.raises(UserError, match="softmoe.tables cost'; .*(2|9)"):
    main.main(['cost', argument])
