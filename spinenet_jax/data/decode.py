"""Decodes image files to RGB pixels, and refuses those that cannot be used.

JPEGs are decoded as TensorFlow decodes them: with the fast integer cosine transform (JDCT_IFAST of
libjpeg-turbo, by simplejpeg), with which published AP was measured. It costs no time. OpenCV has
the accurate one, which differs by 1 of 255 on average and by up to 18, and decodes all other files.

This file also settles what their defaults leave open: truncated files, orientation, a size that
differs from the annotations', and images too large for the memory. Scaling is left to
transforms.py.
"""

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

# One image is one reading thread's work. On a host with many cores, OpenCV would cut every resize
# into as many pieces and the readers would wait for each other.
cv2.setNumThreads(1)
# What is wrong with an image stands in BadImageError, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings('ignore', module=r'PIL\.')
Image.MAX_IMAGE_PIXELS = None  # Pillow decodes nothing here; the limit is decode_image's

ORIENTATION = 0x0112  # EXIF's tag
MAX_PIXELS = 120_000_000  # default of data.max_pixels: 360 MB decoded, in every reading thread


class BadImageError(ValueError):
    """An image that cannot be used; the message is the reason, short enough for a list."""


def decode_image(
    data: bytes, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """RGB pixels of an encoded image: uint8[h,w,3].

    Gray, palette and CMYK become RGB, 16 bits become 8, alpha is dropped (not blended), as PIL's
    convert('RGB') and COCO's users have it.

    Args:
      data: the bytes of the file.
      size: (h, w) that the annotations say. Boxes are in its coordinates, so:
        stored pixels have that size: they are returned as stored, whatever EXIF says;
        only the EXIF-rotated image has that size: it is returned rotated;
        neither: refused, because it cannot be known where the boxes lie (Detectron2 refuses such a
        file too).
        With None the EXIF orientation is applied, which is what viewers and browsers show.
      max_pixels: more of them are refused.

    Raises:
      BadImageError: empty, truncated or unknown content, another size, or more than `max_pixels`
        (height x width), which is found before any of it is decoded.
    """
    if not data:
        raise BadImageError('the file is empty')
    if data[:2] == b'\xff\xd8' and not _has_jpeg_end(data):
        raise BadImageError('truncated JPEG')
    if data[:4] == b'\x89PNG' and data.rfind(b'IEND') < 0:
        raise BadImageError('truncated PNG')
    height, width = stored_size(data)
    if height * width > max_pixels:
        raise BadImageError(
            f'it has {width}x{height} pixels, more than {max_pixels:,} (data.max_pixels)'
        )
    if size is None:
        return _decode(data, turned=True)
    image = _decode(data)
    if image.shape[:2] == size:
        return image
    if image.shape[1::-1] == size:
        rotated = _decode(data, turned=True)
        if rotated.shape[:2] == size:
            return rotated
    (h, w), (want_h, want_w) = image.shape[:2], size
    raise BadImageError(f'it is {w}x{h} pixels where the annotations say {want_w}x{want_h}')


def read_image(
    image: str | bytes, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Like `decode_image`, from a path or from encoded bytes; a file that cannot be read is bad.

    So is whatever is no regular file: a device may never end, a pipe may never begin.
    """
    if isinstance(image, str):
        try:
            regular = stat.S_ISREG(os.stat(image).st_mode)
            content = Path(image).read_bytes() if regular else b''
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise BadImageError(getattr(error, 'strerror', None) or str(error)) from error
        if not regular:
            raise BadImageError('not a regular file')
        image = content
    return decode_image(image, size, max_pixels)


def stored_size(data: bytes) -> tuple[int, int]:
    """(h, w) of the stored pixels, from the header; nothing is decoded.

    Raises:
      BadImageError: no image is found.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size[::-1]
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # Pillow's, for damage
        raise BadImageError('damaged, or not an image') from error


def _decode(data: bytes, turned: bool = False) -> np.ndarray:
    """Pixels as stored, or `turned` as EXIF says."""
    image = _decode_jpeg(data) if data[:2] == b'\xff\xd8' else None
    if image is not None:
        return _turn(image, _orientation(data)) if turned else image
    flags = cv2.IMREAD_COLOR_RGB | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise BadImageError('damaged, or not an image')
    return image


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Stored pixels of a JPEG as TensorFlow decodes it; None if it is for OpenCV to try.

    Not strict: a byte that is wrong in the middle spoils some pixels, as in TensorFlow and OpenCV.
    """
    try:
        return simplejpeg.decode_jpeg(data, 'RGB', fastdct=True, strict=False)
    except ValueError:
        return None


def _orientation(data: bytes) -> int:
    """EXIF's orientation of a JPEG; 1, as stored, where it has none that can be read."""
    if b'Exif\0\0' not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            exif = Image.Exif()
            exif.load(image.info.get('exif', b''))
            return exif.get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as EXIF's orientation, 1 to 8, shows it."""
    if orientation in (5, 6, 7, 8):  # the first row is shown as a column
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its length field - 2) of the segments up to the first scan."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        yield marker, position
        if marker == 0xDA:
            return
        position += 2 + struct.unpack('>H', data[position + 2 : position + 4])[0]


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan: one inside an EXIF thumbnail does not count."""
    for marker, start in _jpeg_segments(data):
        if marker == 0xDA:
            return data.rfind(b'\xff\xd9') > start
    return False
