"""The tiny world: a few dozen nameable objects in a few hands, styles and places, with known ground truth.

Every picture comes with its prompt and with everything that is true of it. The prompt names the object, the place and
the style. It never names the palette, so two pictures with the same words do not match: the problem that style
alignment solves, here with known answers.

    >>> from stylemoments import world
    >>> sample = world.World(seed=0).sample(4, style="neon light")
    >>> sample.images.shape, sample.styles[0]
    ((4, 3, 64, 64), 'neon light')
"""

from .drawings import HANDS, HELD_OUT_HAND, OBJECTS, SUBJECT_NOUNS
from .palette import Palette
from .picture import stylize_picture
from .places import PLACES
from .prompts import NOWHERE, PLAIN, prompt
from .styles import STYLES
from .world import HELD_OUT, Sample, Subject, World

__all__ = [
    "HANDS",
    "HELD_OUT",
    "HELD_OUT_HAND",
    "NOWHERE",
    "OBJECTS",
    "PLACES",
    "PLAIN",
    "STYLES",
    "SUBJECT_NOUNS",
    "Palette",
    "Sample",
    "Subject",
    "World",
    "prompt",
    "stylize_picture",
]
