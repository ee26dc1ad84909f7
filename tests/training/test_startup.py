"""What a process did until its first step."""

import os
import subprocess
import sys
import time

from softmoe.training import startup as startup_lib


def test_parts_are_told_in_their_order_and_add_up(monkeypatch):
  now = iter([12.0, 15.0, 15.5])
  monkeypatch.setattr(startup_lib.time, 'monotonic', lambda: next(now))
  startup = startup_lib.Startup(began=10.0)
  for part in ('imports', 'data', 'trace'):
    startup.done(part)
  assert startup.text() == (
    'first step after 5.5 s: imports 2.0, data 3.0, trace 0.5'
  )


def test_it_begins_with_the_process_even_a_replaced_one():
  code = (
    'import os, sys, time; time.sleep(1);'
    'sys.argv[1:] or os.execv(sys.executable, [*sys.orig_argv, "again"]);'
    'from softmoe.training import startup; s = startup.Startup();'
    's.done("all"); print(s.text())'
  )
  start = time.monotonic()
  told = subprocess.check_output([sys.executable, '-c', code], text=True)
  longest = time.monotonic() - start
  seconds = float(told.split()[3])
  # A tick of the system's clock may be missing.
  assert 2.0 - 2 / os.sysconf('SC_CLK_TCK') - 0.1 <= seconds <= longest + 0.1


def test_a_system_that_does_not_say(monkeypatch):
  def read_text(_):
    raise FileNotFoundError

  monkeypatch.setattr(startup_lib.pathlib.Path, 'read_text', read_text)
  startup = startup_lib.Startup()
  startup.done('all')
  assert startup.text() == 'first step after 0.0 s: all 0.0'
