r"""A claim and its measurement, in a form that a reader sees and the book's ledger collects.

A claim is stated so that a *positive* effect supports it ("accuracy lost without batch norm"). It holds
when the whole 95 % interval of the effect lies above zero.
"""

from dataclasses import dataclass

from .metrics import Interval, mean_interval

MIME = "application/vnd.stylemoments.claim+json"  # how the ledger finds a measurement in a notebook


@dataclass(frozen=True)
class Claim:
    """One measured claim; the last line of a notebook cell shows it.

    Example:
        >>> claim("example", [2.0, 3.0, 4.0], unit="points", over="seeds 0–2")
        example: 3 [0.516, 5.48] points, n = 3 (seeds 0–2): holds
    """

    id: str  # key of the claim in the ledger
    interval: Interval  # effect, one value per independent repetition
    unit: str  # of the effect, in words
    over: str  # what was repeated, in words

    @property
    def holds(self) -> bool:
        """Whether the interval lies entirely above zero."""
        return bool(self.interval.low > 0)

    @property
    def verdict(self) -> str:
        """``holds``, or ``does not hold``: the interval reaches zero or lies below it."""
        return "holds" if self.holds else "does not hold"

    def __repr__(self):
        effect = self.interval
        numbers = f"{effect.mean:.3g} [{effect.low:.3g}, {effect.high:.3g}] {self.unit}, n = {effect.n} ({self.over})"
        return f"{self.id}: {numbers}: {self.verdict}"

    def record(self) -> dict:
        """The measurement as the ledger stores it, rounded to three significant digits."""
        mean, low, high = (float(f"{value:.3g}") for value in self.interval[:3])
        return {"id": self.id, "effect": mean, "low": low, "high": high, "unit": self.unit,
                "n": self.interval.n, "over": self.over, "holds": self.holds}  # fmt: skip

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), MIME: self.record()}


def claim(id: str, effects, *, unit: str, over: str) -> Claim:
    """Measure a claim from one effect per seed (or pair, or image); see :class:`Claim`.

    Args:
        id: key of the claim in ``book/claims.yml``.
        effects: at least two finite numbers, positive where they support the claim.
        unit: what the effect counts, in words ("points of accuracy", "steps").
        over: what was repeated, in words ("seeds 0–4", "ordered pairs of photographs").

    Raises:
        ValueError: as :func:`stylemoments.metrics.mean_interval`.
    """
    return Claim(id, mean_interval(effects), unit, over)
