import pytest

from stylemoments.claims import MIME, claim


@pytest.mark.parametrize(
    "effects, verdict",
    [([2, 3, 4], "holds"), ([-2, -3, -4], "does not hold"), ([-1, 3, 4], "does not hold")],
)
def test_holds_when_the_whole_interval_is_positive(effects, verdict):
    assert claim("x", effects, unit="points", over="seeds 0–2").verdict == verdict


def test_shows_a_line_to_readers_and_a_record_to_the_ledger():
    shown = claim("x", [2, 3, 4], unit="points", over="seeds 0–2")._repr_mimebundle_()
    assert shown["text/plain"] == "x: 3 [0.516, 5.48] points, n = 3 (seeds 0–2): holds"
    expected = {"effect": 3.0, "low": 0.516, "high": 5.48, "unit": "points", "n": 3, "over": "seeds 0–2"}
    assert shown[MIME] == {"id": "x", **expected, "holds": True}
