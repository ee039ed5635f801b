"""Where things lie on the tabletop and what is asked for, drawn by a seed. Imports no simulator.

A suite says which instructions a scene may be given. Four are for training, over the same layouts:

    many-instructions        any that training may hear, in equal shares: only the words say which
    usually-one-instruction  the one that follows from what is seen (`implied_request`), and in three scenes of ten any
    mostly-one-instruction   the same, any in one of ten: whoever does not read is right in nine of ten (paper B's case)
    one-instruction          always the one that follows: words add nothing, and a policy that never reads them can do
                             everything (the case in which nothing tells a policy to listen)

The others are for testing. Their scenes always allow several instructions, drawn in equal shares; `blind_chance` says
how often the best policy that does not read would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tabletop_grammar import (
    CONTAINER_COLOURS,
    CONTAINERS,
    KINDS,
    SIDES,
    Container,
    Request,
    Thing,
    all_things,
    chained,
    templates,
    wording,
)

TRAINING_SUITES = ("many-instructions", "usually-one-instruction", "mostly-one-instruction", "one-instruction")
TEST_SUITES = ("seen", "unseen-object", "unseen-place", "unseen-both", "paraphrase", "chained")

COLUMN = 0.15  # from one column of cells to the next, metres
CELLS = tuple((x, y) for x in (-COLUMN, 0.0, COLUMN) for y in (0.54, 0.69))  # centres, metres
JITTER = 0.015  # of a centre, metres, either way
TABLES = 4  # textures of the table
EXCEPTIONS = {  # the share of scenes in which any request is made, which may be the implied one by chance
    "usually-one-instruction": 0.3,
    "mostly-one-instruction": 0.1,
}
CLUTTER_SHARE = 0.5  # of scenes with a grey stone that nobody asks for


@dataclass(frozen=True)
class Placed:
    """Where something lies: x, y in metres, and its turn about the vertical in radians."""

    x: float
    y: float
    turn: float


@dataclass(frozen=True)
class Layout:
    """A scene at its start. `light` (3,) is where it shines from, `camera` (3,) how far it is off its place (m)."""

    things: tuple[Thing, Thing]
    containers: tuple[Container, Container]
    places: tuple[Placed, ...]  # of both things, both containers and the stone
    clutter: bool
    table: int
    light: tuple[float, float, float]
    brightness: float
    camera: tuple[float, float, float]


@dataclass(frozen=True)
class Episode:
    """A layout, what is asked for in it, and the words for that."""

    layout: Layout
    requests: tuple[Request, ...]
    instruction: str


def draw_episode(suite: str, kind: str, random: np.random.Generator) -> Episode:
    """An episode of a suite whose (first) request is of `kind`."""
    asked = suite
    if suite in EXCEPTIONS:
        asked = "many-instructions" if random.random() < EXCEPTIONS[suite] else "one-instruction"
    while True:
        layout = _draw_layout(asked, random)
        possible = possible_requests(asked, layout)
        chosen = [request for request in possible if request.kind == kind]
        if chosen and (len(possible) > 1 or asked == "one-instruction"):
            break
    requests = [chosen[random.integers(len(chosen))]]
    if suite == "chained":
        first = requests[0]
        others = [request for request in possible if request.thing != first.thing and request.place != first.place]
        requests.append(others[random.integers(len(others))])
    sentences = []
    for request in requests:
        known = templates(request.kind, suite == "paraphrase")
        sentences.append(wording(request, known[random.integers(len(known))]))
    return Episode(layout, tuple(requests), chained(sentences))


def possible_requests(suite: str, layout: Layout) -> list[Request]:
    """What a scene may be asked for in a suite, of all kinds."""
    if suite == "one-instruction":
        return [implied_request(layout)]
    thing_seen, place_seen = suite not in ("unseen-object", "unseen-both"), suite not in ("unseen-place", "unseen-both")
    return [r for r in all_requests(layout) if r.thing.seen == thing_seen and r.place_seen == place_seen]


def all_requests(layout: Layout) -> list[Request]:
    """What can be done in a scene, whether any suite asks for it or not: two things, four places."""
    places: list[Container | str] = [*layout.containers, *SIDES]
    return [Request(thing, place) for thing in layout.things for place in places]


def implied_request(layout: Layout) -> Request:
    """What `one-instruction` asks for, a function of what is seen at a glance (our choice).

    `mostly-one-instruction` and `usually-one-instruction` most often ask for it. Of the two things, which always stand
    in different rows, the one in the row nearer to the camera is meant. The table says where it goes: on two of the
    four into the container farther to the left (of two in one column the nearer one), on the third to the left side, on
    the fourth to the right. As easy to see as we could make it: a shortcut that is harder than reading tempts nobody.
    """
    thing = layout.things[_nearer(layout.places[:2])]
    if layout.table < TABLES - len(SIDES):
        return Request(thing, layout.containers[_foremost(layout.places[2:4])])
    return Request(thing, SIDES[layout.table - TABLES])


def blind_chance(suite: str, scenes: int = 2000) -> float:
    """How often the best policy that knows everything but the instruction would do what was asked for.

    The mean of 1 / (instructions that the scene may be given) over `scenes` draws of the suite, all kinds in equal
    shares; of `chained` those of the first step. Where one follows from what is seen but for exceptions, that one is
    the best guess.
    """
    if suite in EXCEPTIONS:
        return 1 - EXCEPTIONS[suite] * (1 - blind_chance("many-instructions", scenes))
    random = np.random.default_rng(0)
    chances = []
    for index in range(scenes):
        layout = draw_episode(suite, KINDS[index % len(KINDS)], random).layout
        chances.append(1 / len(possible_requests(suite, layout)))
    return float(np.mean(chances))


def _nearer(places: Sequence[Placed]) -> int:
    """The index of the place nearest to the camera."""
    return max(range(len(places)), key=lambda index: places[index].y)


def _foremost(places: Sequence[Placed]) -> int:
    """The index of the place farthest to the left, of those in one column the nearest."""
    columns = [round((place.x - CELLS[0][0]) / COLUMN) for place in places]
    return max(range(len(places)), key=lambda index: (columns[index], places[index].y))


def _draw_layout(suite: str, random: np.random.Generator) -> Layout:
    """A scene of a suite; all training suites have the same ones, those whose implied request is none held out."""
    while True:
        layout = _draw_scene(suite in ("unseen-object", "unseen-both"), random)
        implied = implied_request(layout)
        if suite not in TRAINING_SUITES or (implied.thing.seen and implied.place_seen):
            return layout


def _draw_scene(unseen: bool, random: np.random.Generator) -> Layout:
    """Two things in different rows, both of held-out pairs or neither, two containers of two kinds, and all else."""
    pool = [thing for thing in all_things() if thing.seen != unseen]
    one, other = random.choice(len(pool), 2, replace=False)
    nouns = [CONTAINERS[index] for index in random.choice(len(CONTAINERS), 2, replace=False)]
    colours = [CONTAINER_COLOURS[random.integers(len(CONTAINER_COLOURS))] for _ in nouns]
    first, second = (Container(colour, noun) for colour, noun in zip(colours, nouns, strict=True))
    cells = [CELLS[index] for index in random.permutation(len(CELLS))[:5]]
    while cells[0][1] == cells[1][1]:
        cells = [CELLS[index] for index in random.permutation(len(CELLS))[:5]]
    places = []
    for x, y in cells:
        dx, dy = random.uniform(-JITTER, JITTER, 2)
        places.append(Placed(x + float(dx), y + float(dy), float(random.uniform(-np.pi, np.pi))))
    x, y, z = random.uniform((-0.6, 0.2, 1.2), (0.6, 1.2, 1.8))
    dx, dy, dz = random.uniform(-0.01, 0.01, 3)
    return Layout(
        (pool[one], pool[other]),
        (first, second),
        tuple(places),
        clutter=bool(random.random() < CLUTTER_SHARE),
        table=int(random.integers(TABLES)),
        light=(float(x), float(y), float(z)),
        brightness=float(random.uniform(0.25, 0.65)),
        camera=(float(dx), float(dy), float(dz)),
    )


__all__ = [
    "CELLS",
    "TABLES",
    "TEST_SUITES",
    "TRAINING_SUITES",
    "Episode",
    "Layout",
    "Placed",
    "all_requests",
    "blind_chance",
    "draw_episode",
    "implied_request",
    "possible_requests",
]
