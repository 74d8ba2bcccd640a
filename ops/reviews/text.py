"""Markdown from the JSON of Pulumi and of the migration engine.

Text that comes from elsewhere is put into code blocks, where GitHub reads no Markdown, HTML or
mention; only the words around them are ours.
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
"""Most characters that GitHub accepts; bytes are counted here, which are never fewer."""

LONGEST_VALUE = 200

MARK = "<!-- mindroom: "
"""The beginning of every text of ours."""

SIGNS = {"create": "+", "import": "+", "update": "!", "replace": "!", "delete": "-"}
"""An operation that is a change -> the sign that colours it; `replace` is all of its steps."""

_SECRET = "4dabf18193072939515e22adb298388d"  # noqa: S105  # the key by which Pulumi marks a secret
_STACK = "pulumi:pulumi:Stack"


@dataclass(frozen=True)
class Section:
    """A part of the text: one line of ours, and below it a block from elsewhere, if any."""

    line: str
    block: str = ""

    def __str__(self) -> str:
        """As Markdown, in a fence that the block cannot close."""
        if not self.block:
            return self.line
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.block)), default=0))
        return f"{self.line}\n{fence}diff\n{self.block}\n{fence}"


def marker(kind: str, environment: str) -> str:
    """The first line of a text, which GitHub does not show; a later run finds it by that."""
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
    """Whether the preview did not complete, or policies forbid a change."""
    return not any(event["result"] == "succeeded" for event in _events_of(events, "summaryEvent"))


def steps(events: Sequence[Json]) -> list[Json]:
    """The steps by which Pulumi would change a resource."""
    metadata = [event["metadata"] for event in _events_of(events, "resourcePreEvent")]
    return [step for step in metadata if step["op"] in SIGNS]


def is_applied(events: Sequence[Json]) -> bool:
    """Whether the stack has a database with migrations.

    Where the diff of the MigrationSet failed there is no event of it, and that of the stack tells.
    """
    operations: dict[str, str] = {
        event["metadata"]["type"]: event["metadata"]["op"]
        for event in _events_of(events, "resourcePreEvent")
    }
    stack = operations.get("pulumi:pulumi:Stack", "create")
    return operations.get("pulumi-python:dynamic/schema:MigrationSet", stack) != "create"


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
    summary = ", ".join(f"{counts[op]} to {op}" for op in SIGNS if counts[op]) or "none"
    if outputs:
        summary += "; the stack's outputs change"
    if failed(events):
        summary = f"the preview failed; until then: {summary}"
    return Section(f"**Changes:** {summary}.", "\n".join(lines))


def migrations(plan: Json) -> Section:
    """The pending files, the findings of lint in them, the drift, and the rehearsal."""
    pending = [file["file"] for file in plan.get("pending", ())]
    findings = [Finding(**finding) for finding in plan.get("findings", ())]
    drift = [Difference(**difference) for difference in plan.get("drift", ())]
    rehearsed = plan.get("rehearsal")
    if "error" in plan and not pending:
        summary = "what is pending cannot be applied, or is not known"
    elif "error" in plan:
        summary = f"pending {len(pending)}, which cannot be applied"
    elif "pending" in plan:
        summary = f"pending {len(pending)}" if pending else "none pending"
    else:
        summary = "not compared with a database"
    if findings:
        unacknowledged = sum(finding.reason is None for finding in findings)
        summary += f", findings {len(findings)} (not acknowledged {unacknowledged})"
    if drift:
        summary += f", objects changed behind the engine's back {len(drift)}"
    if rehearsed:
        summary += f", rehearsed in {rehearsed['seconds']:.2f} s"
    elif "not_rehearsed" in plan:
        summary += ", not rehearsed"
    lines = [f"pending  {name}" for name in pending]
    lines += [f"removed  {name}" for name in plan.get("removed", ())]
    lines += [f"not read  {name}" for name in plan.get("not_read", ())]
    lines += [f"finding: {finding}" for finding in findings]
    lines += [f"drift: {difference}" for difference in drift]
    lines += [str(Rehearsal(**rehearsed))] if rehearsed else []
    lines += [plan[key] for key in ("not_rehearsed", "error") if key in plan]
    return Section(f"**Migrations:** {summary}.", "\n".join(lines))


def policies(events: Sequence[Json]) -> Section:
    """The violations that the policy pack reports."""
    checked = {
        (event["policyPackName"], name)
        for kind in ("policyAnalyzeSummaryEvent", "policyAnalyzeStackSummaryEvent")
        for event in _events_of(events, kind)
        for name in (*event.get("passed", ()), *event.get("failed", ()))
    }
    violations = list(_events_of(events, "policyEvent"))
    if not checked and not violations:
        return Section("**Policies:** none asked.")
    if not violations:
        return Section(f"**Policies:** asked {len(checked)}, none violated.")
    mandatory = sum(violation["enforcementLevel"] == "mandatory" for violation in violations)
    lines = []
    for violation in violations:
        level, policy = violation["enforcementLevel"], violation["policyName"]
        sign = "-" if level == "mandatory" else "!"
        lines.append(f"{sign} {level} {policy}: {_name(violation['resourceUrn'])}")
        lines.append(_indented(violation["message"]))
    summary = f"asked {len(checked)}, violations {len(violations)} (mandatory {mandatory})"
    return Section(f"**Policies:** {summary}.", "\n".join(lines))


def messages(events: Sequence[Json], plan: Json) -> Section:
    """Errors and warnings; information, and why the plan failed, is in the other sections."""
    shown = [
        event
        for event in _events_of(events, "diagnosticEvent")
        if event["severity"] in ("error", "warning") and not event.get("ephemeral")
    ]
    lines = [
        (f"{_name(event['urn'])}: " if "urn" in event else "")
        + (event.get("prefix", "") + event["message"]).strip()
        for event in shown
    ]
    failure = plan.get("error") or None
    lines = [line.replace(failure, "see Migrations") if failure else line for line in lines]
    different = list(dict.fromkeys(lines))
    return Section(f"**Errors and warnings:** {len(different) or 'none'}.", "\n".join(different))


def _events_of(events: Sequence[Json], kind: str) -> Iterator[Json]:
    return (event[kind] for event in events if kind in event)


def _name(urn: str) -> str:
    return " ".join(urn.split("::", 3)[-1].split())


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def _outputs(events: Sequence[Json]) -> tuple[Json, Json]:
    """The stack's outputs before and after; twice nothing where either is not known."""
    stacks = [
        event["metadata"]
        for event in _events_of(events, "resOutputsEvent")
        if event["metadata"]["type"] == _STACK
    ]
    if failed(events) or not stacks or not stacks[-1]["old"]:
        return {}, {}
    return stacks[-1]["old"]["outputs"], stacks[-1]["new"]["outputs"]


def _difference(step: Json) -> Iterator[str]:
    """The lines of the difference between the inputs of a resource, old and new."""
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


def _only(value: Any, other: Any) -> list[Any]:
    """The value; of two lists that differ in more than their order, the elements only it has."""
    if isinstance(value, list) and isinstance(other, list):
        different = [item for item in value if item not in other]
        if different or any(item not in value for item in other):
            return different
    return [] if value is None else [value]


def _is_secret(value: Any) -> bool:
    return isinstance(value, dict) and _SECRET in value


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _shown(value: Any) -> str:
    if value == UNKNOWN:
        return "(known after up)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text)})"
