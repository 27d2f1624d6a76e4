"""Draws an anemone fish (Amphiprion ocellaris) from the side, as meshes over its body and fins."""

from dataclasses import dataclass

import numpy as np

from .canvas import bezier, layer, mesh, mix, smoothstep

ORANGE, DEEP, BELLY = (242, 112, 16), (150, 48, 6), (255, 168, 60)
WHITE, BLACK = (244, 246, 250), (16, 12, 14)
# (centre along the body, half width, bend of the middle) of the three white bars; 0 is the snout, 1 the tail.
BARS = ((0.275, 0.045, -0.035), (0.575, 0.06, 0.07), (0.925, 0.032, -0.01))


# How far out a fin's black margin begins, and how solid fins are.
FIN_BLACK, FIN_ALPHA = 0.88, 0.92


@dataclass(frozen=True)
class Fin:
    """A fin spread between two Bezier curves: from `base` on the body to its outer `edge`."""

    base: tuple
    edge: tuple
    rays: int
    tint: tuple = ORANGE


TAIL = Fin(((0.98, -0.07), (1.0, 0.0), (0.98, 0.07)), ((1.20, -0.20), (1.36, -0.10), (1.36, 0.10), (1.20, 0.20)), 9)
DORSAL_FRONT = Fin(
    ((0.26, -0.17), (0.45, -0.24), (0.60, -0.19)), ((0.24, -0.24), (0.36, -0.34), (0.52, -0.34), (0.63, -0.23)), 8
)
DORSAL_REAR = Fin(
    ((0.58, -0.19), (0.74, -0.16), (0.88, -0.08)), ((0.62, -0.26), (0.74, -0.40), (0.96, -0.34), (1.00, -0.16)), 8
)
ANAL = Fin(((0.64, 0.16), (0.76, 0.14), (0.88, 0.08)), ((0.64, 0.24), (0.76, 0.38), (0.96, 0.30), (0.98, 0.14)), 8)
PELVIC = Fin(((0.34, 0.16), (0.38, 0.18), (0.46, 0.18)), ((0.36, 0.26), (0.42, 0.40), (0.58, 0.38), (0.58, 0.26)), 6)
PECTORAL = Fin(
    ((0.315, -0.01), (0.325, 0.05), (0.335, 0.10)),
    ((0.40, -0.12), (0.56, -0.08), (0.56, 0.14), (0.42, 0.20)),
    7,
    (250, 130, 28),
)


class Fish:
    """Places fish coordinates (x to the tail, y down, body length 1, snout at 0) on the canvas."""

    def __init__(self, centre, length, angle):
        self.centre, self.length = np.asarray(centre, float), length
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def place(self, points):
        points = np.array(points, float)
        points[..., 1] += 0.035 * np.sin((points[..., 0] - 0.3) * 2.6)
        return ((points - (0.55, 0.0)) * self.length) @ self.turn.T + self.centre


def _profile(u):
    knots = [0.0, 0.03, 0.09, 0.18, 0.30, 0.44, 0.58, 0.72, 0.84, 0.93, 1.0]
    top = [0.012, 0.062, 0.118, 0.172, 0.212, 0.228, 0.214, 0.172, 0.116, 0.082, 0.084]
    low = [0.012, 0.052, 0.094, 0.140, 0.182, 0.206, 0.196, 0.156, 0.102, 0.076, 0.080]
    return _smooth(u, knots, top), _smooth(u, knots, low)


def _smooth(x, knots, values):
    """Cubic Hermite interpolation through the knots."""
    knots, values = np.asarray(knots), np.asarray(values)
    slope = np.gradient(values, knots)
    i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    step = knots[i + 1] - knots[i]
    t = (x - knots[i]) / step
    a, b = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t
    return a * values[i] + b * step * slope[i] + (1 - a) * values[i + 1] + (t**3 - t**2) * step * slope[i + 1]


