"""Decodes image files to RGB pixels and refuses those that cannot be used.

OpenCV decodes; this file settles what its defaults leave open: truncated files, orientation, a
size that differs from the annotations', and images too large for the memory.
"""

import io
import os
import stat
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np

# One image is one reading thread's work. On a host with many cores, OpenCV would cut every resize
# into as many pieces and the readers would wait for each other.
cv2.setNumThreads(1)
# What is wrong with an image stands in BadImageError, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings('ignore', module=r'PIL\.')


MAX_PIXELS = 120_000_000  # default of data.max_pixels: 360 MB decoded, in every reading thread


class BadImageError(ValueError):
    """An image that cannot be used; the message is the reason, short enough for a list."""


def decode_image(
    data: bytes, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """RGB pixels of an encoded image: uint8[h,w,3].

    Gray, palette and CMYK become RGB, 16 bits become 8, alpha is dropped (not blended), as PIL's
    convert('RGB') and COCO's users have it.

    `size` (h, w) is what the annotations say. Boxes are in its coordinates, so:
      stored pixels have that size: they are returned as stored, whatever EXIF says;
      only the EXIF-rotated image has that size: it is returned rotated;
      neither: BadImageError, because it cannot be known where the boxes lie (Detectron2 refuses
      such a file too).
    With size None the EXIF orientation is applied, which is what viewers and browsers show.

    Raises BadImageError for empty, truncated or unknown content, and for an image of more than
    `max_pixels` (height x width), before any of it is decoded.
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
        return _decode(data, cv2.IMREAD_COLOR_RGB)
    image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image.shape[:2] == size:
        return image
    if image.shape[1::-1] == size:
        rotated = _decode(data, cv2.IMREAD_COLOR_RGB)
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
    """(h, w) of the stored pixels, from the header: microseconds for a JPEG or PNG.

    Raises BadImageError where no image is found.
    """
    if data[:4] == b'\x89PNG' and len(data) >= 24:
        w, h = struct.unpack('>II', data[16:24])
        return h, w
    if data[:2] == b'\xff\xd8':
        for marker, start in _jpeg_segments(data):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return struct.unpack('>HH', data[start + 5 : start + 9])
        raise BadImageError('truncated JPEG')
    return _size_by_pillow(data)


def _size_by_pillow(data: bytes) -> tuple[int, int]:
    """(h, w) from the header of any kind of image."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # nothing is decoded here, and the limit is decode_image's
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError) as error:  # what its readers raise for damage
        raise BadImageError('damaged, or not an image') from error


def _decode(data: bytes, flags: int) -> np.ndarray:
    """cv2.imdecode, with both of its ways to fail as one."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise BadImageError('damaged, or not an image')
    return image


def _jpeg_segments(data: bytes):
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
