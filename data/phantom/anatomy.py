"""One synthetic head and three ways to image it: the physics behind the phantom questions.

A `Scene` is a label map: tissues (air, scalp, bone, grey and white matter, fluid) and 0 to 3
lesions, each in a quadrant of its own. `render` images it as MRI, CT or X-ray. The pictures look
medical and are not: nothing that is measured on them says anything about patients. numpy and Pillow
only; everything follows from the scene's seed.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

SIZE = 112  # pixels a side: 16 visual tokens of 28 x 28
MODALITIES = ("MRI", "CT", "XRAY")
RADII = {"small": (5.0, 6.5), "large": (9.5, 11.5)}  # pixels

AIR, SCALP, BONE, GREY, WHITE, FLUID, CYST, MASS, RIM, CORE, CALCIUM = range(11)
SOLID = {"cyst": CYST, "solid mass": MASS}  # kinds of lesion that are of one tissue

# What one label gives under each physics. MRI: signal of a T1-like sequence. CT: Hounsfield units.
# X-ray: attenuation per unit of path length. Orders of magnitude are those of textbooks; the
# phantom is not calibrated.
MRI_SIGNAL = np.array([0.0, 0.75, 0.06, 0.42, 0.55, 0.18, 0.10, 0.88, 0.95, 0.12, 0.02])
CT_UNITS = np.array([-1000, 20, 900, 38, 30, 8, -4, 78, 84, 6, 320], dtype=float)
XRAY_ATTENUATION = np.array([0.0, 0.4, 2.6, 0.90, 0.86, 0.78, 0.45, 1.45, 1.65, 0.62, 2.9])


@dataclass(frozen=True)
class Lesion:
    """A lesion: its `kind`, `size` word and `quadrant`; centre (x, y) and radius in pixels."""

    kind: str
    size: str
    quadrant: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """All that decides a picture but the modality. `seed` gives anatomy, noise and contrast."""

    seed: int
    lesions: tuple[Lesion, ...]

    @cached_property
    def hash(self) -> str:
        """Content hash of the anatomy and its lesions, to prove that splits are disjoint."""
        return hashlib.sha256(repr((_anatomy(self.seed), self.lesions)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PhantomImage:
    """A picture drawn when it is opened: `key` names it for good, `open()` gives the RGB image."""

    scene: Scene
    modality: str

    @cached_property
    def key(self) -> str:
        return f"phantom/{self.modality}/{self.scene.seed}/{self.scene.hash}"

    def open(self) -> Image.Image:
        return Image.fromarray(render(self.scene, self.modality)).convert("RGB")


def _anatomy(seed: int) -> tuple[float, ...]:
    """Centre, semi-axes of the head, and ventricle offsets, in pixels."""
    draw = np.random.default_rng([seed, 1]).uniform
    return (*draw(54.5, 57.5, 2), draw(41, 44), draw(48, 51), *draw(-1.0, 1.0, 2))


def place_lesions(seed: int, wanted: list[tuple[str, str, str]]) -> Scene:
    """A scene with one lesion a (kind, size, quadrant) in `wanted`; quadrants must differ."""
    rng = np.random.default_rng([seed, 2])
    x0, y0, a, b, *_ = _anatomy(seed)
    lesions = []
    for kind, size, quadrant in wanted:
        radius = rng.uniform(*RADII[size])
        # Uniform over the part of the quadrant that keeps off the midlines and the skull.
        while True:
            dx, dy = rng.uniform(9.0, a - 8), rng.uniform(9.0, b - 8)
            if (dx / (a - 8 - radius)) ** 2 + (dy / (b - 8 - radius)) ** 2 < 1:
                break
        x = x0 + (dx if "right" in quadrant else -dx)
        y = y0 + (dy if "lower" in quadrant else -dy)
        lesions.append(Lesion(kind, size, quadrant, round(x, 2), round(y, 2), round(radius, 2)))
    return Scene(seed, tuple(lesions))


def label_map(scene: Scene) -> np.ndarray:
    """The anatomy as one tissue label a pixel: (SIZE, SIZE) uint8."""
    x0, y0, a, b, vx, vy = _anatomy(scene.seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    u, v = x - x0, y - y0

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 < 1

    labels = np.zeros((SIZE, SIZE), np.uint8)
    for margin, tissue in ((0, SCALP), (2, BONE), (6, GREY), (11, WHITE)):
        labels[ellipse(0, 0, a - margin, b - margin)] = tissue
    for side in (-1, 1):
        labels[ellipse(side * 4 + vx, vy - 2, 2.6, 8)] = FLUID
    rng = np.random.default_rng([scene.seed, 3])
    for lesion in scene.lesions:
        _draw_lesion(labels, lesion, x - lesion.x, y - lesion.y, rng)
    return labels


def _draw_lesion(
    labels: np.ndarray, lesion: Lesion, dx: np.ndarray, dy: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw one lesion into the label map; `dx`, `dy` (SIZE, SIZE) are distances from its centre."""
    distance = np.hypot(dx, dy)
    inside = distance < lesion.radius
    if lesion.kind in SOLID:
        labels[inside] = SOLID[lesion.kind]
    elif lesion.kind == "abscess":  # a bright rim around a dark core
        labels[inside] = RIM
        labels[distance < 0.62 * lesion.radius] = CORE
    elif lesion.kind == "calcification":  # grains of calcium, no mass between them
        grains = rng.random(labels.shape).repeat(2, 0).repeat(2, 1)[:SIZE, :SIZE] < 0.45
        labels[inside & grains] = CALCIUM
    else:  # spiculated mass: a small body with rays
        rays = np.cos(7 * np.arctan2(dy, dx) + rng.uniform(0, 6)) > 0.55
        labels[(distance < 0.5 * lesion.radius) | (rays & (distance < 1.2 * lesion.radius))] = MASS


