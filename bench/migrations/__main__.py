"""The comparison: `python -m bench.migrations [PART...]`.

Parts are install, many, nothing, warm, big, features and tables (all of them by default).  What
they find is kept in .state/bench/results.json; tables prints it as Markdown, and document puts it
into docs/comparison.md.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.migrations import ROOT, STATE, features, measures, server, truth
from bench.migrations.install import MissingError
from bench.migrations.measures import Bench, Measured, median
from bench.migrations.tools import TOOLS, Ours, Psql, Tool

RESULTS = STATE / "results.json"
MEASURES = {
    "many": measures.many,
    "nothing": measures.nothing,
    "warm": measures.warm,
    "big": measures.big,
}
PARTS = ["install", *MEASURES, "features", "tables"]
DOCUMENT = ROOT / "docs" / "comparison.md"


def main(arguments: Sequence[str]) -> int:
    """Run the parts that are asked for, keep what they find, print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.migrations", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, "document"]))
    parser.add_argument("--tools", help="only these, comma-separated; psql always takes part")
    parser.add_argument("--features", help="only these rows of the table, comma-separated")
    parser.add_argument("--rounds", type=int, default=3, help="of each measure (default: 3)")
    parser.add_argument("--server", type=Path, help="bin directory of another PostgreSQL")
    parser.add_argument("--verbose", action="store_true", help="what each check of a feature saw")
    options = parser.parse_intermixed_args(arguments)
    if unknown := sorted(set(options.parts) - {*PARTS, "document"}):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = options.parts or PARTS
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if set(parts) - {"tables", "document"}:
        tools = _install(options.tools)
        postgres = server.start(options.server)
        try:
            bench = Bench(postgres, server.environment(postgres), tools, options.rounds)
            about = _about(bench)
            about["tools"] = results.get("about", {}).get("tools", {}) | about["tools"]
            results["about"] = about
            for part in parts:
                if part in MEASURES:
                    measured = measures.encode(MEASURES[part](bench))
                    results.setdefault("measures", {})[part] = measured
                elif part == "features":
                    _judge(bench, results, options.features, options.verbose)
                RESULTS.write_text(json.dumps(results, indent=1))
        finally:
            postgres.stop()
    if "tables" in parts:
        print(_markdown(results))
    if "document" in parts:
        before, begin, rest = DOCUMENT.read_text().partition("<!-- measured -->\n")
        _, end, after = rest.partition("\n<!-- end of measured -->")
        DOCUMENT.write_text(before + begin + _markdown(results) + end + after)
    return 0


def _install(wanted: str | None) -> list[Tool]:
    titles = {tool.title.lower() for tool in TOOLS}
    names = {name.strip().lower() for name in wanted.split(",")} if wanted else titles
    names = {Ours.title if name == "ours" else name for name in names} | {Psql.title}
    if unknown := sorted(names - titles):
        raise SystemExit(f"no such tool: {', '.join(unknown)}; there are {', '.join(titles)}")
    tools = []
    for each in TOOLS:
        if each.title.lower() in names:
            try:
                tools.append(each())
            except MissingError as error:
                print(f"{each.title}: {error}, left out", file=sys.stderr, flush=True)
    return tools


def _about(bench: Bench) -> dict[str, Any]:
    postgres = bench.tool(Psql)
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB, {system}",
        "server": postgres.version(bench.environment) if postgres else "?",
        "tools": {tool.title: tool.version(bench.environment) for tool in bench.tools},
    }


def _judge(bench: Bench, results: dict[str, Any], wanted: str | None, verbose: bool) -> None:
    cells = results.setdefault("features", {})
    for feature in (*features.FEATURES, *truth.FEATURES):
        if wanted and feature.key not in wanted.split(","):
            continue
        for tool in bench.tools:
            if isinstance(tool, Psql):
                continue
            verdict = features.judge(bench, feature, tool)
            cells.setdefault(feature.key, {})[tool.title] = asdict(verdict)
            note = f" ({verdict.note})" if verdict.note else ""
            print(f"{feature.key}: {tool.title}: {verdict.answer}{note}", file=sys.stderr)
            if verbose:
                print("    " + verdict.evidence.replace("\n", "\n    "), file=sys.stderr)
            RESULTS.write_text(json.dumps(results, indent=1))


