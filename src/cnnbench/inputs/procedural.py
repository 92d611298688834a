"""Draw the embedded data set: JPEG photographs-to-be of 100 classes, the same bytes on every machine.

A class is one of ten colours times one of ten textures. What it fills, where and how large, the background, the light
and the noise are drawn per image, so that a classifier has something to learn and something to get wrong. All
arithmetic is on integers (and IEEE square roots), and the random numbers are raw PCG64 output, whose stream numpy
guarantees: a vectorised cosine of another CPU would change a pixel, and then the accuracy of two machines could not
be compared.
"""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cnnbench.base.progress import Progress

SEED = "cnnbench-procedural-1"
"""Names the version of the drawing: change it whenever a pixel changes."""

COLOURS = {
    "red": (200, 40, 40),
    "orange": (230, 130, 30),
    "yellow": (225, 210, 50),
    "green": (50, 160, 60),
    "teal": (40, 165, 165),
    "blue": (45, 80, 200),
    "purple": (130, 60, 180),
    "pink": (235, 130, 180),
    "brown": (125, 80, 45),
    "grey": (130, 130, 135),
}
TEXTURES = ("plain", "rows", "columns", "diagonals", "checks", "dots", "rings", "grid", "patches", "zigzags")
CLASSES = tuple(f"{colour} {texture}" for colour in COLOURS for texture in TEXTURES)
"""The class names; the label of CLASSES[i] is i + 1, because label 0 is the background class of the 1001."""

IMAGES_PER_CLASS = {"calibration": 2, "training": 12, "validation": 10}
"""How many images of each class every part holds; no image is in two parts."""

SIZES = ((500, 375), (375, 500), (500, 333), (400, 300), (333, 500))
"""Widths and heights in pixels, common ones of ImageNet, so that decoding costs what it does there."""

JPEG_QUALITY = 90