def render(scene: Scene, modality: str) -> np.ndarray:
    """The scene as `modality` shows it: (SIZE, SIZE) uint8."""
    labels = label_map(scene)
    rng = np.random.default_rng([scene.seed, 4, MODALITIES.index(modality)])
    picture = {"MRI": _mri, "CT": _ct, "XRAY": _xray}[modality](labels, rng)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _mri(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tissue contrast under a smooth bias field, Rician noise (magnitude of a complex signal)."""
    ramp = np.linspace(-1, 1, SIZE)
    bias = 1 + rng.uniform(-0.15, 0.15) * ramp[:, None] + rng.uniform(-0.15, 0.15) * ramp[None, :]
    signal = _blur(MRI_SIGNAL[labels] * rng.uniform(0.97, 1.03, 11)[labels] * bias, 0.6)
    sigma = rng.uniform(0.02, 0.045)
    real, imaginary = rng.normal(0, sigma, (2, SIZE, SIZE))
    return np.hypot(signal + real, imaginary)


def _ct(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hounsfield-like units with noise, then a brain window of varying level and width."""
    units = _blur(CT_UNITS[labels], 0.6) + rng.normal(0, rng.uniform(4, 9), labels.shape)
    level, width = rng.uniform(34, 42), rng.uniform(110, 140)
    return (units - level) / width + 0.5


def _xray(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beer-Lambert through a head of rounded depth, focal blur, dense parts white as on film."""
    head = np.argwhere(labels > AIR)
    (top, left), (bottom, right) = head.min(0), head.max(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    u, v = (x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top)
    rho = u**2 + v**2
    depth = np.sqrt(np.clip(1 - 3.2 * rho, 0.05, None)) * rng.uniform(0.95, 1.05)  # 0.2 at the edge
    absorbed = _blur(XRAY_ATTENUATION[labels] * depth, 1.3)
    transmitted = np.exp(-absorbed) + rng.normal(0, rng.uniform(0.008, 0.018), labels.shape)
    return (1 - transmitted) * 1.25 - 0.15


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W), separable, edges repeated."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis, margins in enumerate([((reach, reach), (0, 0)), ((0, 0), (reach, reach))]):
        padded = np.pad(picture, margins, "edge")
        picture = np.zeros_like(picture)
        for i, weight in enumerate(kernel):
            picture += weight * padded.take(range(i, i + SIZE), axis)
    return picture
