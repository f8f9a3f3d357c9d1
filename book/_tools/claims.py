"""Write the measurements that the executed notebooks hold into book/claims.yml, and print what changed.

Every claim of the ledger must be measured in its chapter, and every measured claim must stand in the ledger.
"""

import sys
from pathlib import Path

import nbformat
import yaml

from stylemoments.claims import MIME

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "book/claims.yml"
KEYS = ("effect", "low", "high", "unit", "n", "over", "holds")
HEADER = "# Every claim the course makes. You write the words; `make claims` writes what stands under `measured`.\n"


def measured() -> dict[tuple[str, str], dict]:
    """(chapter, claim id) -> record, out of the outputs stored in notebooks/."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                record = output.get("data", {}).get(MIME)
                if record:
                    found[path.stem, record["id"]] = {key: record[key] for key in KEYS}
    return found


def ledger() -> list[dict]:
    """The claims as book/claims.yml has them."""
    return yaml.safe_load(LEDGER.read_text(encoding="utf-8"))


def write(claims: list[dict]) -> None:
    """Replace book/claims.yml in one step."""
    text = yaml.safe_dump(claims, sort_keys=False, allow_unicode=True, width=110)
    new = LEDGER.with_suffix(".yml.new")
    new.write_text(HEADER + text, encoding="utf-8")
    new.replace(LEDGER)


def summary(effect, low, high, unit, n, over, holds) -> str:
    """One measurement in a line."""
    return f"{effect:8} [{low}, {high}] {unit}, n = {n} ({over}): {'holds' if holds else 'does not hold'}"


def main() -> None:
    claims, found = ledger(), measured()
    known = {(claim["chapter"], claim["id"]) for claim in claims}
    for chapter, name in sorted(known - found.keys()):
        sys.exit(f"{name} is in book/claims.yml but {chapter} does not measure it. Run `make claims` or remove it")
    for chapter, name in sorted(found.keys() - known):
        sys.exit(f"{chapter} measures {name}, which book/claims.yml does not have. Add its words there")
    lines = []
    for claim in claims:
        before, claim["measured"] = claim.get("measured"), found[claim["chapter"], claim["id"]]
        lines.append(f"{' ' if before == claim['measured'] else '*'} {claim['id']:32} {summary(**claim['measured'])}")
    write(claims)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
