"""Which errors are another process's end, and what is said of them."""

import jax
import pytest

from softmoe.errors import STOPPED, UserError
from softmoe.process import jax_internals, peers

# As the runtimes print them.
LOST = [
  ValueError(
    'UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc'
    ':538] Read error [127.0.0.1]:49847: Connection reset by peer'
  ),
  jax.errors.JaxRuntimeError(
    'INTERNAL: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair'
    '.cc:547] Connection closed by peer [127.0.0.1]:44233'
  ),
  jax.errors.JaxRuntimeError(
    'INTERNAL: external/xla/xla/service/gpu/nccl_utils.cc:216: NCCL operation '
    'async_err failed: remote process exited or there was a network error'
  ),
  jax.errors.JaxRuntimeError(
    'INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task '
    '1 heartbeat timeout. This indicates that the remote task has failed.'
  ),
  jax.errors.JaxRuntimeError(
    'INTERNAL: Task (1) is already in error before the barrier was called. '
    'Barrier Id: b5/11::0 Task error: UNAVAILABLE: Task 1 heartbeat timeout.'
  ),
  TimeoutError(
    "Timeout waiting at barrier '[op=2] sync'. The original error raised was: "
    'INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task '
    '1 heartbeat timeout.'
  ),
  jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect to all addresses'),
  jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out. Id: a::0.'),
]
OTHER = [
  UserError('config.name', 'NCCL', 'UNAVAILABLE: another'),
  ValueError('the name of a config is NCCL, UNAVAILABLE or ABORTED'),
  KeyError('UNAVAILABLE: a key'),
  RuntimeError('ABORTED: by a library'),
  OSError('CANCELLED: a read'),
  TimeoutError('UNAVAILABLE: a server of another kind'),
  jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Out of memory; not ABORTED: '
  ),
  jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Gloo has no such type'),
  jax.errors.JaxRuntimeError(
    'INTERNAL: external/xla/xla/service/gpu/nccl_utils.cc:275: NCCL operation '
    'ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled cuda error'
  ),
]


@pytest.fixture
def job(monkeypatch):
  """Makes this process one of two, without a link to the other."""
  monkeypatch.setattr(jax_internals, 'num_processes', lambda: 2)


@pytest.mark.parametrize('error', LOST, ids=str)
def test_a_loss_is_one_of_several_processes(error, monkeypatch):
  assert not peers.is_loss(error)
  monkeypatch.setattr(jax_internals, 'num_processes', lambda: 2)
  assert peers.is_loss(error)


@pytest.mark.parametrize('error', OTHER, ids=str)
def test_an_error_with_such_words_is_no_loss(job, error):
  assert not peers.is_loss(error)
  with pytest.raises(type(error)), peers.ending_on_loss():
    raise error


def test_a_library_may_wrap_a_loss_but_a_user_error_is_none(job):
  wrapped = TimeoutError('Timed out while waiting for a barrier.')
  wrapped.__cause__ = LOST[-1]
  assert peers.is_loss(wrapped)
  user = UserError('--coordinator', 'host:1', 'a free port')
  user.__cause__ = LOST[-1]
  assert not peers.is_loss(user)


def test_a_loss_keeps_its_own_text_in_one_line(job, capsys):
  text = f'UNAVAILABLE: no route\n to {"x" * 1000}'
  with pytest.raises(SystemExit) as e, peers.ending_on_loss():
    raise jax.errors.JaxRuntimeError(text)
  assert e.value.code == STOPPED
  (line,) = capsys.readouterr().err.splitlines()
  assert 'JaxRuntimeError: UNAVAILABLE: no route to xxx' in line
  assert line.endswith(
    '...); the same command goes on from the last checkpoint'
  )
  assert len(line) < 500
