"""The wording of the tiny world: ``a|an OBJECT [PLACE] [in STYLE style]``. Palette and pose are never named."""

PLAIN = "plain"  #: the style that goes without saying
NOWHERE = "nowhere"  #: the place that goes without saying


def article(noun: str) -> str:
    """The noun with its indefinite article.

    >>> article("cat"), article("octopus"), article("unicorn")
    ('a cat', 'an octopus', 'a unicorn')
    """
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


def prompt(noun: str, *, style: str = PLAIN, place: str = NOWHERE) -> str:
    """What to say for a picture of an object. Any noun will do, also ``"[V] dog"``.

    >>> prompt("cat"), prompt("cat", place="in the snow")
    ('a cat', 'a cat in the snow')
    >>> prompt("owl", style="papercut art", place="at night")
    'an owl at night in papercut art style'
    """
    where = "" if place == NOWHERE else f" {place}"
    how = "" if style == PLAIN else f" in {style} style"
    return article(noun) + where + how
