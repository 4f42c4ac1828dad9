"""Finds a TensorFlow checkpoint among what a user points at, and lists its model's variables.

Canonical names come out, whatever wrote the file: see `tf_names.py` for what they mean in our
model, `tensor_bundle.py` for the bytes.
"""

import pathlib
import re
import shutil
import tarfile
import zlib
from typing import NamedTuple

from spinenet_jax.convert.tensor_bundle import OBJECT_GRAPH, Bundle
from spinenet_jax.convert.tf_names import tf2_canonical
from spinenet_jax.errors import UserError

INDEX, VALUE = '.index', '/.ATTRIBUTES/VARIABLE_VALUE'
TF1_AVERAGE = '/ExponentialMovingAverage'
TF1_SLOTS = re.compile(r'/(Momentum|Adam|Adam_1|RMSProp|RMSProp_1)$')
TF2_SLOT = re.compile(r'^(.*)/\.OPTIMIZER_SLOT/.*/(\w+)$')
ARCHIVES = ('.tar.gz', '.tgz', '.tar')


class Variables(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      flavour: 'tf1' (named variables) or 'tf2' (object-based).
      keys: {canonical name: name in the file} of variables that belong to layers.
      unknown: names in the file that belong to no layer we know, optimizer state not counted.
      averaged: how many of `keys` are moving averages, taken instead of the last values.
      step: name in the file of the training step, or ''.
    """

    flavour: str
    keys: dict[str, str]
    unknown: list[str]
    averaged: int
    step: str


def locate(source: str, scratch: pathlib.Path) -> pathlib.Path:
    """The checkpoint prefix that a user means.

    Args:
      source: a prefix (`model.ckpt-231500`), one of its files, a directory (its `checkpoint` file
        decides, else its only checkpoint), or a .tar.gz of a directory as the models are published.
      scratch: an empty directory, to unpack into.

    Raises:
      UserError: there is no checkpoint, or several and nothing says which.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file() and path.name.endswith(ARCHIVES):
        try:
            with tarfile.open(path) as archive:
                _unpack(archive, scratch)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise UserError(f'{path}: cannot be unpacked ({error})') from None
        return _in_directory(scratch, source)
    if path.is_dir():
        return _in_directory(path, source)
    stem = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path.name)
    prefix = path.with_name(stem)
    if prefix.with_name(stem + INDEX).exists():
        return prefix
    raise UserError(
        f'{source}: no TensorFlow checkpoint; give its prefix (such that {stem}{INDEX} exists), '
        'the directory it is in, or a .tar.gz of that'
    )


def _unpack(archive: tarfile.TarFile, folder: pathlib.Path) -> None:
    """Writes the regular files of an archive, none outside of the folder.

    `extractall(filter='data')` would do, but Python 3.11 has it from 3.11.4 on only.
    """
    for member in archive:
        target = (folder / member.name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise tarfile.TarError(f'{member.name} lies outside of it')
        if member.isfile():
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as packed, open(target, 'wb') as file:
                shutil.copyfileobj(packed, file)


def _in_directory(folder: pathlib.Path, source: str) -> pathlib.Path:
    """The one checkpoint in a directory or below it."""
    found = sorted(folder.rglob(f'*{INDEX}'))
    if not found:
        raise UserError(f'{source}: no TensorFlow checkpoint in it (no file ends in {INDEX})')
    prefixes = [path.with_name(path.name.removesuffix(INDEX)) for path in found]
    if len(prefixes) == 1:
        return prefixes[0]
    for note in sorted(folder.rglob('checkpoint')):
        text = note.read_text(errors='replace') if note.is_file() else ''
        match = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
        latest = note.parent / pathlib.PurePath(match[1]).name if match else None
        if latest in prefixes:
            return latest
    names = ', '.join(prefix.name for prefix in prefixes[:5])
    raise UserError(f'{source}: holds {len(prefixes)} checkpoints ({names}); name one of them')


def list_variables(bundle: Bundle) -> Variables:
    """The variables of a checkpoint by canonical name."""
    return _list_tf2(bundle) if OBJECT_GRAPH in bundle.entries else _list_tf1(bundle)


def _list_tf1(bundle: Bundle) -> Variables:
    """Names are canonical as they are; averages replace what they are averages of."""
    names = [name for name in bundle.entries if not TF1_SLOTS.search(name)]
    averages = {n.removesuffix(TF1_AVERAGE): n for n in names if n.endswith(TF1_AVERAGE)}
    keys = {n: n for n in names if not n.endswith(TF1_AVERAGE) and n != 'global_step'} | averages
    step = 'global_step' if 'global_step' in names else ''
    return Variables('tf1', keys, [], len(averages), step)


def _list_tf2(bundle: Bundle) -> Variables:
    """Names come from the object graph that the checkpoint carries."""
    names, plain, averages = bundle.full_names(), [], {}
    for entry in bundle.entries:
        key = entry.removesuffix(VALUE)
        slot = TF2_SLOT.match(key)
        if slot and slot[2] == 'average':
            averages[slot[1]] = entry
        elif not slot and not re.match(r'(optimizer|save_counter|_CHECKPOINTABLE)', key):
            plain.append(key)
    step = next((k + VALUE for k in plain if k.split('/')[-1] in ('global_step', 'step')), '')
    plain = [key for key in plain if key + VALUE != step]
    canonical = tf2_canonical((key, names.get(key + VALUE, '')) for key in plain)
    pairs = list(zip(canonical, plain, strict=True))
    keys = {name: averages.get(key, key + VALUE) for name, key in pairs if name}
    used = sum(key in averages for name, key in pairs if name)
    return Variables('tf2', keys, [key for name, key in pairs if not name], used, step)