# --- as Markdown -----------------------------------------------------------------------------


def _markdown(results: Mapping[str, Any]) -> str:
    about = results["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["tools"].items())
    parts = [f"{about['machine']}; PostgreSQL {about['server']}, fsync on; {versions}."]
    stored = results.get("measures", {})
    for name, show in (("many", _times), ("nothing", _nothing), ("warm", _warm), ("big", _times)):
        for title, measured in measures.decode(stored.get(name, {})):
            parts.append(f"### {title[0].upper() + title[1:]}\n\n{show(measured)}")
    if "features" in results:
        cells = results["features"]
        parts.append(f"### Features\n\n{_features(cells, features.FEATURES)}")
        said = _features(cells, truth.FEATURES)
        parts.append(f"### What is said, and what is so\n\n{said}")
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(measured: Measured) -> str:
    floor = next(iter(measured.values())).seconds
    memory = any(figures.others for figures in measured.values())
    header = ["tool", "seconds", "runs", "ratio"]
    header += ["client memory", "server session's memory"] if memory else []
    rows = []
    for title, figures in measured.items():
        if figures.failure or not figures.seconds:
            rows.append([title, figures.failure or "not run", *[""] * (len(header) - 2)])
            continue
        seconds = figures.seconds
        spread = f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        ratio = f"{median(seconds) / median(floor):.2f}" if floor else "?"
        peaks = [f"{figures.others[name] / 2**20:.0f} MiB" for name in figures.others]
        rows.append([title, spread, str(len(seconds)), ratio, *peaks])
    return _table(header, rows)


def _nothing(measured: Measured) -> str:
    names = next(iter(measured.values())).others
    header = ["tool", "seconds", "ratio to psql", *names]
    floor = next(iter(measured.values())).seconds
    rows = []
    for title, figures in measured.items():
        if figures.failure or not figures.seconds:
            rows.append([title, figures.failure, *[""] * (len(header) - 2)])
            continue
        counts = [f"{figures.others[name]:.0f}" if name in figures.others else "" for name in names]
        middle = median(figures.seconds)
        rows.append([title, f"{middle:.3f}", f"{middle / median(floor):.1f}", *counts])
    return _table(header, rows)


def _warm(measured: Measured) -> str:
    names = {
        "up": "`up`",
        "connection": "connection and one query",
        "reading": "reading the files",
        "hashing": "hashing them",
    }
    rows = []
    for title, figures in measured.items():
        if figures.failure:
            rows.append([title, figures.failure, *[""] * len(names)])
            continue
        times = [f"{figures.others[name] * 1000:.1f} ms" for name in names]
        ratio = figures.others["up"] / figures.others["connection"]
        rows.append([title, *times, f"{ratio:.2f}"])
    return _table(["", *names.values(), "ratio"], rows)


def _features(
    cells: Mapping[str, Mapping[str, Mapping[str, str]]], rows_of: Sequence[features.Feature]
) -> str:
    titles = [tool.title for tool in TOOLS if tool is not Psql]
    notes: list[str] = []
    rows = []
    for feature in rows_of:
        row = [re.sub(r"\|", r"\\|", feature.title)]
        for title in titles:
            cell = cells.get(feature.key, {}).get(title)
            text = cell["answer"] if cell else ""
            if cell and cell["note"]:
                if cell["note"] not in notes:
                    notes.append(cell["note"])
                text += f" ({notes.index(cell['note']) + 1})"
            row.append(f"**{text}**" if text.startswith("yes") else text)
        rows.append(row)
    numbered = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{_table(['', *titles], rows)}\n\n{numbered}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
