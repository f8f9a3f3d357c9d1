r"""Style is feature moments: the package behind the book *Moments of Style*.

Each room holds one noun of the field and is imported when you first touch it, so that
``import stylemoments`` costs next to nothing:

    >>> import stylemoments
    >>> stylemoments.norms.adain.__name__
    'adain'
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("stylemoments")
__all__ = [
    "adain",
    "adapters",
    "attention",
    "check",
    "claims",
    "classroom",
    "cli",
    "color",
    "console",
    "control",
    "diffusion",
    "dreambooth",
    "editing",
    "embed",
    "evaluation",
    "files",
    "gallery",
    "interact",
    "joint",
    "judge",
    "losses",
    "metrics",
    "norms",
    "panorama",
    "photos",
    "prompts",
    "references",
    "show",
    "style_aligned",
    "style_drop",
    "train",
    "transfer",
    "vgg",
    "video",
    "world",
    "zoo",
]


def __getattr__(room: str):
    if room in __all__:
        return import_module(f"{__name__}.{room}")
    raise AttributeError(f"stylemoments has no room {room!r}; its rooms are {', '.join(__all__)}")


def __dir__():
    return sorted([*globals(), *__all__])
