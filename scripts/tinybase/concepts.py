"""The words the demo model knows, and the icon that shows each one.

Few concepts with a distinctive outline are learnt much better in an hour than many: every concept here
was kept because it can be told from the others at 64 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Concept:
    """One noun, its icon, and whether its main colour may be changed by a word in the prompt."""

    noun: str
    icon: str
    recolour: bool = False


def _many(text: str, recolour: bool) -> list[Concept]:
    """Reads `noun=icon` pairs; a lone word is its own icon."""
    pairs = (item.partition("=") for item in text.split())
    return [Concept(noun.replace("_", " "), icon or noun, recolour) for noun, _, icon in pairs]


RECOLOURABLE: Final = """
apple=red-apple pear car=automobile bus rocket airplane sailboat tractor bicycle ufo=flying-saucer
heart=red-heart star balloon umbrella butterfly fish=tropical-fish crab octopus whale=spouting-whale dinosaur=sauropod
mushroom tulip leaf=maple-leaf house bell gift=wrapped-gift crown t-shirt guitar key lock=locked gem=gem-stone
anchor teapot alien
"""

FIXED: Final = """
banana lemon strawberry cherry=cherries grapes watermelon pineapple peach avocado carrot eggplant
cheese=cheese-wedge donut=doughnut cookie cake=birthday-cake pizza hamburger ice_cream=soft-ice-cream
pretzel croissant
cat=cat-face dog=dog-face fox lion panda pig=pig-face rabbit=rabbit-face frog bear koala tiger=tiger-face
monkey=monkey-face cow=cow-face penguin owl chick=front-facing-baby-chick snail turtle bee=honeybee
ladybug=lady-beetle unicorn
tree=deciduous-tree pine=evergreen-tree palm=palm-tree cactus sun moon=crescent-moon rainbow snowflake
sunflower rose fire castle trophy camera pencil magnet skull ghost pumpkin=jack-o-lantern basketball
"""

ALL: Final = tuple(_many(RECOLOURABLE, True) + _many(FIXED, False))

HELD_OUT_OF_STYLES: Final = frozenset(concept.noun for concept in ALL[::4])
"""The style adapters never see these, so that a picture of one shows what an adapter has learnt of style."""

SUBJECTS: Final = ("zuzu", "krok")
"""Made-up words: the base model has a token for each but was never shown one. The subject adapter teaches them."""

COLOURS: Final = {
    "red": (232, 44, 44),
    "orange": (250, 134, 32),
    "yellow": (252, 210, 44),
    "green": (40, 180, 74),
    "blue": (38, 114, 236),
    "purple": (138, 62, 204),
    "pink": (250, 104, 178),
}
"""The colours a recolourable thing may take."""

BACKGROUNDS: Final = {
    "white": (255, 255, 255),
    "red": (226, 82, 78),
    "orange": (248, 168, 84),
    "yellow": (250, 224, 112),
    "green": (112, 192, 118),
    "blue": (108, 168, 240),
    "purple": (160, 116, 208),
    "pink": (250, 176, 208),
    "black": (26, 26, 34),
    "gray": (158, 160, 166),
}
