"""A failed save prints one line: what libraries add is kept back."""

import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent("""
  import asyncio
  import gc
  import time

  import tensorstore

  {}

  async def wait_for(future):
    await future

  loop = asyncio.new_event_loop()
  promise, future = tensorstore.Promise.new()
  task = loop.create_task(wait_for(future))
  loop.run_until_complete(asyncio.sleep(0.01))
  loop.close()
  promise.set_result(1)
  time.sleep(0.1)

  class Bad:
    def __del__(self):
      raise ValueError('of our own')

  Bad()
  gc.collect()
""")


def printed(start):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM.format(start)],
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stderr


def test_what_ends_after_its_event_loop_is_not_told():
  quiet = 'from softmoe.runs import noise; noise.quiet()'
  assert 'Event loop is closed' in printed('')
  assert 'Event loop is closed' not in printed(quiet)
  assert 'of our own' in printed(quiet)
