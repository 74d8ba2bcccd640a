"""Markdown out of what Pulumi and the migration engine say in JSON.

Whatever comes from elsewhere stands in code blocks, where GitHub reads no Markdown, HTML or
mention; the words around them are ours.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pulumi.runtime.rpc import UNKNOWN

from migrate.errors import Difference
from migrate.lint import Finding
from migrate.rehearsal import Rehearsal

Json = Mapping[str, Any]

LIMIT = 65_536
"""GitHub's, of characters; bytes are counted here, which are never fewer."""

LONGEST_VALUE = 200

MARK = "<!-- mindroom: "
"""How a text of ours begins."""

SIGNS = {"create": "+", "import": "+", "update": "!", "replace": "!", "delete": "-"}
"""Each operation that is a change, with what colours it; `replace` stands for all of its steps."""

_SECRET = "4dabf18193072939515e22adb298388d"  # noqa: S105  # the key by which Pulumi marks a secret
_STACK = "pulumi:pulumi:Stack"


@dataclass(frozen=True)
class Section:
    """A part of the text: one line of ours, and below it what comes from elsewhere, if anything."""

    line: str
    block: str = ""

    def __str__(self) -> str:
        """As Markdown, in a fence that the block cannot close."""
        if not self.block:
            return self.line
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.block)), default=0))
        return f"{self.line}\n{fence}diff\n{self.block}\n{fence}"


def marker(kind: str, environment: str) -> str:
    """The first line of a text, unseen, by which it is found again to be updated."""
    return f"{MARK}{kind} of {environment} -->"


def render(kind: str, environment: str, sections: Sequence[Section], limit: int = LIMIT) -> str:
    """The whole text; where it is too long, the longest sections lose their block."""
    head = f"{marker(kind, environment)}\n## {kind.capitalize()} of `{environment}`"
    shown = list(sections)

    def text() -> str:
        return "\n\n".join([head, *map(str, shown)]) + "\n"

    while len(text().encode()) > limit and any(section.block for section in shown):
        longest = max(range(len(shown)), key=lambda number: len(shown[number].block))
        left_out = len(shown[longest].block)
        shown[longest] = Section(
            f"{shown[longest].line}\n"
            f"(left out, since it does not fit here: {left_out} characters; "
            "the job's summary has them)"
        )
    return text()


def failed(events: Sequence[Json]) -> bool:
    """Whether the preview did not come to its end, or policies forbid what it shows."""
    return not any(each["result"] == "succeeded" for each in _all(events, "summaryEvent"))


def steps(events: Sequence[Json]) -> list[Json]:
    """What Pulumi would change."""
    every = [each["metadata"] for each in _all(events, "resourcePreEvent")]
    return [step for step in every if step["op"] in SIGNS]


def is_applied(events: Sequence[Json]) -> bool:
    """Whether the stack has a database with migrations."""
    return any(
        each["metadata"]["type"].endswith("/schema:MigrationSet")
        and each["metadata"]["op"] != "create"
        for each in _all(events, "resourcePreEvent")
    )


def changes(events: Sequence[Json]) -> Section:
    """What Pulumi would change, resource by resource, and in the stack's outputs."""
    if not events:
        return Section("**Changes:** not known: the preview did not begin, its log says why.")
    lines = []
    for step in steps(events):
        lines.append(f"{SIGNS[step['op']]} {step['op']} {step['type']} {_name(step['urn'])}")
        if step["op"] in ("update", "replace"):
            lines += _difference(step)
    outputs = list(_compare(*_outputs(events)))
    lines += ["! outputs of the stack", *outputs] if outputs else []
    counts = Counter(step["op"] for step in steps(events))
    told = ", ".join(f"{counts[op]} to {op}" for op in SIGNS if counts[op]) or "none"
    if outputs:
        told += "; the stack's outputs change"
    if failed(events):
        told = f"the preview failed; until then: {told}"
    return Section(f"**Changes:** {told}.", "\n".join(lines))


