"""Where things lie on the tabletop and what is asked for, drawn by a seed. Imports no simulator.

A suite says which instructions a scene may be given. Two are for training, over the same layouts:

    many-instructions   any that training may hear, in equal shares: only the words say which
    one-instruction     a single one, which follows from what lies there (`implied_request`): words add nothing, and a
                        policy that never reads them can do everything (paper B's case)

The others are for testing. Their scenes always allow several instructions, drawn in equal shares; `blind_chance` says
how often the best policy that does not read would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tabletop_grammar import (
    COLOURS,
    CONTAINER_COLOURS,
    CONTAINERS,
    KINDS,
    SHAPES,
    SIDES,
    Container,
    Request,
    Thing,
    all_things,
    chained,
    templates,
    wording,
)

TRAINING_SUITES = ("many-instructions", "one-instruction")
TEST_SUITES = ("seen", "unseen-object", "unseen-place", "unseen-both", "paraphrase", "chained")

CELLS = tuple((x, y) for x in (-0.15, 0.0, 0.15) for y in (0.54, 0.69))  # centres, metres
JITTER = 0.015  # of a centre, metres, either way
TABLES = 4  # textures of the table
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
    while True:
        things, containers = _draw_contents(suite, random)
        possible = possible_requests(suite, things, containers)
        chosen = [request for request in possible if request.kind == kind]
        if chosen and (len(possible) > 1 or suite == "one-instruction"):
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
    return Episode(_draw_layout(things, containers, random), tuple(requests), chained(sentences))


def possible_requests(suite: str, things: Sequence[Thing], containers: Sequence[Container]) -> list[Request]:
    """What a scene with these things may be asked for in a suite, of all kinds."""
    if suite == "one-instruction":
        return [request] if (request := implied_request(things, containers)) is not None else []
    places: list[Container | str] = [*containers, *SIDES]
    requests = [Request(thing, place) for thing in things for place in places]
    thing_seen, place_seen = suite not in ("unseen-object", "unseen-both"), suite not in ("unseen-place", "unseen-both")
    return [r for r in requests if r.thing.seen == thing_seen and r.place_seen == place_seen]


def implied_request(things: Sequence[Thing], containers: Sequence[Container]) -> Request | None:
    """What `one-instruction` asks for, a function of what lies there (our choice); None where training never asks so.

    Of two things the one is meant whose colour comes first in the round red, green, blue, yellow, red; where the
    colours are equal, shapes decide in the same way. Of two containers that are neighbours in the round bowl, box,
    plate, mat, bowl the first is the place; bowl and plate mean the left side, box and mat the right.
    """
    thing = things[0] if _precedes(things[0], things[1]) else things[1]
    first, second = (CONTAINERS.index(container.noun) for container in containers)
    place: Container | str
    if (second - first) % len(CONTAINERS) == 1:
        place = containers[0]
    elif (first - second) % len(CONTAINERS) == 1:
        place = containers[1]
    else:
        place = SIDES[min(first, second)]
    request = Request(thing, place)
    return request if request.thing.seen and request.place_seen else None


def blind_chance(suite: str, scenes: int = 2000) -> float:
    """How often the best policy that knows everything but the instruction would do what was asked for.

    The mean of 1 / (instructions that the scene may be given) over `scenes` draws of the suite, all kinds in equal
    shares; of `chained` those of the first step.
    """
    random = np.random.default_rng(0)
    chances = []
    for index in range(scenes):
        layout = draw_episode(suite, KINDS[index % len(KINDS)], random).layout
        chances.append(1 / len(possible_requests(suite, layout.things, layout.containers)))
    return float(np.mean(chances))


def _draw_contents(suite: str, random: np.random.Generator) -> tuple[tuple[Thing, Thing], tuple[Container, Container]]:
    """Two things and two containers, in no order."""
    unseen = suite in ("unseen-object", "unseen-both")
    pool = [thing for thing in all_things() if thing.seen != unseen]
    if suite in TRAINING_SUITES:  # the same layouts for both: those with an implied request, all targets equally often
        while True:
            target = pool[random.integers(len(pool))]
            others = [thing for thing in pool if thing != target and _precedes(target, thing)]
            things = (target, others[random.integers(len(others))])
            containers = _draw_containers(random)
            if implied_request(things, containers) is not None:
                break
    else:
        first, second = random.choice(len(pool), 2, replace=False)
        things, containers = (pool[first], pool[second]), _draw_containers(random)
    return (things if random.random() < 0.5 else (things[1], things[0])), containers


def _draw_containers(random: np.random.Generator) -> tuple[Container, Container]:
    """Of two kinds; a third of the pairs are no neighbours in the round, so that half of the scenes must have those."""
    first = int(random.integers(len(CONTAINERS)))
    step = int(random.choice((1, 2, 3), p=(0.25, 0.5, 0.25)))
    nouns = (CONTAINERS[first], CONTAINERS[(first + step) % len(CONTAINERS)])
    one, other = (Container(CONTAINER_COLOURS[random.integers(len(CONTAINER_COLOURS))], noun) for noun in nouns)
    return one, other


def _precedes(one: Thing, other: Thing) -> bool:
    if one.colour != other.colour:
        return _before(COLOURS.index(one.colour), COLOURS.index(other.colour), len(COLOURS))
    return _before(SHAPES.index(one.shape), SHAPES.index(other.shape), len(SHAPES))


def _before(one: int, other: int, length: int) -> bool:
    """In a round: the next one follows; of two that stand opposite, the one that is named later follows."""
    step = (other - one) % length
    return step < length / 2 or (2 * step == length and one < other)


def _draw_layout(
    things: tuple[Thing, Thing], containers: tuple[Container, Container], random: np.random.Generator
) -> Layout:
    cells = [CELLS[index] for index in random.permutation(len(CELLS))[:5]]
    places = []
    for x, y in cells:
        dx, dy = random.uniform(-JITTER, JITTER, 2)
        places.append(Placed(x + float(dx), y + float(dy), float(random.uniform(-np.pi, np.pi))))
    x, y, z = random.uniform((-0.6, 0.2, 1.2), (0.6, 1.2, 1.8))
    dx, dy, dz = random.uniform(-0.01, 0.01, 3)
    return Layout(
        things,
        containers,
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
    "blind_chance",
    "draw_episode",
    "implied_request",
    "possible_requests",
]
