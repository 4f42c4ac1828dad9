"""Draws detections on images, and joins images into contact sheets.

Arrays in, arrays out: boxes or masks with labels drawn onto an RGB image, and several images joined
into one sheet. Reading and writing pictures, and choosing which to draw, are left to the callers.
"""

import colorsys
from collections.abc import Callable, Sequence

import cv2
import numpy as np

UNICODE_FONT = int(cv2.__version__.split('.')[0]) >= 5  # older ones know ASCII letters only
FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN_RATIO = 0.618034
MASK_OPACITY = 0.45  # of a mask's colour over the image


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws boxes with their class and score; line width and text grow with the image.

    Labels lie above all frames, the most confident on top. A label sits on its box, or
    inside where there is no room above, and never leaves the image.

    Args:
      image: u8[h,w,3] RGB; it is not changed.
      boxes: f32[N,4] (ymin, xmin, ymax, xmax) in pixels of the image; parts outside are cut off,
        and boxes with nothing inside or not finite are left out.
      labels: N class numbers, which choose the colour.
      scores: N confidences in [0, 1] to print as a percentage; None for ground truth.
      names: N words to print; None prints the class numbers, '' prints no label.

    Returns:
      u8[h,w,3] RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind='stable')
    shown = [(n, corners) for n in order if (corners := _pixels(boxes[n], canvas.shape[:2]))]
    for n, corners in shown:
        _draw_box(canvas, corners, class_colour(int(labels[n])))
    for n, corners in shown:
        words = str(labels[n]) if names is None else str(names[n])
        if words and scores is not None:
            words += f' {100 * float(scores[n]):.0f}%'
        if words:
            draw_label(canvas, words, corners[:2], class_colour(int(labels[n])))
    return canvas