class Dice:
    """Draw small integers from a PCG64 stream that its name fixes."""

    def __init__(self, name: str) -> None:
        seed = int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest(), "little")
        self._bits = np.random.PCG64(seed)

    def between(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def bytes(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uniform uint8 noise of the given shape."""
        size = int(np.prod(shape))
        return self._bits.random_raw(-(-size // 8)).view(np.uint8)[:size].reshape(shape)


@dataclass(frozen=True)
class Drawing:
    """One image to draw: the part it belongs to, its number in the part and its class (0 to 99)."""

    part: str
    number: int
    class_index: int

    @property
    def file(self) -> str:
        """The image's path inside its part."""
        return f"images/{self.number:05d}.jpg"

    @property
    def label(self) -> int:
        """The class number in the model's 1001 outputs."""
        return self.class_index + 1


def drawings(part: str) -> Iterator[Drawing]:
    """Yield what one part holds, the classes taking turns so that any prefix is balanced."""
    for number in range(len(CLASSES) * IMAGES_PER_CLASS[part]):
        yield Drawing(part, number, number % len(CLASSES))


def _shape_mask(dice: Dice, x: np.ndarray, y: np.ndarray, radius: int) -> np.ndarray:
    """Return where the object is, from coordinates relative to its centre (int32, H x W)."""
    kind = dice.between(0, 4)
    wide, high = radius, radius * dice.between(70, 100) // 100
    if kind == 0:  # ellipse; 64 bits, because the squares of a far corner pass 2^31
        return x.astype(np.int64) ** 2 * high**2 + y.astype(np.int64) ** 2 * wide**2 <= wide**2 * high**2
    if kind == 1:  # rectangle
        return (abs(x) <= wide * 9 // 10) & (abs(y) <= high * 9 // 10)
    if kind == 2:  # rhombus
        return abs(x) * high + abs(y) * wide <= wide * high * 115 // 100
    if kind == 3:  # triangle, point up
        return (y <= high * 8 // 10) & (abs(x) * 2 * high <= (y + high) * wide * 115 // 100)
    return (abs(x) + abs(y) <= radius * 5 // 4) & (abs(x) <= wide) & (abs(y) <= high)  # octagon


def _texture_mask(dice: Dice, texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the second tint of a texture goes (bool, H x W)."""
    period = dice.between(24, 32)
    half = period // 2
    x = x + dice.between(0, period) + 4096
    y = y + dice.between(0, period) + 4096
    if texture == "rows":
        return y % period < half
    if texture == "columns":
        return x % period < half
    if texture == "diagonals":
        return (x + y) % (period * 14 // 10) < half * 14 // 10
    if texture == "checks":
        return (x // half + y // half) % 2 == 0
    if texture == "dots":
        dx, dy = x % period - half, y % period - half
        return dx * dx + dy * dy <= (period * 30 // 100) ** 2
    if texture == "rings":
        distance = np.sqrt(((x - 4096) ** 2 + (y - 4096) ** 2).astype(np.float64)).astype(np.int32)
        return distance % period < half
    if texture == "grid":
        return (x % period < period // 5) | (y % period < period // 5)
    if texture == "patches":
        cells = dice.bytes((512, 512))
        return cells[(y // half) % 512, (x // half) % 512] < 128
    if texture == "zigzags":
        wave = abs(x % (2 * half) - half)
        return (y + wave) % period < half
    return np.zeros_like(x, dtype=bool)


def _background(dice: Dice, width: int, height: int) -> np.ndarray:
    """Return a two-tone gradient with blotches (int32, H x W x 3)."""
    first, second = (dice.between(40, 215) + np.array([dice.between(-30, 30) for _ in range(3)]) for _ in range(2))
    slope_x, slope_y = dice.between(0, 255), dice.between(0, 255)
    x = np.arange(width, dtype=np.int32)[None, :] * slope_x // width
    y = np.arange(height, dtype=np.int32)[:, None] * slope_y // height
    mix = (x + y)[..., None]
    picture = first + (second - first) * mix // 512
    blotches = dice.bytes((9, 9)).astype(np.int32) - 128
    cell = 64
    return picture + blotches[np.arange(height) // cell][:, np.arange(width) // cell][..., None] // 5


def draw(drawing: Drawing) -> bytes:
    """Draw one image and return its JPEG bytes."""
    dice = Dice(f"{drawing.part}/{drawing.number}")
    colour_name, texture = CLASSES[drawing.class_index].split()
    width, height = SIZES[dice.between(0, len(SIZES) - 1)]
    shorter = min(width, height)

    picture = _background(dice, width, height)
    centre_x = width // 2 + dice.between(-shorter // 10, shorter // 10)
    centre_y = height // 2 + dice.between(-shorter // 10, shorter // 10)
    x = np.arange(width, dtype=np.int32)[None, :] - centre_x + np.zeros((height, 1), dtype=np.int32)
    y = np.arange(height, dtype=np.int32)[:, None] - centre_y + np.zeros((1, width), dtype=np.int32)
    inside = _shape_mask(dice, x, y, shorter * dice.between(40, 52) // 100)

    light = dice.between(88, 110)
    colour = np.array([c + dice.between(-10, 10) for c in COLOURS[colour_name]], dtype=np.int32) * light // 100
    tint = colour * dice.between(30, 50) // 100
    textured = np.where(_texture_mask(dice, texture, x, y)[..., None], tint, colour)
    picture = np.where(inside[..., None], textured, picture)

    strength = dice.between(10, 40)
    picture = picture + (dice.bytes((height, width, 3)).astype(np.int32) - 128) * strength // 256
    jpeg = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return jpeg.getvalue()


def _draw_to(root: Path, drawing: Drawing) -> None:
    (root / drawing.file).write_bytes(draw(drawing))


def draw_part(part: str, root: Path, processes: int) -> list[tuple[str, int]]:
    """Draw a whole part below `root` and return its (file, label) rows."""
    (root / "images").mkdir(parents=True)
    todo = list(drawings(part))
    progress = Progress(f"drawing the {part} images", len(todo), "images")
    with ProcessPoolExecutor(processes) as pool, progress:
        for _ in pool.map(partial(_draw_to, root), todo, chunksize=16):
            progress.advance(1)
    return [(drawing.file, drawing.label) for drawing in todo]
