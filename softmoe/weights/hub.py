"""The Hugging Face Hub, where `huggingface_hub` is installed."""

import importlib
import pathlib
import re
from typing import Any

from softmoe.errors import UserError

SCHEME = 'hf://'
_NAME = re.compile(r'hf://([\w.-]+/[\w.-]+)(?:/([\w./-]+?))?(?:@([\w./-]+))?')
_WANTED = ('*.safetensors', '*.json')


def library(field: str, given: str) -> Any:
  """Returns `huggingface_hub`.

  Raises:
    UserError: it is not installed; it names `field`.
  """
  try:
    return importlib.import_module('huggingface_hub')
  except ImportError as e:
    expected = 'a file, or first: pip install huggingface_hub'
    raise UserError(field, given, expected) from e


def locate(name: str) -> pathlib.Path:
  """Returns where a file or folder is, after it was fetched if it has to be.

  Args:
    name: a path, or as `fetch` takes it.

  Raises:
    UserError: as `fetch`.
  """
  if name.startswith(SCHEME):
    return fetch(name)
  return pathlib.Path(name).expanduser()


def fetch(name: str) -> pathlib.Path:
  """Returns where a file or folder of the Hub now is on this machine.

  Args:
    name: 'hf://OWNER/NAME[/FILE][@REVISION]'; without a file, the folder.

  Raises:
    UserError: the name or the library is wrong, or it cannot be fetched.
  """
  match = _NAME.fullmatch(name)
  if not match:
    expected = "'hf://OWNER/NAME[/FILE][@REVISION]'"
    raise UserError('weights', name, expected)
  hub = library('weights', name)
  repository, file, revision = match.groups()
  try:
    if file:
      found = hub.hf_hub_download(repository, file, revision=revision)
    else:
      found = hub.snapshot_download(
        repository, revision=revision, allow_patterns=list(_WANTED)
      )
  except Exception as e:  # of the network, of the Hub, of the cache
    raise UserError('weights', name, _told(e)) from e
  return pathlib.Path(found)


def push(folder: pathlib.Path, name: str) -> str:
  """Uploads a folder as a model of the Hub, and returns where it is.

  Args:
    folder: what `export` wrote.
    name: 'OWNER/NAME'; it is made if there is none.

  Raises:
    UserError: the library is not installed, or the Hub refuses.
  """
  hub = library('--push', name)
  try:
    hub.create_repo(name, exist_ok=True)
    return str(hub.upload_folder(repo_id=name, folder_path=str(folder)))
  except Exception as e:
    raise UserError('--push', name, _told(e)) from e


def _told(error: Exception) -> str:
  problem = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
  return f'a repository that can be reached ({problem})'