def migrations(plan: Json) -> Section:
    """What is pending, what of it hurts, what drifted, and how the rehearsal went."""
    pending = [each["file"] for each in plan.get("pending", ())]
    findings = [Finding(**each) for each in plan.get("findings", ())]
    drift = [Difference(**each) for each in plan.get("drift", ())]
    rehearsed = plan.get("rehearsal")
    if "error" in plan:
        told = "what is pending cannot be applied, or is not known"
    elif "pending" in plan:
        told = f"pending {len(pending)}" if pending else "none pending"
    else:
        told = "not compared with a database"
    if findings:
        unacknowledged = sum(finding.reason is None for finding in findings)
        told += f", findings {len(findings)} (not acknowledged {unacknowledged})"
    if drift:
        told += f", objects changed behind the engine's back {len(drift)}"
    if rehearsed:
        told += f", rehearsed in {rehearsed['seconds']:.2f} s"
    lines = [f"pending  {name}" for name in pending]
    lines += [f"removed  {name}" for name in plan.get("removed", ())]
    lines += [f"not read  {name}" for name in plan.get("not_read", ())]
    lines += [f"finding: {finding}" for finding in findings]
    lines += [f"drift: {difference}" for difference in drift]
    lines += [str(Rehearsal(**rehearsed))] if rehearsed else []
    lines += [plan["error"]] if "error" in plan else []
    return Section(f"**Migrations:** {told}.", "\n".join(lines))


def policies(events: Sequence[Json]) -> Section:
    """What the policy pack refuses or warns of."""
    checked = {
        (each["policyPackName"], name)
        for kind in ("policyAnalyzeSummaryEvent", "policyAnalyzeStackSummaryEvent")
        for each in _all(events, kind)
        for name in (*each.get("passed", ()), *each.get("failed", ()))
    }
    violations = list(_all(events, "policyEvent"))
    if not checked and not violations:
        return Section("**Policies:** none asked.")
    if not violations:
        return Section(f"**Policies:** asked {len(checked)}, none violated.")
    mandatory = sum(each["enforcementLevel"] == "mandatory" for each in violations)
    lines = []
    for each in violations:
        level, policy, name = each["enforcementLevel"], each["policyName"], each["resourceUrn"]
        sign = "-" if level == "mandatory" else "!"
        lines.append(f"{sign} {level} {policy}: {_name(name)}")
        lines.append(_indented(each["message"]))
    told = f"asked {len(checked)}, violations {len(violations)} (mandatory {mandatory})"
    return Section(f"**Policies:** {told}.", "\n".join(lines))


def messages(events: Sequence[Json]) -> Section:
    """Errors and warnings; what is only information stands in the other sections."""
    shown = [
        each
        for each in _all(events, "diagnosticEvent")
        if each["severity"] in ("error", "warning") and not each.get("ephemeral")
    ]
    lines = [
        (f"{_name(each['urn'])}: " if "urn" in each else "")
        + (each.get("prefix", "") + each["message"]).strip()
        for each in shown
    ]
    different = list(dict.fromkeys(lines))
    return Section(f"**Errors and warnings:** {len(different) or 'none'}.", "\n".join(different))


def _all(events: Sequence[Json], kind: str) -> Iterator[Json]:
    return (each[kind] for each in events if kind in each)


def _name(urn: str) -> str:
    return " ".join(urn.split("::", 3)[-1].split())


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def _outputs(events: Sequence[Json]) -> tuple[Json, Json]:
    """The stack's outputs before and after; twice nothing where either is not known."""
    told = [
        each["metadata"]
        for each in _all(events, "resOutputsEvent")
        if each["metadata"]["type"] == _STACK
    ]
    if failed(events) or not told or not told[-1]["old"]:
        return {}, {}
    return told[-1]["old"]["outputs"], told[-1]["new"]["outputs"]


def _difference(step: Json) -> Iterator[str]:
    """What differs between the inputs of a resource, old and new."""
    old, new = step["old"]["inputs"], step["new"]["inputs"]
    yield from _compare(old, new)
    named = {re.split(r"[.\[]", path)[0] for path in step["detailedDiff"] or ()}
    for key in sorted(named):
        if old.get(key) == new.get(key):
            yield f"!     {key}: not shown (a secret, or the provider's own)"


def _compare(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The lines of a difference; objects, and lists as long as before, are compared by part."""
    if _is_secret(old) or _is_secret(new):
        if old != new:
            yield f"!     {path}: not shown (a secret)"
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if not key.startswith("__"):
                yield from _compare(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif _are_objects(old) and _are_objects(new) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _compare(before, after, f"{path}[{number}]")
    elif old != new:
        yield from (f"-     {path}: {_shown(value)}" for value in _only(old, new))
        yield from (f"+     {path}: {_shown(value)}" for value in _only(new, old))


def _only(these: Any, those: Any) -> list[Any]:
    """What there is and was not: of two lists the elements, if it is more than their order."""
    if isinstance(these, list) and isinstance(those, list):
        different = [each for each in these if each not in those]
        if different or any(each not in these for each in those):
            return different
    return [] if these is None else [these]


def _is_secret(value: Any) -> bool:
    return isinstance(value, dict) and _SECRET in value


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _shown(value: Any) -> str:
    if value == UNKNOWN:
        return "(known after up)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text)})"
