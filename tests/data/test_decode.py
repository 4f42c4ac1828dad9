"""Image files: every kind becomes RGB, every damage is noticed."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from spinenet_jax.data.decode import (
    MAX_PIXELS,
    BadImageError,
    decode_image,
    read_image,
    stored_size,
)
from spinenet_jax.settings import default_config

H, W = 24, 40


def picture():
    """Smooth RGB uint8[24,40,3], different in all corners."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], -1).astype(np.uint8)


def encode(kind, mode='RGB', **options):
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees
    return encode('JPEG', exif=exif, quality=95)


def sixteen_bit():
    return cv2.imencode('.png', picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


KINDS = {
    'JPEG': (encode('JPEG', quality=95), 'RGB', 4),
    'PNG': (encode('PNG'), 'RGB', 0),
    'gray JPEG': (encode('JPEG', 'L', quality=95), 'L', 2),
    'gray PNG': (encode('PNG', 'L'), 'L', 0),
    'CMYK JPEG': (encode('JPEG', 'CMYK', quality=95), 'RGB', 4),
    'progressive JPEG': (encode('JPEG', progressive=True, quality=95), 'RGB', 4),
    'alpha': (encode('PNG', 'RGBA'), 'RGB', 0),
    '16 bits': (sixteen_bit(), 'RGB', 0),
}


@pytest.mark.parametrize(('data', 'mode', 'tolerance'), KINDS.values(), ids=KINDS)
def test_every_kind_becomes_rgb(data, mode, tolerance):
    image = decode_image(data, (H, W))
    want = np.asarray(Image.fromarray(picture()).convert(mode).convert('RGB')).astype(int)
    assert image.dtype == np.uint8 and image.shape == (H, W, 3)
    assert np.abs(image - want).mean() <= tolerance
    assert stored_size(data) == (H, W)


def test_palette_is_rgb():
    data = encode('PNG', 'P')
    want = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    np.testing.assert_array_equal(decode_image(data), want)


JPEG, PNG = encode('JPEG', quality=95), encode('PNG')
THUMBNAIL = JPEG[:2] + b'\xff\xe1' + (len(JPEG) + 2).to_bytes(2, 'big') + JPEG + JPEG[2:]
BAD = {
    'empty': (b'', 'empty'),
    'half a JPEG': (JPEG[: len(JPEG) // 2], 'truncated JPEG'),
    'JPEG without its last byte': (JPEG[:-1], 'truncated JPEG'),
    'half a JPEG with a whole thumbnail': (THUMBNAIL[: -len(JPEG) // 3], 'truncated JPEG'),
    'a JPEG marker alone': (b'\xff\xd8', 'truncated JPEG'),
    'half a PNG': (PNG[: len(PNG) // 2], 'truncated PNG'),
    'PNG without its end': (PNG[:-12], 'truncated PNG'),
    'text': (b'404 not found', 'not an image'),
}


@pytest.mark.parametrize(('data', 'reason'), BAD.values(), ids=BAD)
def test_damage_is_noticed(data, reason):
    with pytest.raises(BadImageError, match=reason):
        decode_image(data, (H, W))


def test_thumbnail_and_trailing_bytes_do_no_harm():
    assert decode_image(THUMBNAIL + b'\0' * 9, (H, W)).shape == (H, W, 3)


def test_orientation_follows_the_declared_size():
    data = rotated_exif()
    upright = decode_image(data, (W, H))
    stored = decode_image(data, (H, W))
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))
    np.testing.assert_array_equal(decode_image(data), upright)  # nobody says: as viewers show it
    assert stored_size(data) == (H, W)


def by_opencv(data):
    """What OpenCV makes of a file, orientation applied."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_is_applied_as_opencv_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode('JPEG', exif=exif, quality=95)
    ours, expected = decode_image(data).astype(int), by_opencv(data)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 6  # the corners differ by far more


@pytest.mark.parametrize('damage', ['extra byte', 'other byte', 'unreadable EXIF'])
def test_a_slightly_damaged_jpeg_is_read_as_by_opencv(damage):
    data = {
        'extra byte': JPEG[:-2] + b'\x01' + JPEG[-2:],
        'other byte': JPEG[:-20] + bytes([JPEG[-20] ^ 0x0F]) + JPEG[-19:],
        'unreadable EXIF': rotated_exif().replace(b'\0*\0\0\0\x08', b'\0*\xff\xff\xff\xff'),
    }[damage]
    assert np.abs(decode_image(data).astype(int) - by_opencv(data)).mean() <= 2


def test_a_small_jpeg_that_claims_to_be_huge_is_refused():
    start = JPEG.index(b'\xff\xc0') + 5  # height and width of the frame
    with pytest.raises(BadImageError, match='it has 65520x65520 pixels, more than'):
        decode_image(JPEG[:start] + b'\xff\xf0\xff\xf0' + JPEG[start + 4 :])


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_the_stored_size_comes_from_the_header(kind):
    data = encode(kind)
    assert stored_size(data) == (H, W)
    with pytest.raises(BadImageError, match='damaged, or not an image'):
        stored_size(data[:3])


@pytest.mark.parametrize('data', [JPEG, rotated_exif()], ids=['plain', 'EXIF'])
def test_another_size_is_refused(data):
    with pytest.raises(BadImageError, match='40x24 pixels where the annotations say 20x12'):
        decode_image(data, (12, 20))


def test_swapped_size_without_exif_is_refused():
    with pytest.raises(BadImageError, match='40x24'):
        decode_image(JPEG, (W, H))


def test_missing_file_is_bad(tmp_path):
    with pytest.raises(BadImageError, match='No such file'):
        read_image(str(tmp_path / 'none.jpg'))
    with pytest.raises(BadImageError):
        read_image(str(tmp_path))


def png_bomb(side):
    """The beginning of a PNG of side x side pixels, which unpacks to as many bytes."""
    header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    chunks = (header, b'IDAT' + zlib.compress(bytes(side + 1) * 30), b'IEND')
    parts = (struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in chunks)
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def tiff_bomb(side):
    """A small TIFF of side x side pixels."""
    buffer = io.BytesIO()
    Image.new('1', (side, side)).save(buffer, 'TIFF', compression='group4')
    return buffer.getvalue()


@pytest.mark.parametrize(('make', 'side'), [(png_bomb, 30_000), (tiff_bomb, 12_000)])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(make, side, monkeypatch):
    def decode(*_):
        raise AssertionError('decoded')

    data = make(side)
    assert len(data) < 100_000
    assert stored_size(data) == (side, side)
    monkeypatch.setattr(cv2, 'imdecode', decode)
    with pytest.raises(BadImageError, match=f'{side}x{side} pixels, more than 120,000,000'):
        decode_image(data)


def test_limit_on_pixels_can_be_raised_and_lowered():
    assert decode_image(PNG, max_pixels=H * W).shape == (H, W, 3)
    with pytest.raises(BadImageError, match=r'more than 959 \(data\.max_pixels\)'):
        decode_image(PNG, max_pixels=H * W - 1)
    assert default_config().data.max_pixels == MAX_PIXELS


@pytest.mark.parametrize('kind', ['BMP', 'GIF', 'WEBP', 'TIFF', 'PPM'])
def test_sizes_come_from_the_header_of_every_kind(kind):
    assert stored_size(encode(kind)) == (H, W)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    os.symlink('/dev/zero', tmp_path / 'zero.jpg')
    for path in ('/dev/zero', '/dev/null', *map(str, tmp_path.iterdir()), str(tmp_path)):
        with pytest.raises(BadImageError, match='not a regular file'):
            read_image(path)
    for name in ('a\0b', '\ud800.jpg', 'x' * 300):
        with pytest.raises(BadImageError):
            read_image(str(tmp_path / name))