def draw_instances(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Fills and outlines masks, a colour an object, and labels them.

    Two objects of one class have different colours, so that they can be told apart where they
    touch. Outlines lie above all fillings, those of more confident objects on top; labels, which
    have their object's colour, lie above everything.

    Args:
      image: u8[h,w,3] RGB; it is not changed.
      masks: N of bool or u8[h,w], 0 outside the object; an empty one is not drawn. Each is taken
        once and not kept, so that they can be made one at a time.
      boxes: f32[N,4] (ymin, xmin, ymax, xmax) in pixels of the image, where labels are put.
      labels: N class numbers.
      scores: N confidences in [0, 1] to print as a percentage; None for ground truth.
      names: N words to print; None prints the class numbers, '' prints no label.

    Returns:
      u8[h,w,3] RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = list(range(len(masks)))
    if scores is not None:
        order = np.argsort(np.asarray(scores), kind='stable').tolist()
    outlines, colours = {}, {}
    for n in order:
        inside = np.asarray(masks[n], bool)
        found, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if found:
            outlines[n], colours[n] = found, class_colour(len(colours))
            _fill(canvas, inside, colours[n])
    width = _line_width(*canvas.shape[:2])
    for n, outline in outlines.items():
        # A dark line beneath, half a line wider, keeps the outline visible on its own colour.
        cv2.drawContours(canvas, outline, -1, (0, 0, 0), width + max(2, width // 2))
        cv2.drawContours(canvas, outline, -1, colours[n], width)
    for n in outlines:
        corners = _pixels(boxes[n], canvas.shape[:2])
        words = str(labels[n]) if names is None else str(names[n])
        if words and scores is not None:
            words += f' {100 * float(scores[n]):.0f}%'
        if words and corners:
            draw_label(canvas, words, corners[:2], colours[n])
    return canvas


class Drawn(Sequence):
    """Masks at the size of a picture, each made when it is asked for: all would not fit memory."""

    def __init__(self, masks: Sequence[Callable[[], np.ndarray]], size: tuple[int, int]):
        """Takes functions that draw a mask u8[h,w] of 0 and 1, and the (h, w) of the picture."""
        self._masks, self._size = masks, size

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, n: int) -> np.ndarray:
        """bool[h,w]."""
        mask = self._masks[n]()
        if mask.shape == self._size:
            return mask > 0
        large = cv2.resize(mask * np.uint8(255), self._size[::-1], interpolation=cv2.INTER_LINEAR)
        return large > 127


def _fill(canvas: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Blends a colour into u8[h,w,3] where bool[h,w] says, in memory of one picture more."""
    mixed = (1 - MASK_OPACITY) * np.arange(256)[:, None] + MASK_OPACITY * np.array(colour)
    table = np.round(mixed).astype(np.uint8)[None]
    np.copyto(canvas, cv2.LUT(canvas, table), where=inside[..., None])


def class_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: bright, the same in every run, far from its neighbours'.

    Hues step by the golden ratio, so that any few classes in a row lie well apart; saturation
    and brightness alternate to tell the many classes of COCO apart.
    """
    hue = label * GOLDEN_RATIO % 1
    saturation = (0.85, 0.65, 1.0)[label % 3]
    brightness = (0.95, 0.8)[label // 3 % 2]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, brightness))


def draw_label(
    canvas: np.ndarray, words: str, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Writes words on a patch of colour above a corner (y, x), moved to stay in the picture."""
    height, width = canvas.shape[:2]
    text = words if UNICODE_FONT else words.encode('ascii', 'replace').decode()
    scale, weight = _text_scale(height, width), max(1, _line_width(height, width) // 2)
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, weight)
    margin = max(2, text_height // 4)
    patch_height, patch_width = text_height + baseline + 2 * margin, text_width + 2 * margin
    top = corner[0] - patch_height
    if top < 0:
        top = min(corner[0], height - patch_height)
    left = max(0, min(corner[1], width - patch_width))
    top = max(0, top)
    canvas[top : top + patch_height, left : left + patch_width] = colour
    origin = (left + margin, top + margin + text_height)
    cv2.putText(canvas, text, origin, FONT, scale, _readable_on(colour), weight, cv2.LINE_AA)


def tile(
    images: Sequence[np.ndarray],
    columns: int,
    size: int = 320,
    titles: Sequence[str] = (),
    gap: int = 8,
) -> np.ndarray:
    """Joins images into a contact sheet, row by row, each fitted into a column.

    Args:
      images: u8[h,w,3] RGB of any sizes; none gives one empty cell.
      columns: images a row, at least 1.
      size: width of a column and largest height in pixels; images are scaled to fit, never
        cropped or distorted.
      titles: words above the columns, at most `columns`.
      gap: pixels between cells.

    Returns:
      u8[H,W,3] RGB on white.
    """
    fitted = [_fit(image, size) for image in images] or [np.full((size, size, 3), 255, np.uint8)]
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    top = gap + (28 if titles else 0)
    shape = (top + sum(heights) + gap * len(rows), gap + columns * (size + gap), 3)
    sheet = np.full(shape, 255, np.uint8)
    for column, title in enumerate(titles):
        corner = (gap + column * (size + gap), 24)
        cv2.putText(sheet, title, corner, FONT, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    for row, row_height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            height, width = image.shape[:2]
            y = top + (row_height - height) // 2
            x = gap + column * (size + gap) + (size - width) // 2
            sheet[y : y + height, x : x + width] = image
        top += row_height + gap
    return sheet


def fit(image: np.ndarray, boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales an image with its boxes to a longer side, before drawing labels of that size.

    Args:
      image: u8[h,w,3].
      boxes: f32[N,4] in its pixels.
      side: wanted length of the longer side in pixels.

    Returns:
      The image and the boxes.
    """
    factor = side / max(image.shape[:2])
    return _fit(image, side), np.asarray(boxes, np.float32).reshape(-1, 4) * factor


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """The image scaled so that its longer side is `side`."""
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(v * factor)) for v in image.shape[:2])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """First and last pixel (y0, x0, y1, x1) of a box inside the image; None if there is none."""
    if not np.isfinite(box).all():
        return None
    ymin, xmin = np.maximum(np.round(box[:2]), 0).astype(int)
    ymax, xmax = np.minimum(np.round(box[2:]), size).astype(int)
    if ymax <= ymin or xmax <= xmin:
        return None
    return int(ymin), int(xmin), int(ymax) - 1, int(xmax) - 1


def _draw_box(
    canvas: np.ndarray, corners: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    """A frame that lies inside the box, so that it stays whole at the edge of the image."""
    y0, x0, y1, x1 = corners
    width = min(_line_width(*canvas.shape[:2]), (y1 - y0) // 2 + 1, (x1 - x0) // 2 + 1)
    for y in (slice(y0, y0 + width), slice(y1 + 1 - width, y1 + 1)):
        canvas[y, x0 : x1 + 1] = colour
    for x in (slice(x0, x0 + width), slice(x1 + 1 - width, x1 + 1)):
        canvas[y0 : y1 + 1, x] = colour


def _line_width(height: int, width: int) -> int:
    """Pixels of a frame: 2 at 640, 12 at 4,000."""
    return max(1, round(0.003 * max(height, width)))


def _text_scale(height: int, width: int) -> float:
    """OpenCV's font scale: letters of about 1.8% of the longer side, at least 9 pixels."""
    return max(0.4, max(height, width) * 0.018 / 22)


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out (ITU-R BT.601 luma)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)