def _body_colours(u, v):
    """u: 0..1 along; v: -1 (back) .. 1 (belly)."""
    colour = mix(ORANGE, BELLY, smoothstep(0.15, 1.0, v))
    colour = mix(colour, DEEP, 0.55 * smoothstep(-0.55, -1.0, v))
    scales = np.sin(u * 150 + 2.2 * np.sin(v * 30)) * np.sin(v * 30)
    colour = colour * (1.0 + 0.035 * scales * smoothstep(0.25, 0.4, u))[..., None]
    for centre, half, bend in BARS:
        offset = np.abs(u - centre + bend * (1.0 - v * v) + 0.006 * np.sin(v * 7 + centre * 40))
        colour = mix(colour, BLACK, smoothstep(half + 0.022, half + 0.012, offset))
        colour = mix(colour, WHITE, smoothstep(half + 0.003, half - 0.006, offset))
    gill = np.abs(u - 0.205 - 0.03 * np.cos(v * 1.9)) + 0.1 * smoothstep(0.75, 1.0, np.abs(v))
    colour = mix(colour, DEEP, 0.5 * smoothstep(0.008, 0.0, gill))
    depth = np.sqrt(np.clip(1.0 - (0.97 * v) ** 2, 0.0, 1.0))
    light = 0.42 + 0.62 * np.clip(0.80 * depth - 0.48 * v, 0.0, 1.2)
    gloss = np.exp(-(((v + 0.42) / 0.16) ** 2)) * smoothstep(0.05, 0.3, u) * smoothstep(0.95, 0.6, u)
    return colour * light[..., None] + 34.0 * gloss[..., None]


def _grid(points):
    """Colours are per quad: the middle of each grid cell."""
    return (points[:-1, :-1] + points[1:, 1:]) / 2


def _draw_body(image, fish):
    u, v = np.meshgrid(np.linspace(0, 1, 260) ** 1.15, np.linspace(-1, 1, 90), indexing="ij")
    top, low = _profile(u)
    y = np.where(v < 0, v * top, v * low)
    mesh(image, fish.place(np.stack([u, y], -1)), _body_colours(_grid(u), _grid(v)))


def _draw_fin(image, fish, fin):
    rows, columns = 120, 36
    inner, outer = bezier(fin.base, rows), bezier(fin.edge, rows)
    t = np.linspace(0, 1, columns)
    scallop = 1.0 + 0.025 * np.sin(np.linspace(0, 1, rows) * np.pi * fin.rays * 2)
    reach = (t[None, :] * np.where(t[None, :] > 0.5, scallop[:, None], 1.0))[..., None]
    points = inner[:, None, :] * (1 - reach) + outer[:, None, :] * reach
    s, t = np.meshgrid(np.linspace(0, 1, rows), t, indexing="ij")
    s, t = _grid(s), _grid(t)
    ray = 0.5 + 0.5 * np.sin(s * np.pi * fin.rays * 2)
    side = 2.0 * np.minimum(s, 1.0 - s)
    colour = mix(fin.tint, DEEP, 0.45 * ray + 0.15 * (1 - t))
    margin = np.maximum(t, 1.0 - side * 2.0 * (1 - 0.7 * FIN_BLACK))
    colour = mix(colour, BLACK, smoothstep(FIN_BLACK - 0.05, FIN_BLACK + 0.05, margin))
    colour = mix(colour, (222, 232, 244), 0.8 * smoothstep(0.955, 0.975, t))
    mesh(image, fish.place(points), colour * (0.96 - 0.25 * (s - 0.5))[..., None], FIN_ALPHA)


def _draw_eye(image, fish):
    def disc(x, y, radius, colour):
        r, a = np.meshgrid([0.0, radius], np.linspace(0, 2 * np.pi, 48), indexing="ij")
        points = np.stack([x + r * np.cos(a), y + r * np.sin(a)], -1)
        mesh(image, fish.place(points), np.broadcast_to(np.asarray(colour, float), (1, 47, 3)))

    disc(0.118, -0.042, 0.034, (120, 40, 8))
    disc(0.118, -0.042, 0.030, (226, 126, 30))
    disc(0.118, -0.042, 0.021, (10, 8, 10))
    disc(0.110, -0.051, 0.0065, (250, 252, 255))


def _draw_mouth(image, fish):
    line = bezier([(0.004, 0.022), (0.03, 0.030), (0.058, 0.050)], 24)
    width = np.linspace(0.004, 0.0015, 24)[:, None] * np.array([[0.0, -1.0], [0.0, 1.0]])[:, None, :]
    mesh(image, fish.place(line[None] + width), np.broadcast_to(np.array([96.0, 26, 6]), (1, 23, 3)))


def draw(image, centre, length, angle=0.0):
    """Draws the fish, snout to the left. `length` of the body and `centre` in pixels, `angle` in radians."""
    fish, body = Fish(centre, length, angle), layer()
    for fin in (TAIL, DORSAL_FRONT, DORSAL_REAR, ANAL, PELVIC):
        _draw_fin(body, fish, fin)
    _draw_body(body, fish)
    _draw_mouth(body, fish)
    _draw_eye(body, fish)
    _draw_fin(body, fish, PECTORAL)
    image.alpha_composite(body)
