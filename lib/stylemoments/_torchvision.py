"""Lets torchvision be imported beside a torch it was not compiled for (pytorch/vision #9085).

timm, open_clip, and the pipelines of diffusers import torchvision at their start. Beside a CPU build of torch, the
registry's torchvision cannot load its compiled operators and then fails on a declaration of ``nms``. Nothing here uses
``nms``, so declaring it is enough. Beside a torchvision that loads, this room does nothing: declaring twice raises.

Import this room before any of those libraries.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def compiled_operators_load() -> bool:
    """Whether torchvision's compiled operators fit this torch; False where torchvision is not installed."""
    spec = find_spec("torchvision")
    if spec is None:
        return False
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(library)
            return True
        except OSError:
            pass
    return False


def declare_missing() -> "torch.library.Library | None":
    """Declare what torchvision would have compiled; the library must be kept, its declarations die with it."""
    if compiled_operators_load() or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


KEPT = declare_missing()
