"""A short campaign: nothing is lost, nothing is hidden."""

import json
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nothing_is_lost():
  done = subprocess.run(
    [sys.executable, '-m', 'tests.campaign', '--seconds=120'],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  counts = json.loads(done.stdout.splitlines()[-1])
  assert not any(counts['wrong'].values()), done.stderr
  assert counts['done']['flips found'] > 0
