"""Plain UTF-8 text: `text:PATH`, a file, a folder or a pattern.

A file is a document, just as it is: no newline is changed. See
`paths.of_splits` for what a folder's splits are.
"""

import dataclasses
import pathlib

from softmoe.data.text import documents, paths


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Files, each a document."""

  files: list[pathlib.Path]

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> str:
    file = self.files[index]
    try:
      content = file.read_bytes()
    except OSError as error:
      expected = f'a file that can be read ({error.strerror})'
      raise documents.wrong(str(file), expected) from error
    if not content:
      raise documents.wrong(str(file), 'a file that is not empty')
    return documents.decode(content, str(file))


def open_splits(argument: str) -> dict[str, documents.Documents]:
  """Returns the documents of each split; opens no file.

  Raises:
    UserError: there are no such files.
  """
  found = paths.of_splits(argument)
  return {name: TextFiles(files) for name, files in found.items()}
