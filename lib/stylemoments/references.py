"""Who leads and who follows in a batch of the U-Net: guidance's halves, several sets, mixtures, a kept reference.

For :mod:`stylemoments.style_aligned`. The words are those of Hertz et al., *Style Aligned Image Generation via Shared
Attention*, 2024 (arXiv 2312.02133): a **reference** looks at itself, a **target** at itself and its reference. The
public code takes the first row of each half of the batch for the reference, with guidance or not; here the rows are
seen or said.

Axes: ``B`` rows of the batch; ``t`` target rows, ``r`` rows that are looked at, ``R`` of them by one target.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

LAYOUTS = ("auto", "single", "halves", "pairs")


@dataclass(frozen=True)
class Rows:
    """Who follows whom in one batch of the U-Net; the fields are rows, or places in ``source``."""

    plain: Tensor  # (p,) rows that are computed as without sharing
    targets: Tensor  # (t,) rows that look at others, too
    source: Tensor | None  # (r,) rows that are looked at; None where they were kept
    followed: Tensor  # (t, R) which of the source each target looks at
    weights: Tensor  # (t, R) how much; 0 fills up
    even: bool  # whether all weights are 1

    def check(self, x: Tensor) -> None:
        """Refuse a batch that is not the one the U-Net was called with."""
        known = len(self.plain) + len(self.targets)
        if len(x) != known:
            raise RuntimeError(
                f"the network was called with {known} rows, and a layer of it with {len(x)}: call the network itself"
            )

    def of_targets(self, x: Tensor) -> Tensor:
        """What each target follows, (t, R, ...), of (r, ...)."""
        return x[self.followed]


def follows(reference, n: int) -> list[dict[int, float]]:
    """For each of n pictures, which it follows with which weight; a reference follows itself."""
    entries = [reference] * n if _is_index(reference) else list(reference)
    if len(entries) != n:
        raise ValueError(
            f"reference has {len(entries)} entries, one for each picture, but the network was called with {n} pictures"
        )
    follows = [dict(entry) if isinstance(entry, Mapping) else {entry: 1.0} for entry in entries]
    for picture, weights in enumerate(follows):
        for j in weights:
            if j not in range(n):
                raise ValueError(f"picture {picture} cannot follow picture {j}: the batch has pictures 0 to {n - 1}")
            if follows[j] != {j: 1.0}:
                raise ValueError(
                    f"picture {picture} follows picture {j}, which follows another itself; a reference follows itself, "
                    f"so entry {j} of reference must be {j}"
                )
    return follows


def _is_index(entry) -> bool:
    return isinstance(entry, Integral) and not isinstance(entry, bool) and entry >= 0


def check_reference(reference) -> None:
    """What can be said of a reference before the pictures are counted."""
    if isinstance(reference, KeptReference) or _is_index(reference):
        return
    if not isinstance(reference, Sequence) or isinstance(reference, str) or not reference:
        raise ValueError(
            "reference is the index of a picture, a list with an entry for each picture, or a KeptReference; "
            f"got {reference!r}"
        )
    for entry in reference:
        weights = entry if isinstance(entry, Mapping) else {}
        fine = all(_is_index(j) and w > 0 for j, w in weights.items())
        if not _is_index(entry) and not (fine and math.isclose(sum(weights.values()), 1, abs_tol=1e-6)):
            raise ValueError(
                "an entry of reference is the index of the picture to follow, or indices with positive weights that "
                f"sum to 1, such as {{0: 0.3, 1: 0.7}}; got {entry!r}"
            )


def batch_layout(latents: Tensor, layout: str = "auto") -> Tensor:
    """Which rows of a batch are which pictures, with guidance or without.

    Guidance shows the U-Net the same latents twice. ``"auto"`` sees this: rows that repeat as a whole are ``"halves"``,
    ``[uncond; cond]`` or the other way round; rows that repeat one by one are ``"pairs"``; all others are ``"single"``.
    Two rows that are the same are one picture.

    Args:
        latents: (B, C, H, W), what the U-Net is called with.
        layout: of ``LAYOUTS``.

    Returns:
        (copies, pictures), the row of each copy of each picture.

    Raises:
        ValueError: a layout that does not fit, or latents that repeat in more than one way, or more than twice.

    Example:
        >>> noise = torch.randn(3, 4, 8, 8)
        >>> batch_layout(torch.cat([noise, noise]))
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    if layout == "auto":
        layout = _seen_layout(latents)
    rows = torch.arange(len(latents))
    if layout == "single":
        return rows[None]
    if len(rows) % 2:
        raise ValueError(f"the layout {layout!r} has two rows for each picture; got a batch of {len(rows)}")
    return rows.view(2, -1) if layout == "halves" else rows.view(-1, 2).T


