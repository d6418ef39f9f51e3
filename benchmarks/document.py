"""``docs/performance.md`` from the CSVs of a run: ``python -m benchmarks.document [FOLDER]``.

The tables between the two marks are replaced; the text around them, on what bounds each row, is written by hand.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from benchmarks.__main__ import MODULES

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- tables: made by python -m benchmarks.document -->", "<!-- end of the tables -->"
HEADER = (
    "| what | unit | ours | peer | ratio [95 %] | other clock | to reach | reached |\n|---|---|---|---|---|---|---|---|"
)


def number(text: str) -> str:
    """Three digits, thousands with a comma."""
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(row: dict[str, str]) -> str:
    """A row of a table."""
    other = "" if row["other_clock_ratio"] == "nan" else number(row["other_clock_ratio"])
    return (
        f"| {row['what']} | {row['unit']} | {number(row['ours'])} ± {number(row['ours_iqr'])} "
        f"| {row['peer_name']}: {number(row['peer'])} ± {number(row['peer_iqr'])} "
        f"| {number(row['ratio'])} [{number(row['ratio_low'])}, {number(row['ratio_high'])}] | {other} "
        f"| {row['reach']} | {row['reached']} |"
    )


def tables(folder: Path) -> str:
    """All CSVs of the folder, in the order of the benchmarks."""
    parts = []
    for name in MODULES:
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        rows = list(csv.DictReader(path.open()))
        first = rows[0]
        notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
        parts.append(
            f"### `python -m benchmarks --only {name}`\n\n{first['machine']}; threads: {first['threads']};"
            f" {first['clock']} time; {first['repeats']} repeats."
            f"{''.join(f' {note[0].upper()}{note[1:]}.' for note in notes)}\n\n" + "\n".join([HEADER, *map(line, rows)])
        )
    return "\n\n".join(parts)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/benchmarks")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(folder)}\n\n{END}{after}")
    print(PAGE)


if __name__ == "__main__":
    main()
