"""
Make the table of docs/compatibility.md from the differences that the tests recorded with other tools.

    HF_HUB_OFFLINE=1 python -m pytest -m "slow or not slow" --junitxml newest.xml
    python benchmarks/compatibility.py lowest.xml newest.xml

Each report is from the whole test suite in one environment. Tests record a tool, its version, the check and the
largest difference to the model itself; the table shows the largest difference of each check.
"""

import argparse
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tabulate import tabulate


def read_notes(report: Path) -> dict[tuple[str, str], tuple[str, float]]:
    """Version and largest difference, by tool and what was run."""
    notes: dict[tuple[str, str], tuple[str, float]] = {}
    root = ElementTree.parse(report).getroot()
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    if failed:
        sys.exit(f"{report}: {len(failed)} tests failed ({failed[0]} for one); a table is made of reports without any")
    for noted in root.iter("property"):
        if noted.get("name") == "compatibility":
            tool, version, what, difference = json.loads(noted.get("value"))
            largest = max(difference, notes.get((tool, what), ("", 0.0))[1])
            notes[tool, what] = (version, largest)
    if not notes:
        sys.exit(f"{report}: holds no notes; make it with pytest --junitxml, of the whole test suite")
    return notes


def shown(note: tuple[str, float] | None) -> str:
    if note is None:
        return "not run"
    version, difference = note
    return f"{version}: {difference:.1e}" if difference else f"{version}: 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("reports", nargs="+", type=Path, help="reports of pytest --junitxml, one per environment")
    reports = parser.parse_args().reports
    columns = [read_notes(report) for report in reports]
    rows = [
        [*key, *(shown(notes.get(key)) for notes in columns)]
        for key in sorted({key for notes in columns for key in notes})
    ]
    print(tabulate(rows, ["tool", "what was run", *(report.stem for report in reports)], tablefmt="github"))


if __name__ == "__main__":
    main()