def _seen_layout(latents: Tensor) -> str:
    rows = torch.unique(latents.flatten(1), dim=0, return_inverse=True)[1].tolist()  # the same number, the same latents
    batch = len(rows)
    repeats = [k for k in range(2, batch + 1) if batch % k == 0 and rows == rows[: batch // k] * k]
    pairs = batch % 2 == 0 and rows[::2] == rows[1::2]
    if not repeats and not pairs:
        return "single"
    if batch == 2 or (repeats == [2] and not pairs):
        return "halves"
    if not repeats:
        return "pairs"
    raise ValueError(
        f"the {batch} rows of the batch have {len(set(rows))} different latents, so how guidance repeats the pictures "
        'cannot be seen: pass layout="halves" with guidance, "single" without, or begin with different noise'
    )


def check_steady(before_time: float, before: Tensor, time: float, rows: Tensor) -> None:
    """Refuse a layout that changed from one call of a sampler to the next: two sets from the same noise look like
    guidance, until they differ.

    Args:
        before_time, before: timestep and rows of the last call.
        time, rows: of this one; a run that begins anew, at a higher timestep, may have another layout.

    Raises:
        ValueError: as many rows as before, in another layout.
    """
    if time < before_time and rows.numel() == before.numel() and rows.tolist() != before.tolist():
        raise ValueError(
            "the rows of the batch repeated at first and now do not, so they were no guidance: pass layout="
            '"single", or begin the pictures with different noise'
        )


def plan(looks: list[dict[int, float]], rows: Tensor, device: torch.device, *, keep: bool = False) -> Rows:
    """The rows of a batch by what is done with them.

    Args:
        looks: for each picture at which others it looks, and how much; nobody, for a reference.
        rows: (copies, pictures), of :func:`batch_layout`.
        device: of the batch.
        keep: whether a reference that nobody looks at counts as looked at.

    Raises:
        ValueError: no targets, where nothing is kept; or more than one reference to keep.
    """
    copies, n = rows.shape
    plain, targets = ([i for i in range(n) if bool(looks[i]) is looking] for looking in (False, True))
    if not targets and not keep:
        raise ValueError(
            f"the batch has {n} picture{'s' * (n > 1)} and none that follows another: StyleAligned needs a reference "
            "and targets in one batch, or a kept reference. (Two rows of the same latents count as one picture with "
            'guidance; layout="single" says that they are two)'
        )
    source = sorted({j for i in targets for j in looks[i]} | (set(plain) if keep else set()))
    if keep and len(source) > 1:
        raise ValueError(f"keep=True keeps one reference, and the batch has {len(source)}")
    widest = max((len(looks[i]) for i in targets), default=1)
    followed = [
        [copy * len(source) + source.index(j) for j in looks[i]] + [0] * (widest - len(looks[i]))
        for copy in range(copies) for i in targets
    ]  # fmt: skip
    weights = [[*looks[i].values()] + [0.0] * (widest - len(looks[i])) for i in targets] * copies
    plain, targets, source = (rows[:, those].flatten().to(device) for those in (plain, targets, source))
    return Rows(
        plain, targets, source,
        torch.tensor(followed, device=device, dtype=torch.long).view(-1, widest),
        torch.tensor(weights, device=device).view(-1, widest),
        even=all(weight == 1 for row in weights for weight in row),
    )  # fmt: skip


def plan_following(rows: Tensor, device: torch.device) -> Rows:
    """The rows of a batch in which all follow one kept reference; arguments as :func:`plan`."""
    copies, n = rows.shape
    copy = torch.arange(copies, device=device)[:, None].expand(copies, n).reshape(-1, 1)
    nobody = torch.tensor([], device=device, dtype=torch.long)
    return Rows(nobody, rows.flatten().to(device), None, copy, torch.ones_like(copy, dtype=torch.float), even=True)


# ---------------------------------------------------------------------------------------- a reference to keep


class Kept(NamedTuple):
    """What targets need of the references in one layer."""

    keys: Tensor  # (r, h, N, d)
    values: Tensor  # (r, h, N, d)
    queries: tuple[Tensor, Tensor]  # mean and variance of the queries, (r, h, 1, d)


@dataclass
class Call:
    """One call of the U-Net with the reference in its batch."""

    timestep: float
    copies: int  # 2 with guidance in one batch
    sides: tuple[int, ...]  # rows and columns of the latents
    layers: dict[str, Kept] = field(default_factory=dict)
    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # mean and variance, (r, groups, 1)

    def __str__(self):
        sides = " x ".join(map(str, self.sides))
        return f"timestep {self.timestep:g} with {self.copies} rows for each picture, {sides}"


class KeptReference:
    """What a reference left behind, call by call of the U-Net, so that more targets can follow it.

    ``StyleAligned(pipe, keep=True)`` makes it; pass it as ``reference``. It stays on the device that computed it.
    """

    def __init__(self):
        self.calls: list[Call] = []

    def __repr__(self):
        return f"KeptReference({len(self.calls)} calls of the U-Net, {self.nbytes / 1e6:.0f} MB)"

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        kept = [x for call in self.calls for layer in call.layers.values() for x in (*layer[:2], *layer.queries)]
        kept += [x for call in self.calls for pair in call.norms.values() for x in pair]
        return sum(x.nbytes for x in kept)
