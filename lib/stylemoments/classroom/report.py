"""What a teacher reads after grading: tables for the learning platforms, a page per student, a summary of the class.

Whatever a student wrote stands in the pages as text; nothing of it is run by a browser or a spreadsheet.
"""

import csv
from collections.abc import Collection, Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import mean, median

from ..files import whole
from .marks import safe

BARS = 10  # of the distribution
WORST = 10  # tests in the summary

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no script, and nothing from elsewhere
SAFETY = f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 25%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } .number { text-align: right; white-space: nowrap; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; border: 1px solid var(--line); }
pre.words { font: inherit; border-style: dashed; } pre.printed { border: 0; padding: 0 .6rem; opacity: .8; }
.lost, .error { border-left: 4px solid #c62828; padding-left: .6rem; }
.earned { border-left: 4px solid #2e7d32; padding-left: .6rem; } img { max-width: 100%; }
.bar { background: #1565c0; height: 1rem; min-width: 1px; } .mean { opacity: .8; }
"""


# ---------------------------------------------------------------------------------------- points


def total(record: dict) -> dict[str, float]:
    """Points of a record: by tests, by hand, still to be given by hand, so far, and of how many."""
    cells = record["graded"]
    tests = sum(cell["points"] for cell in cells if cell["kind"] == "test")
    hand = sum(cell["points"] or 0.0 for cell in cells if cell["kind"] != "test")
    still = sum(cell["of"] for cell in cells if cell["points"] is None)
    return {"tests": tests, "by hand": hand, "open": still, "so far": tests + hand, "of": sum(c["of"] for c in cells)}


def write_grades(path: Path, records: list[dict]) -> None:
    """The table of everything: totals, each graded cell, and what to look at."""
    names = [cell["id"] for cell in records[0]["graded"]] if records else []
    rows = []
    for record in records:
        points = {cell["id"]: "" if cell["points"] is None else f"{cell['points']:g}" for cell in record["graded"]}
        rows.append([record["student"], record["name"], *(f"{number:g}" for number in total(record).values()),
                     *(points[name] for name in names), "; ".join(record["flags"]), record["file"]])  # fmt: skip
    head = ["student", "name", "points by tests", "points by hand", "still open", "points so far", "of"]
    _write(path, [*head, *names, "look at", "file"], rows)


def write_canvas(path: Path, records: list[dict]) -> None:
    """The table that Canvas imports (Gradebook, Import); it finds students by ID, or by SIS User ID."""
    assignment, most = (records[0]["assignment"], total(records[0])["of"]) if records else ("", 0.0)
    rows = [["    Points Possible", "", "", "", "", f"{most:g}"]]
    for record in records:
        ours = record["student"]
        ids = [ours, "", ""] if record["platform"] == "canvas" else ["", ours, ""]
        rows.append([record["name"] or ours, *ids, "", f"{total(record)['so far']:g}"])
    _write(path, ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", assignment], rows)


def write_moodle(path: Path, records: list[dict]) -> None:
    """The worksheet that Moodle imports (the assignment, Upload grading worksheet)."""
    now = datetime.now().isoformat(" ", "minutes")
    rows = []
    for record in records:
        points = total(record)
        said = "; ".join(f"{cell['id']}: {cell['points']:g} of {cell['of']:g}" for cell in record["graded"]
                         if cell["points"] is not None)  # fmt: skip
        rows.append([f"Participant {record['student']}", record["name"], f"{points['so far']:g}", f"{points['of']:g}",
                     now, said])  # fmt: skip
    head = ["Identifier", "Full name", "Grade", "Maximum Grade", "Last modified (grade)", "Feedback comments"]
    _write(path, head, rows)


def write_similar(path: Path, pairs: list[dict]) -> None:
    """Pairs of near copies."""
    rows = [[pair["student"], pair["other"], *(_share(pair[kind]) for kind in ("code", "words"))] for pair in pairs]
    _write(path, ["student", "other", "code alike", "words alike"], rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _write(path: Path, head: list[str], rows: list[list[str]]) -> None:
    with whole(path, force=True) as part, part.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([safe(str(value)) for value in row] for row in rows)


# ---------------------------------------------------------------------------------------- a student's page


def write_feedback(path: Path, record: dict, handed_out: Collection[str]) -> None:
    """The page of one student: points and reasons, then the notebook as it ran.

    Args:
        path: of the page.
        record: see :meth:`stylemoments.classroom.grading.Grader.grade`.
        handed_out: the sources of cells that all students were given; those that were left as they are, are folded.
    """
    given = {source.strip() for source in handed_out}
    points = total(record)
    title = f"{record['assignment']}: {record['student']}"
    body = [f"<h1>{escape(title)}</h1>", f"<p><strong>{points['so far']:g} of {points['of']:g} points</strong>"]
    if points["open"]:
        body.append(f"so far; {points['open']:g} more are still to be given by hand")
    body += ["</p>", _listed(record["flags"]), *_verdicts(record)]
    body += [part for cell in record["notebook"] for part in _cell(cell, record, given)]
    _page(path, title, body)


def _listed(items: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _verdicts(record: dict) -> Iterator[str]:
    yield "<table><thead><tr><th>part</th><th class=number>points</th><th>why</th></tr></thead><tbody>"
    for cell in record["graded"]:
        given = "open" if cell["points"] is None else f"{cell['points']:g}"
        why = "; ".join(filter(None, (cell["message"], cell.get("comment"))))
        link = f"<a href='#{escape(cell['id'])}'>{escape(cell['id'])}</a>"
        points = f"{given} of {cell['of']:g}"
        yield f"<tr><td>{link}</td><td class=number>{points}</td><td>{escape(why) or 'passed'}</td></tr>"
    yield "</tbody></table>"


def _cell(cell: dict, record: dict, given: Collection[str]) -> Iterator[str]:
    """A cell with what it printed and drew, and why it lost points."""
    verdict = next((v for v in record["graded"] if v["id"] == cell["id"]), None)
    yield f"<section id='{escape(cell['id'])}'>" if verdict else "<section>"
    source = f"<pre class={'code' if cell['code'] else 'words'}>{escape(cell['source'])}</pre>"
    if (text := cell["source"].strip()) in given and not verdict:
        first, *_ = text.split("\n")
        source = f"<details><summary>{escape(first)}</summary>{source}</details>"
    yield source
    if cell["text"]:
        yield f"<pre class=printed>{escape(cell['text'])}</pre>"
    for picture in [*cell["pictures"], *cell["images"].values()]:
        yield f"<img alt='a picture that this cell made' src='data:image/png;base64,{escape(picture)}'>"
    if cell["error"] and not verdict:
        said = "\n".join(filter(None, (f"{cell['error']['type']}: {cell['error']['message']}", cell["error"]["where"])))
        yield f"<pre class=error>{escape(said)}</pre>"
    if verdict and verdict["points"] is not None:
        kind = "earned" if verdict["points"] == verdict["of"] else "lost"
        yield f"<p class={kind}>{verdict['points']:g} of {verdict['of']:g} points. {escape(verdict['message'])}</p>"
    yield "</section>"


def _page(path: Path, title: str, body: list[str]) -> None:
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    text = f"<!doctype html><html lang=en><head>{head}{SAFETY}<style>{STYLE}</style></head><body>\n"
    with whole(path, force=True) as part:
        part.write_text(text + "\n".join(body) + "\n</body></html>\n", "utf-8", errors="replace")


# ---------------------------------------------------------------------------------------- the class


def write_summary(path: Path, records: list[dict], *, notes: list[str], way: str) -> None:
    """The page of the class: the distribution, the most failed tests, answers still open, and what to look at."""
    name = records[0]["assignment"] if records else ""
    body = [f"<h1>{escape(name)}: {len(records)} submissions</h1>", f"<p>Sandbox: {escape(way)}.</p>"]
    body += [*_distribution(records), *_failed(records), *_open(records), *_flagged(records, notes)]
    _page(path, f"{name}: summary", body)


def _distribution(records: list[dict]) -> Iterator[str]:
    if not records:
        return
    totals = [total(record) for record in records]
    most = max(points["of"] for points in totals) or 1.0
    got = [points["so far"] for points in totals]
    yield "<h2>Points so far</h2>"
    spread = f"lowest {min(got):g}, highest {max(got):g}, of {most:g}"
    yield f"<p>Mean {mean(got):.1f}, median {median(got):g}, {spread}.</p>"
    counts = [0] * BARS
    for number in got:
        counts[min(int(number / most * BARS), BARS - 1)] += 1
    yield "<table><thead><tr><th>points</th><th class=number>students</th><th></th></tr></thead><tbody>"
    for index, count in enumerate(counts):
        low, high = (most * side / BARS for side in (index, index + 1))
        bar = f"<div class=bar style='width:{100 * count / max(counts):.0f}%'></div>" if count else ""
        yield f"<tr><td>{low:g} to {high:g}</td><td class=number>{count}</td><td style='width:70%'>{bar}</td></tr>"
    yield "</tbody></table>"


def failed(records: list[dict]) -> list[tuple[str, int, str]]:
    """Tests by how many students failed them, most first: id, how many, and what they were told most often."""
    found = {}
    for record in records:
        for cell in record["graded"]:
            if cell["kind"] == "test" and cell["points"] < cell["of"]:
                found.setdefault(cell["id"], []).append(cell["message"])
    common = [(name, len(said), max(sorted(set(said)), key=said.count)) for name, said in found.items()]
    return sorted(common, key=lambda row: -row[1])


def _failed(records: list[dict]) -> Iterator[str]:
    yield "<h2>Most failed tests</h2>"
    yield "<table><thead><tr><th>test</th><th class=number>failed</th><th>said most often</th></tr></thead><tbody>"
    for name, count, said in failed(records)[:WORST]:
        number = f"{count} of {len(records)}"
        yield f"<tr><td>{escape(name)}</td><td class=number>{number}</td><td>{escape(said)}</td></tr>"
    yield "</tbody></table>"


def _open(records: list[dict]) -> Iterator[str]:
    found = {}
    for record in records:
        for cell in record["graded"]:
            if cell["points"] is None:
                found[cell["id"]] = found.get(cell["id"], 0) + 1
    if found:
        yield "<h2>To be graded by hand</h2>"
        yield _listed([f"{name}: {count} answers" for name, count in found.items()])


def _flagged(records: list[dict], notes: list[str]) -> Iterator[str]:
    flags = [(f"{record['student']} ({record['file']})", flag) for record in records for flag in record["flags"]]
    said = [*notes, *(f"{whose}: {flag}" for whose, flag in flags)]
    if said:
        yield "<h2>Look at</h2>"
        yield _listed(said)
