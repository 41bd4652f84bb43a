"""Files that are made to hurt: each is refused in one line with exit code 2, nothing in it is run, and nothing of it is left.

Tables of labels: tests/data/test_csv.py. What the page of `mimic demo` is sent: tests/serving/test_local_page.py.
"""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mimic_jax import main, serving
from mimic_jax.runtime import cli
from tests.commands.test_predict import StandIn


class Run:
  """Unpickled, it would leave a file."""

  def __init__(self, canary: str) -> None:
    self.canary = canary

  def __reduce__(self) -> tuple:
    return (os.system, (f'touch {self.canary}',))


def safetensors(header: object, data: bytes = b'', length: int | None = None) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: list, start: int, end: int) -> dict:
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


def pth(content: bytes, name: str = 'archive/data.pkl', more: dict | None = None) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as z:
    z.writestr(name, content)
    for other, data in {'archive/version': b'3\n', **(more or {})}.items():
      z.writestr(other, data)
  return out.getvalue()


def pickled(value: object) -> bytes:
  return pickle.dumps(value, protocol=2)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
  made = b''.join(
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )
  return b'\x89PNG\r\n\x1a\n' + made


def picture(format: str, **options) -> bytes:
  out = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(pixels).save(out, format, **options)
  return out.getvalue()


SIZE = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(CANARY) (w) file closefile\nshowpage\n%%EOF\n'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
F4 = tensor('F32', [1], 0, 4)

