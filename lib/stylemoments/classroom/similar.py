"""Which submissions are near copies of each other: a hint for a person, never a proof.

Code is compared as sets of five neighboring tokens, without comments, docstrings and layout and with the student's own
names replaced, so that renaming hides nothing; what the assignment handed out does not count. Words are compared as
sets of four neighboring words.
"""

import io
import keyword
import re
import tokenize
from collections.abc import Collection, Iterator
from itertools import combinations

CODE_RUN, WORD_RUN = 5, 4  # neighbors
SMALLEST = 30  # runs: of less code or words every two students have the same
CODE_ALIKE, WORDS_ALIKE = 0.9, 0.4  # shares from which a pair is listed
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    tokenize.ENCODING,
}  # fmt: skip


def pairs(records: list[dict], handed_out: Collection[str]) -> list[dict]:
    """Pairs of students whose answers are nearly the same, the most alike first.

    Args:
        records: see :meth:`stylemoments.classroom.grading.Grader.grade`.
        handed_out: the code and the words that all students were given.

    Returns:
        for each pair ``student``, ``other``, ``code`` and ``words``: the share that both have of what either has, None
        where one has too little to compare.
    """
    given = set().union(*map(code_runs, handed_out), *map(word_runs, handed_out))
    known = [(record["student"], *_runs(record, given)) for record in records]
    found = []
    for (one, code, words), (other, their_code, their_words) in combinations(known, 2):
        alike = {"code": share(code, their_code), "words": share(words, their_words)}
        if (alike["code"] or 0) >= CODE_ALIKE or (alike["words"] or 0) >= WORDS_ALIKE:
            found.append({"student": one, "other": other} | alike)
    return sorted(found, key=lambda pair: -max(pair["code"] or 0, pair["words"] or 0))


def share(a: set, b: set) -> float | None:
    """The part of either that both have; None where one is too small.

    >>> share(set(range(40)), set(range(20, 60)))
    0.333
    """
    if min(len(a), len(b)) < SMALLEST:
        return None
    return round(len(a & b) / len(a | b), 3)


def _runs(record: dict, given: set) -> tuple[set, set]:
    """Runs of tokens and of words of all that is the student's own."""
    code, words = set(), set()
    for cell in record["notebook"]:
        if cell["kind"] != "test":
            kind, runs = (code, code_runs) if cell["code"] else (words, word_runs)
            kind |= runs(cell["source"]) - given
    return code, words


def code_runs(source: str) -> set[tuple[str, ...]]:
    r"""Runs of neighboring tokens.

    >>> code_runs("def f(x):\n    return x.mean() + 1  # the mean") == code_runs("def f(y): return y.mean()+1")
    True
    """
    return _neighbors([*_tokens(source)], CODE_RUN)


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Runs of neighboring words.

    >>> sorted(word_runs("The mean, of each one."))
    [('mean', 'of', 'each', 'one'), ('the', 'mean', 'of', 'each')]
    """
    return _neighbors(re.findall(r"\w+", text.lower()), WORD_RUN)


def _neighbors(items: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(items[first : first + length]) for first in range(len(items) - length + 1)}


def _tokens(source: str) -> Iterator[str]:
    """Tokens of code that say what it does; up to a syntax error where there is one."""
    before = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in LAYOUT:
                continue
            free = token.type == tokenize.NAME and before != "." and not keyword.iskeyword(token.string)
            if not (token.type == tokenize.STRING and token.string.startswith(('"""', "'''"))):
                yield "name" if free else token.string
            before = token.string
    except (tokenize.TokenError, SyntaxError):
        return
