"""The packages that `english` is made of, and how each is read."""

import functools
import gzip
import pathlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

from softmoe.data.prepare.corpora import dictionary, markup, pod
from softmoe.data.text import paths
from softmoe.errors import UserError

Blocks = dict[str, list[markup.Block]]


class Manual(NamedTuple):
  """A package, or a part of it.

  Attributes:
    package: its name.
    licence: of its text.
    folder: what is read, with all below it.
    suffix: of the files.
    read: from a file's content to its documents, by names within the file.
    left_out: names of folders and files that are not read.
  """

  package: str
  licence: str
  folder: pathlib.Path
  suffix: str
  read: Callable[[str], Blocks]
  left_out: frozenset[str] = frozenset()


def files(manual: Manual) -> list[pathlib.Path]:
  """Returns the files of a manual, by path.

  Raises:
    UserError: there is none.
  """
  found = paths.below(manual.folder, manual.suffix, manual.left_out)
  found = [path for path in found if path.name not in manual.left_out]
  if not found:
    expected = (
      f'a folder of {manual.package} of Debian 12 with *{manual.suffix}'
    )
    raise UserError('files', str(manual.folder), expected)
  return found


def documents(manual: Manual, path: pathlib.Path) -> Blocks:
  """Returns the documents of a file, by its path and what it calls them.

  The path begins with the folder's name. A file `*.dz` is unpacked.

  Raises:
    UserError: it is damaged.
  """
  content = path.read_bytes()
  if path.suffix == '.dz':
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
      expected = f'the file of {manual.package}, undamaged: install it again'
      raise UserError('files', str(path), f'{expected} ({e})') from e
  found = manual.read(content.decode('utf-8', errors='replace'))
  base = path.relative_to(manual.folder.parent).as_posix()
  return {f'{base}{name}': blocks for name, blocks in found.items()}


def _page(scope: markup.Scope, content: str) -> Blocks:
  return {'': markup.blocks(content, scope)}


def _mallard(content: str) -> Blocks:
  # Of a `title` in HTML no parser reads the elements.
  named = content.replace('<title', '<h2').replace('</title', '</h2')
  return _page(_MALLARD, named)


def _pod(content: str) -> Blocks:
  return {'': pod.blocks(content)}


def _scope(
  skipped: str, within: tuple[str, str] | tuple[()] = ()
) -> markup.Scope:
  return markup.Scope(within, frozenset((_NO_TEXT + skipped).split()))


def _html(
  skipped: str = '', within: tuple[str, str] | tuple[()] = ()
) -> Callable[[str], Blocks]:
  """Returns a reader of pages, given what else is left out of them."""
  return functools.partial(_page, _scope(skipped, within))


_NO_TEXT = 'head script style pre table nav form svg button '
_SPHINX = _html('.headerlink .sig .toctree-wrapper .contents', ('role', 'main'))
_DOCBOOK = _html('.navheader .navfooter .docnav .toc')
_BOOK = _html('', ('id', 'content'))
_MALLARD = _scope('info screen links comment')
_RUST = (
  'book edition-guide embedded-book nomicon reference rust-by-example rustc '
  'rustdoc'
)
_CODE = '.code-header .out-of-band .item-decl .hideme .notable-traits .since'


def _manual(
  package: str,
  licence: str,
  folder: str,
  read: Callable[[str], Blocks],
  suffix: str = '.html',
  left_out: str = '',
) -> Manual:
  path = pathlib.Path('/usr/share', folder)
  names = frozenset(left_out.split())
  return Manual(package, licence, path, suffix, read, names)


ALL = (
  _manual(
    'apache2-doc',
    'Apache-2.0',
    'doc/apache2-doc/manual/en',
    _html('.toplang .top .up .toc .seealso .permalink', ('id', 'page-content')),
  ),
  _manual(
    'debian-handbook',
    'CC-BY-SA-3.0 or GPL-2+',
    'doc/debian-handbook/html/en-US',
    _DOCBOOK,
  ),
  _manual('debian-policy', 'GPL-2+', 'doc/debian-policy/policy.html', _SPHINX),
  _manual(
    'debian-reference-en', 'GPL-2+', 'debian-reference', _DOCBOOK, '.en.html'
  ),
  _manual('developers-reference', 'GPL-2+', 'developers-reference', _SPHINX),
  _manual(
    'dict-foldoc', 'GFDL-1.1+', 'dictd', dictionary.pages, 'foldoc.dict.dz'
  ),
  _manual('dict-gcide', 'GPL-2+', 'dictd', dictionary.pages, 'gcide.dict.dz'),
  _manual('gimp-help-en', 'GFDL-1.2+', 'gimp/2.0/help/en', _DOCBOOK),
  _manual('git-doc', 'GPL-2', 'doc/git-doc', _BOOK),
  _manual('gnome-user-docs', 'CC-BY-SA-3.0', 'help/C', _mallard, '.page'),
  _manual(
    'gnucash-docs', 'GFDL-1.1+', 'doc/gnucash-docs/gnucash-guide-en', _DOCBOOK
  ),
  _manual(
    'gnucash-docs', 'GFDL-1.1+', 'doc/gnucash-docs/gnucash-help-en', _DOCBOOK
  ),
  _manual(
    'installation-guide-amd64',
    'GPL-2',
    'doc/installation-guide-amd64/en',
    _DOCBOOK,
  ),
  _manual(
    'linux-doc-6.1',
    'GPL-2',
    'doc/linux-doc-6.1/html',
    _SPHINX,
    left_out='translations',
  ),
  _manual(
    'maxima-doc',
    'GPL-2+',
    'doc/maxima-doc/html',
    _html('.copiable-link .header .categorybox .contents .shortcontents'),
  ),
  _manual(
    'perl-doc',
    'GPL-1+ or Artistic',
    'perl/5.36.0/pod',
    _pod,
    '.pod',
    'perltoc.pod',
  ),
  _manual(
    'postgresql-doc-15', 'PostgreSQL', 'doc/postgresql-doc-15/html', _DOCBOOK
  ),
  _manual(
    'python3.11-doc',
    'PSF-2.0',
    'doc/python3.11/html',
    _SPHINX,
    left_out='changelog.html',
  ),
  *(
    _manual(
      'rust-doc',
      'MIT or Apache-2.0',
      f'doc/rust-doc/html/{book}',
      _BOOK,
      left_out='print.html',
    )
    for book in _RUST.split()
  ),
  _manual(
    'rust-doc',
    'MIT or Apache-2.0',
    'doc/rust-doc/html/std',
    _html(_CODE, ('id', 'main-content')),
  ),
  _manual(
    'sqlite3-doc',
    'public domain',
    'doc/sqlite3',
    _html('.fancy_toc .imgcontainer .tagline .menu'),
    left_out='changes.html',
  ),
)