# What it is → (the file's name, its content; CANARY in it is a path, and RUN an object that would make it).
WEIGHTS: dict[str, tuple[str, Callable[[str], bytes]]] = {
  'a pickle that runs a command': ('w.pth', lambda c: pickled(Run(c))),
  'one inside a PyTorch zip': ('w.pth', lambda c: pth(pickled({'model': Run(c)}))),
  'one behind a key that is not read': ('w.pth', lambda c: pth(pickled({'model': {}, 'args': Run(c)}))),
  'one by the name of safetensors': ('w.safetensors', lambda c: pickled(Run(c))),
  'protocol 5': ('w.pth', lambda c: pickle.dumps(Run(c), protocol=5)),
  'protocol 0': ('w.pth', lambda c: pickle.dumps(Run(c), protocol=0)),
  'builtins.eval': ('w.pth', lambda c: b"cbuiltins\neval\n(S'open(\"" + c.encode() + b"\",\"w\")'\ntR."),
  'a pickle of no end': ('w.pth', lambda c: b'\x80\x02' + b'(' * 100_000),
  'an opcode that is none': ('w.pth', lambda c: b'\x80\x02\xff.'),
  'a zip that leads out of its folder': ('w.pth', lambda c: pth(b'x', name=f'../..{c}')),
  'a zip with two pickles': ('w.pth', lambda c: pth(b'no', more={'b/data.pkl': pickled(Run(c))})),
  'a zip cut off': ('w.pth', lambda c: pth(pickled({'model': {}}))[:-30]),
  'an empty zip': ('w.pth', lambda c: b'PK\x05\x06' + bytes(18)),
  'a list instead of a state': ('w.pth', lambda c: pth(pickled(['x']), more={'archive/data/0': bytes(1 << 20)})),
  'a header longer than the file': ('w.safetensors', lambda c: safetensors({'a': F4}, bytes(4), length=1 << 26)),
  'a header of 2^63 bytes': ('w.safetensors', lambda c: safetensors({'a': F4}, bytes(4), length=1 << 63)),
  'data that are not there': ('w.safetensors', lambda c: safetensors({'a': tensor('F32', [1 << 30], 0, 1 << 32)})),
  'tensors that overlap': ('w.safetensors', lambda c: safetensors({'a': F4, 'b': F4}, bytes(4))),
  'a shape that its bytes do not fit': ('w.safetensors', lambda c: safetensors({'a': tensor('F32', [9, 9], 0, 4)}, bytes(4))),
  'a shape below zero': ('w.safetensors', lambda c: safetensors({'a': tensor('F32', [-1], 0, 4)}, bytes(4))),
  'a shape beyond 64 bits': ('w.safetensors', lambda c: safetensors({'a': tensor('F32', [1 << 40, 1 << 40], 0, 4)}, bytes(4))),
  'offsets the wrong way round': ('w.safetensors', lambda c: safetensors({'a': tensor('F32', [1], 4, 0)}, bytes(4))),
  'a type that is none': ('w.safetensors', lambda c: safetensors({'a': tensor('F33', [1], 0, 4)}, bytes(4))),
  'a header that is a list': ('w.safetensors', lambda c: safetensors([1, 2], bytes(4))),
  'a header that is no JSON': ('w.safetensors', lambda c: safetensors(b'{"a": {', bytes(4))),
  'JSON within JSON without end': ('w.safetensors', lambda c: safetensors(b'{"a":' * 50_000, bytes(4))),
  'a name that is a path': ('w.safetensors', lambda c: safetensors({f'../..{c}': F4}, bytes(4))),
  'nothing': ('w.pth', lambda c: b''),
  'a web page': ('w.pth', lambda c: b'<!DOCTYPE html><html><body>404</body></html>'),
  "Git LFS's pointer": ('w.safetensors', lambda c: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
  'a program': ('w.pth', lambda c: b'#!/bin/sh\ntouch ' + c.encode() + b'\n'),
  'a NumPy file of objects': ('w.pth', lambda c: _objects(c)),
  'noise': ('w.pth', lambda c: np.random.default_rng(1).bytes(5000)),
}  # fmt: skip

PICTURES: dict[str, tuple[str, Callable[[str], bytes]]] = {
  'a bomb: 3.6 billion pixels in a kilobyte': ('p.png', lambda c: png((b'IHDR', SIZE), (b'IDAT', zlib.compress(bytes(99))), (b'IEND', b''))),
  'a strip of 40 million pixels': ('p.png', lambda c: _strip()),
  'a text chunk that unpacks to 100 MB': ('p.png', lambda c: png((b'IHDR', struct.pack('>IIBBBBB', 4, 4, 8, 2, 0, 0, 0)), (b'zTXt', b'a\0\0' + zlib.compress(bytes(100 << 20))), (b'IEND', b''))),
  'a picture without pixels': ('p.png', lambda c: png((b'IHDR', struct.pack('>IIBBBBB', 4, 4, 8, 2, 0, 0, 0)), (b'IEND', b''))),
  'a side of 0': ('p.png', lambda c: png((b'IHDR', struct.pack('>IIBBBBB', 0, 4, 8, 2, 0, 0, 0)), (b'IEND', b''))),
  'a checksum that is wrong': ('p.png', lambda c: picture('PNG')[:40] + b'\0\1\2\3' + picture('PNG')[44:]),
  'a JPEG cut off': ('p.jpg', lambda c: picture('JPEG')[:700]),
  'the first bytes of a JPEG': ('p.jpg', lambda c: b'\xff\xd8\xff\xe0'),
  'a JPEG of 65,535 × 65,535': ('p.jpg', lambda c: _resized_jpeg()),
  'PostScript, which would be run': ('p.jpg', lambda c: EPS.replace(b'CANARY', c.encode())),
  'SVG with a script': ('p.png', lambda c: SVG),
  'a web page': ('p.jpg', lambda c: b'<html></html>'),
  'a pickle': ('p.png', lambda c: pickled(Run(c))),
  'a program': ('p.gif', lambda c: b'\x7fELF' + bytes(200)),
  'a TIFF that points at itself': ('p.tif', lambda c: b'II*\0' + struct.pack('<IHI', 8, 0, 8)),
  'floating-point pixels': ('p.tif', lambda c: _of_floats()),
  'a GIF without a picture': ('p.gif', lambda c: b'GIF89a' + struct.pack('<HH', 9, 9) + bytes(3) + b';'),
  'a WebP whose length lies': ('p.webp', lambda c: picture('WEBP')[:4] + b'\xff\xff\xff\x7f' + picture('WEBP')[8:60]),
  'a PPM of a billion lines': ('p.ppm', lambda c: b'P6 1 1000000000 255\n' + bytes(9)),
  'a BMP with a side below zero': ('p.bmp', lambda c: picture('BMP')[:18] + struct.pack('<i', -64) + picture('BMP')[22:]),
  'noise': ('p.jpg', lambda c: np.random.default_rng(2).bytes(5000)),
  'nothing': ('p.jpg', lambda c: b''),
}  # fmt: skip

VIDEOS: dict[str, tuple[str, Callable[[str], bytes]]] = {
  'noise': ('v.mp4', lambda c: np.random.default_rng(3).bytes(5000)),
  'nothing': ('v.avi', lambda c: b''),
  'a playlist that names another file': ('v.mp4', lambda c: b'#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n'),
  'a header alone': ('v.mp4', lambda c: struct.pack('>I4s4sI', 16, b'ftyp', b'isom', 0)),
  'a box of 2^32 bytes': ('v.mp4', lambda c: struct.pack('>I4sI4s', 8, b'ftyp', 0xFFFFFFFF, b'moov')),
}  # fmt: skip


def _objects(canary: str) -> bytes:
  out = io.BytesIO()
  np.save(out, np.array([Run(canary)], object), allow_pickle=True)
  return out.getvalue()


def _resized_jpeg() -> bytes:
  data = picture('JPEG')
  at = data.index(b'\xff\xc0') + 5
  return data[:at] + b'\xff\xff\xff\xff' + data[at + 4 :]


def _strip() -> bytes:
  out = io.BytesIO()
  Image.new('1', (40_000_000, 1)).save(out, 'PNG')
  return out.getvalue()


def _of_floats() -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(out, 'TIFF')
  return out.getvalue()


def refused(capsys, folder: pathlib.Path, canary: str, argv: list[str]) -> str:
  """Runs a command; returns its one line. Nothing is made in the folder, nothing is run."""
  before = sorted(p.name for p in folder.iterdir())
  with pytest.raises(SystemExit) as e:
    cli.run(main.main, argv)
  assert e.value.code == 2
  said = capsys.readouterr().err.strip().splitlines()
  assert len([line for line in said if line.startswith('mimic: error: ')]) == 1, said
  assert 'Traceback' not in ''.join(said)
  assert not os.path.exists(canary)
  assert sorted(p.name for p in folder.iterdir()) == before
  return said[-1]


def written(tmp_path: pathlib.Path, table: dict, what: str) -> tuple[pathlib.Path, str]:
  name, make = table[what]
  canary = str(tmp_path / 'it_was_run')
  folder = tmp_path / 'in'
  folder.mkdir()
  (folder / name).write_bytes(make(canary))
  return folder / name, canary


@pytest.mark.parametrize('what', WEIGHTS)
def test_weights(what, tmp_path, capsys):
  path, canary = written(tmp_path, WEIGHTS, what)
  assert path.name in refused(capsys, path.parent, canary, ['weights', 'inspect', str(path)])


@pytest.fixture
def _model(monkeypatch):
  monkeypatch.setattr(serving, 'load', lambda path, ema, field: StandIn())


@pytest.mark.usefixtures('_model')
@pytest.mark.parametrize('what', PICTURES)
def test_pictures(what, tmp_path, capsys):
  path, canary = written(tmp_path, PICTURES, what)
  said = refused(capsys, path.parent, canary, ['predict', '--checkpoint', 'w', str(path)])
  assert path.name in said


@pytest.mark.usefixtures('_model')
@pytest.mark.parametrize(
  'format', ['JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'GIF', 'PPM', 'JPEG2000', 'TGA', 'AVIF', 'MPO']
)
def test_pictures_that_are_sound_are_answered(format, tmp_path, capsys):
  more = {'save_all': True, 'append_images': [Image.new('RGB', (64, 64))]} if format == 'MPO' else {}
  (tmp_path / 'p.jpg').write_bytes(picture(format, **more))
  main.main(['predict', '--checkpoint', 'w', str(tmp_path / 'p.jpg')])
  assert '1 answers' in capsys.readouterr().out


@pytest.mark.usefixtures('_model')
@pytest.mark.parametrize('what', VIDEOS)
def test_videos(what, tmp_path, capsys):
  path, canary = written(tmp_path, VIDEOS, what)
  assert path.name in refused(capsys, path.parent, canary, ['predict', '--checkpoint', 'w', str(path)])


@pytest.mark.usefixtures('_model')
def test_what_is_no_file(tmp_path, capsys):
  folder = tmp_path / 'in'
  folder.mkdir()
  os.mkfifo(folder / 'pipe.jpg')  # nobody writes: reading would wait for ever
  (folder / 'zero.png').symlink_to('/dev/zero')
  (folder / 'lost.jpg').symlink_to('nowhere')
  (folder / 'folder.jpg').mkdir()
  for name in ('pipe.jpg', 'zero.png', 'lost.jpg', 'folder.jpg'):
    refused(capsys, folder, str(tmp_path / 'x'), ['predict', '--checkpoint', 'w', str(folder / name)])
  for name in ('pipe.jpg', 'zero.png', 'folder.jpg'):
    refused(capsys, folder, str(tmp_path / 'x'), ['weights', 'inspect', str(folder / name)])
