"""What can be said on the tabletop: colours, shapes, places, the words around them, and what training never hears.

An instruction asks for one thing or, chained, for two: a verb, a colour, a shape and a place. All words are heard in
training and only combinations are held out (vision and text encoders that were never aligned to each other cannot be
asked for words that nobody has shown them): a colour with a shape, and a shape with a place. Paraphrases alone have
verbs of their own. Imports no simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("cube", "ball", "bar", "cross")
CONTAINERS = ("bowl", "box", "plate", "mat")
CONTAINER_COLOURS = ("white", "black")
SIDES = ("left", "right")  # as the camera sees it
KINDS = ("put", "move")  # into a container, to a side of the table

# Every colour and every shape has held-out partners and others; some held-out pairs share a colour or a shape, so that
# neither word alone says which of two things is meant.
UNSEEN_OBJECTS = frozenset(
    {("red", "cube"), ("red", "ball"), ("green", "ball"), ("blue", "bar"), ("blue", "cross"), ("yellow", "cross")}
)
UNSEEN_PLACES = frozenset(
    {("cube", "bowl"), ("ball", "box"), ("bar", "plate"), ("cross", "mat"), ("cube", "left"), ("ball", "right")}
)

# {thing} is a colour and a shape, {place} a colour and a container, or a side. The words of training and paraphrases.
TEMPLATES = {
    "put": ("Put the {thing} {place}.", "Place the {thing} {place}.", "Set the {thing} down {place}."),
    "move": ("Move the {thing} {place}.", "Bring the {thing} {place}.", "Take the {thing} {place}."),
}
PARAPHRASES = {
    "put": ("Drop the {thing} {place}.", "I would like the {thing} {place}, please.", "The {thing} belongs {place}."),
    "move": ("Carry the {thing} {place}.", "Please get the {thing} over {place}.", "Shift the {thing} {place}."),
}
PREPOSITIONS = {"bowl": "in", "box": "in", "plate": "on", "mat": "on"}


@dataclass(frozen=True)
class Thing:
    """Something that can be picked up, by its colour and shape."""

    colour: str
    shape: str

    @property
    def seen(self) -> bool:
        """Whether training ever asks for it."""
        return (self.colour, self.shape) not in UNSEEN_OBJECTS


@dataclass(frozen=True)
class Container:
    """Something to put things in or on, by its colour and kind."""

    colour: str
    noun: str


@dataclass(frozen=True)
class Request:
    """One thing to do: `thing` belongs into a container, or to a side of the table (`left` or `right`)."""

    thing: Thing
    place: Container | str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "move" if isinstance(self.place, str) else "put"

    @property
    def place_seen(self) -> bool:
        """Whether training ever asks for this shape at this place."""
        noun = self.place if isinstance(self.place, str) else self.place.noun
        return (self.thing.shape, noun) not in UNSEEN_PLACES


def all_things() -> list[Thing]:
    """Every colour with every shape."""
    return [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]


def wording(request: Request, template: str) -> str:
    """A request as a sentence; `template` has places for `{thing}` and `{place}`."""
    if isinstance(request.place, str):
        place = f"to the {request.place} side"
    else:
        place = f"{PREPOSITIONS[request.place.noun]} the {request.place.colour} {request.place.noun}"
    return template.format(thing=f"{request.thing.colour} {request.thing.shape}", place=place)


def templates(kind: str, paraphrased: bool) -> tuple[str, ...]:
    """The sentences of a kind that training hears, or those that it does not."""
    return (PARAPHRASES if paraphrased else TEMPLATES)[kind]


def chained(sentences: Sequence[str]) -> str:
    """Several sentences as one: what is first is done first."""
    first, *others = (sentence.rstrip(".") for sentence in sentences)
    return ", then ".join([first, *(other[0].lower() + other[1:] for other in others)]) + "."


__all__ = [
    "COLOURS",
    "CONTAINERS",
    "CONTAINER_COLOURS",
    "KINDS",
    "PARAPHRASES",
    "SHAPES",
    "SIDES",
    "TEMPLATES",
    "UNSEEN_OBJECTS",
    "UNSEEN_PLACES",
    "Container",
    "Request",
    "Thing",
    "all_things",
    "chained",
    "templates",
    "wording",
]
