"""The other processes of a job: where one ends, all end, each with one line.

A process that fails says so to the others before it goes. One that is killed
says nothing: then a collective fails, or its heartbeats stop. Alone in its job,
a process does nothing here but print and exit.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from softmoe.errors import STOPPED, Lost, UserError
from softmoe.process import jax_internals

_ENDED = 'softmoe/ended'  # key of why the job ended
_FOREVER = 10**9  # milliseconds; the runtime watches over those who wait
_FAREWELL = 5000  # milliseconds for the others to hear why it ended

# How the runtime's errors begin where a process can no longer be reached; those
# of collectives have any status, and name the library and what went wrong.
_LOSS = re.compile(
  r'(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): '
  r'|[A-Z_]+: Barrier failed because: task is set to ERROR: '
  r'|[A-Z_]+: Task \(.*\) is already in error before the barrier was called'
  r'|[A-Z_]+: .*(Gloo|NCCL).* failed: .*(by peer|remote p|network error'
  r'|([Rr]ead|[Ww]rite) error|[Cc]onnect|[Ss]ocket closed|[Tt]imed? ?out)',
  re.DOTALL,
)

# What Orbax raises of its own says so in the middle, and has no cause.
_QUOTED = 'The original error raised was: '

_LENGTH = 300  # of what is shown of an error
_GONE = 'another process of the job ended or cannot be reached'

_ending = threading.Lock()  # whoever takes it ends the process
_watcher: threading.Thread | None = None
_told: list[Callable[[int], None]] = []  # called with the exit code
_on_abort: Any = None  # kept: the C library holds no reference


def is_loss(error: BaseException) -> bool:
  """Tells whether an error comes of another process that is gone.

  The runtime says so, in an error of its own or in the cause of one: whatever
  else raises an error may have the same words in it.
  """
  if jax_internals.num_processes() == 1 or isinstance(error, UserError):
    return False
  return _says_lost(error) or (
    error.__cause__ is not None and is_loss(error.__cause__)
  )


@contextlib.contextmanager
def ending_on_loss() -> Iterator[None]:
  """Ends this process where a collective fails as another one is gone.

  At once: whatever cleans up on the way out may wait for that other one.
  """
  try:
    yield
  except Exception as e:
    if is_loss(e):
      end(STOPPED, str(Lost(f'{_GONE} ({_shortened(e)})')))
    raise


@contextlib.contextmanager
def telling_end(tell: Callable[[int], None]) -> Iterator[None]:
  """Calls `tell` with the exit code if this process ends at once in here.

  Nothing else runs then that waits on the way out.
  """
  _told.append(tell)
  try:
    yield
  finally:
    _told.remove(tell)


def meet(place: str) -> None:
  """Waits until every process is at this place; each place but once."""
  if client := jax_internals.client():
    client.wait_at_barrier(f'softmoe/{place}', _FOREVER)


def from_first(key: str, value: str) -> str:
  """Returns the value that process 0 has for `key`; each key but once."""
  client = jax_internals.client()
  if client is None:
    return value
  if jax.process_index() == 0:
    client.key_value_set(f'softmoe/{key}', value)
    return value
  return client.blocking_key_value_get(f'softmoe/{key}', _FOREVER)


def to_first(key: str, value: str) -> list[str]:
  """Returns what each process has for `key`, to process 0; each key but once.

  The others get an empty list, and wait for nobody.
  """
  client = jax_internals.client()
  if client is None:
    return [value]
  client.key_value_set(f'softmoe/{key}/{jax.process_index()}', value)
  if jax.process_index():
    return []
  return [
    client.blocking_key_value_get(f'softmoe/{key}/{i}', _FOREVER)
    for i in range(jax.process_count())
  ]


def end(code: int, message: str) -> NoReturn:
  """Ends this process, and the others of its job, with one line and `code`."""
  message = ' '.join(message.split())
  client = jax_internals.client()
  if client is None:
    _print(message)
    sys.exit(code)
  _ending.acquire()
  _print(message)
  who = f'process {jax_internals.process_id()}: '
  # Another may have said so before, or nobody can hear it.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    client.key_value_set(_ENDED, json.dumps([code, who + message]))
  _exit(client, code)


def leave() -> None:
  """Waits until all processes are done, so that none takes it for a loss."""
  client = jax_internals.client()
  if client and _watcher:
    meet('done')
    if jax.process_index() == 0:
      client.key_value_set(_ENDED, json.dumps([0, '']))
    _watcher.join()


def watch() -> None:
  """Ends this process as soon as another one says that it ends."""
  global _watcher
  _watcher = threading.Thread(
    target=_watch, args=[jax_internals.client()], daemon=True
  )
  _watcher.start()


@contextlib.contextmanager
def joining(reason: str) -> Iterator[None]:
  """Lets an abort of the runtime in here say `reason`, and no stack of C++."""
  shown = os.dup(2)
  catch_abort(reason, shown)
  with open(os.devnull, 'wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(shown, 2)
    os.close(shown)
    catch_abort()


def catch_abort(reason: str = _GONE, stream: int = 2) -> None:
  """Lets an abort of the distributed runtime end with one line.

  The runtime aborts where a process stays silent. Python sees no such signal,
  as no bytecode runs any more, so this is a handler of the C library.
  """
  global _on_abort

  def on_abort(_: int) -> None:
    os.write(stream, f'error: {Lost(reason)}\n'.encode())
    os._exit(STOPPED)

  _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
  ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _watch(client: Any) -> None:
  try:
    code, message = json.loads(client.blocking_key_value_get(_ENDED, _FOREVER))
  except jax.errors.JaxRuntimeError:
    code, message = STOPPED, str(Lost(_GONE))  # the coordinator is gone
  if code == 0:
    return
  _ending.acquire()
  _print(message)
  _exit(client, code)


def _exit(client: Any, code: int) -> NoReturn:
  """Exits once the others know; process 0 is the one that tells them."""
  for tell in _told:
    tell(code)
  # One may be dead, or too slow to wait for.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    client.wait_at_barrier(_ENDED, _FAREWELL)
  sys.stdout.flush()
  sys.stderr.flush()
  # Not `sys.exit`: the main thread may be waiting for who will never come.
  os._exit(code)


def _print(message: str) -> None:
  print('error:', message, file=sys.stderr)


def _says_lost(error: BaseException) -> bool:
  if isinstance(error, TimeoutError):
    return bool(_LOSS.match(str(error).partition(_QUOTED)[2]))
  # On a CPU the runtime raises its status as a plain ValueError.
  own = isinstance(error, jax.errors.JaxRuntimeError)
  return (own or type(error) is ValueError) and bool(_LOSS.match(str(error)))


def _shortened(error: BaseException) -> str:
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= _LENGTH else text[:_LENGTH] + '...'
