"""Parameters out of a file, without a mesh."""

from softmoe.weights import fit


def read(file, form, config, paths):
  """Returns the parameters that a file has, by path; it has all of them."""
  found = fit.fit(file, form, config, paths)
  fit.check('FILE', file, form, found.missing, found.left_over)
  whole = lambda path: (slice(None),) * len(found.shapes[path])
  return {
    path: row.read(file.arrays, whole(path)) for path, row in found.rows.items()
  }
