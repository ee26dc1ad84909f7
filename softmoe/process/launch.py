"""From a shell to `main`: environment, flags, and errors as one line.

Imports neither JAX nor Flax at the top: the process is replaced first where
its environment must change.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from softmoe.errors import (
  BAD_INPUT,
  FAILED,
  STOPPED,
  Diverged,
  GaveUp,
  Lost,
  Stopped,
  UserError,
  WriteFailed,
)
from softmoe.process import config_flag

MOST_DEVICES = 256  # of one CPU: JAX makes a thread for each of them
# Of a GPU's memory, that a process takes: the rest is CUDA's and NCCL's. JAX by
# itself takes three quarters.
GPU_SHARE = 0.92
_SHARES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
_WEEK = 7 * 24 * 3600  # seconds
_LESS = 'of which a smaller batch, more devices or model.remat need less'
_HUGE_PAGES = 'glibc.malloc.hugetlb'
# Huge pages, and memory that is freed stays: one heap that grows and never
# shrinks, in which large arrays are as well.
HEAP = ':'.join(
  (
    f'{_HUGE_PAGES}=1',
    'glibc.malloc.arena_max=1',
    'glibc.malloc.mmap_max=0',
    f'glibc.malloc.trim_threshold={1 << 40}',
  )
)

_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices',
  0,
  'Number of devices that the CPU shows itself as; 0: the largest power of two '
  'that is not above the number of cores.',
  lower_bound=0,
  upper_bound=MOST_DEVICES,
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of process 0; SLURM, Kubernetes and Cloud TPU need no such flags.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes that run this command together.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, from 0.'
)
_JOIN_SECONDS = flags.DEFINE_integer(
  'join_seconds',
  300,
  'How long to wait for the other processes at the start.',
  lower_bound=1,
  upper_bound=_WEEK,
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  'heartbeat_seconds',
  30,
  'A process that is silent for so long is dead, and the others end.',
  lower_bound=5,
  upper_bound=_WEEK,
)


def run(main: Callable[[], Any], alone: bool = False) -> None:
  """Parses the flags, runs `main` and prints what it returns as JSON.

  Errors become exit codes. Of several processes the first one prints.

  Args:
    main: returns what is to be printed; None: nothing is.
    alone: whether to be one process, whatever the environment says of a job.
  """
  keep_heap()
  share_gpus()
  _be_main(main.__module__)
  logging.set_verbosity(logging.WARNING)
  app.run(
    lambda _: guard(lambda: _start(main, alone)), flags_parser=parse_flags
  )


def keep_heap() -> None:
  """Starts the process anew with a heap on huge pages that is never given back.

  The C library reads its settings once, at the start. A step asks for its
  temporaries anew and would wait for fresh pages of zeros;
  `benchmarks/cpu_placement.py` shows what this is worth. Whoever sets huge
  pages, on or off, decides about all of it.
  """
  settings = os.environ.get('GLIBC_TUNABLES', '')
  if sys.platform != 'linux' or _HUGE_PAGES in settings:
    return
  own = [settings] if settings else []
  os.environ['GLIBC_TUNABLES'] = ':'.join([*own, HEAP])
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare() -> None:
  """Readies a command that is one process and has no flags of the launcher."""
  from softmoe.process import compilation_cache

  keep_heap()
  share_gpus()
  use_cores()
  compilation_cache.keep()


def share_gpus() -> None:
  """Sets the share of a GPU's memory, which JAX reads when its backend starts.

  Whoever sets one, by its old name or the new, decides.
  """
  if not any(os.environ.get(name) for name in _SHARES):
    os.environ[_SHARES[0]] = str(GPU_SHARE)


def use_cores(devices: int = 0) -> None:
  """Shows JAX one device a core: element-wise work then runs on each of them.

  The CPU is there beside an accelerator, since costs are counted on it.

  Args:
    devices: another number of them.
  """
  import jax

  devices = devices or 1 << (len(cores()).bit_length() - 1)
  jax.config.update('jax_num_cpu_devices', devices)
  platforms = jax.config.values['jax_platforms']
  if platforms and 'cpu' not in platforms.split(','):
    jax.config.update('jax_platforms', f'{platforms},cpu')


def cores() -> list[int]:
  """Returns the cores that this process may run on."""
  if sys.platform == 'linux':
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; one that is wrong ends the process."""
  for argument in argv:
    _check_text(argument)
  try:
    rest = flags.FLAGS(config_flag.last_of_each(argv))
  except config_flag.ERRORS as e:
    _fail(config_flag.explain(e), BAD_INPUT)
  if rest[1:]:
    _fail(f'{rest[1]!r} is no flag; flags look like --name=value', BAD_INPUT)
  return rest


def _check_text(argument: str) -> None:
  """Ends the process if an argument is no text: a save to such a path hangs."""
  try:
    argument.encode()
  except UnicodeEncodeError:
    _fail(f'{argument!r} has bytes that are not UTF-8', BAD_INPUT)


def guard(main: Callable[[], Any]) -> None:
  """Runs `main`; what a user should read ends the process with one line."""
  from softmoe.process import peers

  try:
    with peers.ending_on_loss():
      main()
  except UserError as e:
    peers.end(BAD_INPUT, str(e))
  except (Diverged, GaveUp, WriteFailed) as e:
    peers.end(FAILED, str(e))
  except Lost as e:
    peers.end(STOPPED, str(e))
  except Stopped as e:
    print(e, file=sys.stderr)
    peers.leave()
    sys.exit(STOPPED)
  except Exception as e:
    if _is_out_of_memory(e):
      problem = f'{type(e).__name__}: {e}'.splitlines()[0]
      peers.end(BAD_INPUT, f'out of memory, {_LESS} ({problem})')
    traceback.print_exc()
    peers.end(FAILED, f'{type(e).__name__}: {e}')


def _is_out_of_memory(error: Exception) -> bool:
  """Tells whether the memory of the host or of a device was too small."""
  text = str(error)
  return isinstance(error, MemoryError) or text.startswith('RESOURCE_EXHAUSTED')


def _be_main(module: str) -> None:
  """Gives a console script what `python -m MODULE` has.

  The current folder is searched for modules, and --help shows the flags of the
  module, whatever file the process began with.
  """
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  for flag in flags.FLAGS.get_flags_for_module(module):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  started = sys.modules['__main__']
  started.__doc__ = started.__doc__ or sys.modules[module].__doc__


def _start(main: Callable[[], Any], alone: bool) -> None:
  import jax

  from softmoe.process import compilation_cache, distributed, peers

  use_cores(_CPU_DEVICES.value)
  flags_ = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  job = None if alone else distributed.find(*flags_)
  if job:
    distributed.join(job, _JOIN_SECONDS.value, _HEARTBEAT_SECONDS.value)
  elif not alone:
    compilation_cache.keep()
  result = main()
  peers.leave()
  if result is not None and jax.process_index() == 0:
    print(json.dumps(result))


def _fail(message: str, code: int) -> NoReturn:
  print('error:', ' '.join(message.split()), file=sys.stderr)
  sys.exit(code)
