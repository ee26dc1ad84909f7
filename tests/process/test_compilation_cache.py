"""What is compiled stays on disk, in a folder of the user's."""

import os
import types

import jax
import pytest

from softmoe.process import compilation_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
  """Returns the folder of caches, which is empty."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', False)
  return tmp_path


@pytest.fixture
def updates(monkeypatch):
  """Returns what is set of JAX's config, where no cache is named yet."""
  updates = {'jax_compilation_cache_dir': None}
  config = types.SimpleNamespace(values=updates, update=updates.__setitem__)
  monkeypatch.setattr(jax, 'config', config)
  return updates


def test_a_folder_of_the_users_is_made_and_named(home, updates):
  compilation_cache.keep()
  (folder,) = (home / 'softmoe' / 'compiled').iterdir()
  assert updates['jax_compilation_cache_dir'] == str(folder)
  assert updates['jax_persistent_cache_min_compile_time_secs'] < 1
  assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('named', ['/elsewhere', ''])
def test_a_named_folder_stays_and_so_does_none(home, updates, named):
  updates['jax_compilation_cache_dir'] = named
  compilation_cache.keep()
  assert updates == {'jax_compilation_cache_dir': named}
  assert not any(home.iterdir())


def test_what_is_set_of_seconds_stays(home, updates, monkeypatch):
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '5')
  compilation_cache.keep()
  assert set(updates) == {'jax_compilation_cache_dir'}


def test_no_folder_can_be_had(home, updates):
  (home / 'softmoe').write_text('a file')
  compilation_cache.keep()
  assert updates == {'jax_compilation_cache_dir': None}


def test_a_user_without_a_home_keeps_nothing(home, updates, monkeypatch):
  def nowhere():
    raise RuntimeError

  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(compilation_cache.pathlib.Path, 'home', nowhere)
  compilation_cache.keep()
  assert updates == {'jax_compilation_cache_dir': None}


def test_machines_that_differ_share_nothing(home, updates, monkeypatch):
  for processor in ('this one', 'another'):
    updates['jax_compilation_cache_dir'] = None
    monkeypatch.setattr(
      compilation_cache.platform, 'processor', lambda p=processor: p
    )
    compilation_cache.keep()
  assert len(list((home / 'softmoe' / 'compiled').iterdir())) == 2


def test_the_oldest_go_where_there_are_too_many(home, updates, monkeypatch):
  compilation_cache.keep()
  folder = next((home / 'softmoe' / 'compiled').iterdir())
  for age in range(6):
    path = folder / f'{age}-cache'
    path.write_bytes(bytes(10))
    os.utime(path, (1000 - age, 1000 - age))
  monkeypatch.setattr(compilation_cache, 'MOST_BYTES', 60)
  updates['jax_compilation_cache_dir'] = None
  compilation_cache.keep()
  assert len(list(folder.iterdir())) == 6, 'all of them have room'
  monkeypatch.setattr(compilation_cache, 'MOST_BYTES', 50)
  updates['jax_compilation_cache_dir'] = None
  compilation_cache.keep()
  assert {p.name for p in folder.iterdir()} == {'0-cache', '1-cache'}
