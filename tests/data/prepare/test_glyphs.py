"""Letters in the faces that matplotlib's wheel ships; no font is installed."""

import hashlib
import json
import pathlib
import string

import matplotlib
import numpy as np
import pytest

from softmoe.data.images import sources
from softmoe.data.prepare import __main__ as command
from softmoe.data.prepare import fonts, glyphs, pairs
from softmoe.errors import UserError

FOLDER = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
NAMES = 'Sans Sans-Bold Sans-Oblique SansMono Serif Serif-Bold Serif-Italic'
FILES = [
  str(FOLDER / f'{name}.ttf')
  for name in (
    *(f'DejaVu{style}' for style in NAMES.split()),
    *('STIXGeneral', 'STIXGeneralBol', 'cmr10', 'cmss10', 'cmtt10'),
  )
]
RECIPE = pairs.Recipe(string.ascii_letters[:40], '0123456789', shots=2)
SPLITS = ('train', 'val', 'test', 'faces', 'fewshot_train', 'fewshot_test')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns the folder and the manifest."""
  out = tmp_path_factory.mktemp('glyphs') / 'out'
  return out, glyphs.prepare(out, FILES, RECIPE, processes=1)


def load(out, split, kind):
  return np.load(out / f'{split}_{kind}.npy')


def hashes(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


def test_order_copies_and_processes_change_no_byte(made, tmp_path):
  copy = tmp_path / 'elsewhere' / pathlib.Path(FILES[0]).name
  copy.parent.mkdir()
  copy.write_bytes(pathlib.Path(FILES[0]).read_bytes())
  files = [*FILES[:0:-1], str(copy)]
  glyphs.prepare(tmp_path / 'out', files, RECIPE, processes=2)
  assert hashes(tmp_path / 'out') == hashes(made[0])


def test_other_data_has_another_fingerprint(made, tmp_path):
  recipe = pairs.Recipe(RECIPE.characters[:-1], RECIPE.others, shots=2)
  other = glyphs.prepare(tmp_path / 'out', FILES, recipe, processes=1)
  assert other['fingerprint'] != made[1]['fingerprint']


def test_faces_that_draw_the_same_are_dropped(made, tmp_path):
  copy = tmp_path / 'zz.ttf'
  copy.write_bytes(pathlib.Path(FILES[0]).read_bytes() + b'\0')
  files = [*FILES, str(copy)]
  again = glyphs.prepare(tmp_path / 'out', files, RECIPE, processes=1)
  assert again['fingerprint'] == made[1]['fingerprint']
  assert len(again['same']) == len(made[1]['same']) + 1
  assert all(each['distance'] <= 0.1 for each in again['same'])


def test_a_pair_is_in_one_split(made):
  out, _ = made
  seen = [
    (face, label)
    for split in ('train', 'val', 'test', 'faces')
    for face, label in zip(
      load(out, split, 'faces'), load(out, split, 'labels'), strict=True
    )
  ]
  assert len(set(seen)) == len(seen)
  few = [
    (face, label)
    for split in ('fewshot_train', 'fewshot_test')
    for face, label in zip(
      load(out, split, 'faces'), load(out, split, 'labels'), strict=True
    )
  ]
  assert len(set(few)) == len(few) == 10 * 2 * RECIPE.shots


def test_held_out_families_are_in_no_other_split(made):
  out, manifest = made
  faces = manifest['faces']
  held_out = {i for i, face in enumerate(faces) if face['held_out']}
  families = {faces[i]['family'] for i in held_out}
  assert families
  assert families.isdisjoint(
    face['family'] for face in faces if not face['held_out']
  )
  for split in SPLITS:
    used = set(load(out, split, 'faces').tolist())
    assert used == held_out if split == 'faces' else not used & held_out, split


def test_nearest_training_face_is_named(made):
  faces = {face['name']: face for face in made[1]['faces']}
  for face in faces.values():
    if face['held_out']:
      assert not faces[face['nearest_training_face']]['held_out']
      assert 0.1 < face['distance'] <= 1
    else:
      assert 'nearest_training_face' not in face


def test_manifest_is_what_is_there(made):
  out, manifest = made
  assert json.loads((out / 'manifest.json').read_text()) == manifest
  for f, face in enumerate(manifest['faces']):
    for split in SPLITS:
      drawn = (load(out, split, 'faces') == f).sum()
      assert face['images'][split] == drawn
  paths = {path.name: path for path in map(pathlib.Path, FILES)}
  for face in manifest['faces']:
    content = paths[face['file']].read_bytes()
    assert face['sha256'] == hashlib.sha256(content).hexdigest()
  assert set(manifest['software']) == {
    'fontTools', 'FreeType', 'Pillow', 'numpy'
  }  # fmt: skip


def test_an_image_is_its_character(made):
  """Drawn once more by hand: centred, 28 pixels high or so, ink on black."""
  out, manifest = made
  images, labels = load(out, 'train', 'images'), load(out, 'train', 'labels')
  face = manifest['faces'][load(out, 'train', 'faces')[0]]
  (path,) = [p for p in FILES if p.endswith(face['file'])]
  (found,) = fonts.faces(path)
  character = RECIPE.characters[labels[0]]
  again = fonts.draw(found, character, RECIPE.characters)
  assert (again[0] == images[0]).all()
  rows = np.flatnonzero(images[0].any(1))
  assert abs(rows[0] - (31 - rows[-1])) <= 1
  assert images[0].max() > 200


@pytest.mark.parametrize('split', SPLITS)
def test_source_reads_every_split(made, split):
  out, manifest = made
  source = sources.open_source(f'glyphs:{out}', split)
  assert len(source) == manifest['splits'][split]['images'] > 0
  assert source[0]['image'].shape == (32, 32, 1)
  assert source[0]['label'] == load(out, split, 'labels')[0]
  classes = manifest['splits'][split]['classes']
  assert classes == (10 if split.startswith('few') else 40)
  assert set(source.labels) <= set(range(classes))
  assert sources.fingerprint(f'glyphs:{out}') == manifest['fingerprint']


def test_no_font_names_packages_and_leaves_nothing(tmp_path):
  with pytest.raises(UserError, match='apt-get install fonts-noto-cjk .*docs'):
    glyphs.prepare(tmp_path / 'a' / 'out', [], RECIPE, processes=1)
  assert not list((tmp_path / 'a').iterdir())


def test_broken_fonts_are_passed_over(made, tmp_path):
  content = pathlib.Path(FILES[0]).read_bytes()
  broken = tmp_path / 'broken.ttf'
  for bad in (b'', b'no font', content[:5000], content[: len(content) // 2]):
    broken.write_bytes(bad)
    for face in fonts.faces(str(broken)):
      assert not fonts.draw(face, 'abc', 'abc').any()


def test_one_family_cannot_be_held_out(tmp_path):
  with pytest.raises(UserError, match='design families: got 1; more'):
    glyphs.prepare(tmp_path / 'out', FILES[:1], RECIPE, processes=1)


def test_a_folder_with_something_is_refused(tmp_path):
  (tmp_path / 'mine').touch()
  with pytest.raises(UserError, match='OUT: got .*new or empty'):
    glyphs.prepare(tmp_path, FILES, RECIPE, processes=1)
  assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize(
  'argv, line',
  [
    ([], 'required: NAME, OUT'),
    (['glyphs'], 'required: OUT'),
    (['runes', 'out'], "NAME: got 'runes'; one of .*'glyphs'"),
  ],
)
def test_bad_command_lines(argv, line):
  with pytest.raises(UserError, match=line):
    command.main(argv)


def test_kanji_of_jis():
  """2,965 of level 1, as JIS X 0208 says, none of them for few shots."""
  recipe = glyphs.kanji()
  assert len(set(recipe.characters)) == len(recipe.characters) == 2965
  assert (recipe.characters[0], recipe.characters[-1]) == ('亜', '腕')
  assert len(set(recipe.others)) == 500
  assert not set(recipe.others) & set(recipe.characters)
