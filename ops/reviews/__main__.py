"""The command line: `python -m ops.reviews COMMAND`, as make and .github/workflows/ call it."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from components import PROJECT, ROOT
from components.database_target import DatabaseTarget
from embedded.errors import UserError
from embedded.process import reach_loopback_directly, system_error
from ops.reviews import text
from ops.reviews.github import GitHub

DONE, ERROR, DRIFT = 0, 1, 3  # as `python -m migrate` has them

_STREAMED = "PULUMI_ENABLE_STREAMING_JSON_PREVIEW"
"""Has `pulumi preview --json` print every event, those of policies included, one a line."""

_HINT = text.Section(
    "The environment differs from the program of this commit: it was changed by hand, or a merged "
    "change is not deployed yet. The README says how each kind is repaired (Day 2, Drift)."
)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ops.reviews", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    on_stack = argparse.ArgumentParser(add_help=False)
    on_stack.add_argument("stack")
    on_stack.add_argument("--config-file", help="the stack's, where it is not Pulumi.STACK.yaml")

    preview = commands.add_parser(
        "preview", parents=[on_stack], help="print what `pulumi up` would do, as Markdown"
    )
    preview.add_argument("--offline", action="store_true", help="ask neither Pulumi nor a database")
    preview.set_defaults(run=_preview)

    drift = commands.add_parser(
        "drift", parents=[on_stack], help="print what differs from the program (exit code 3)"
    )
    drift.set_defaults(run=_drift)

    comment = commands.add_parser("comment", help="put a preview on a pull request")
    comment.add_argument("number", type=int)
    comment.add_argument("file", type=Path)
    comment.set_defaults(run=_comment)

    issue = commands.add_parser("issue", help="open or update the issue of a drift, or close it")
    issue.add_argument("environment")
    issue.add_argument("file", type=Path, nargs="?", help="what `drift` printed; without it, close")
    issue.set_defaults(run=_issue)

    options = parser.parse_args(arguments)
    reach_loopback_directly()
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {system_error(error, ROOT)}", file=sys.stderr)
    return ERROR


def _preview(options: argparse.Namespace) -> int:
    if options.offline:
        plan = _plan({}, "--offline", "--rehearse")
        changes = text.Section("**Changes:** not known, since this was done without secrets.")
        _print("preview", options.stack, [changes, text.migrations(plan)])
        return ERROR if "error" in plan else DONE
    events = _events(options, "--policy-pack", "policies")
    plan = _plan_of(options, events, "--rehearse")
    _print(
        "preview",
        options.stack,
        [
            text.changes(events),
            text.migrations(plan),
            text.policies(events),
            text.messages(events, plan),
        ],
    )
    return ERROR if text.failed(events) or "error" in plan else DONE


def _drift(options: argparse.Namespace) -> int:
    events = _events(options, "--refresh", "--expect-no-changes")
    plan = _plan_of(options, events)
    differs = bool(text.steps(events))
    sections = [text.changes(events), text.migrations(plan), text.messages(events, plan)]
    _print("drift", options.stack, [_HINT, *sections] if differs else sections)
    if text.failed(events) or "error" in plan:
        return ERROR
    return DRIFT if differs else DONE


def _comment(options: argparse.Namespace) -> int:
    print(_github().comment(options.number, _read(options.file)))
    return DONE


def _issue(options: argparse.Namespace) -> int:
    if options.file:
        title = f"{options.environment} is not as main says"
        print(_github().open_issue(title, _read(options.file)))
    else:
        closed = _github().close_issue(text.marker("drift", options.environment))
        print(f"closed {closed}" if closed else "there is no open issue")
    return DONE


def _read(file: Path) -> str:
    """The text in a file that `preview` or `drift` printed into."""
    written = file.read_text()
    if not written.startswith(text.MARK):
        raise UserError(
            f"{file} holds neither a preview nor a drift",
            "name a file that `preview` or `drift` of this command printed into",
        )
    return written


def _print(kind: str, stack: str, sections: list[text.Section]) -> None:
    """Print a text, shortened to fit a comment, and add all of it to the workflow's summary."""
    environment = stack.rpartition("/")[2]
    print(text.render(kind, environment, sections), end="")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a") as file:
            file.write(text.render(kind, environment, sections, sys.maxsize))


def _pulumi(options: argparse.Namespace, *arguments: str) -> str:
    """The output of a command on the stack; its standard error is ours."""
    given = ["--config-file", options.config_file] if options.config_file else []
    done = subprocess.run(
        ["pulumi", *arguments, "--json", "--stack", options.stack, "--non-interactive", *given],
        cwd=ROOT,
        env=os.environ | {_STREAMED: "true"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout


def _events(options: argparse.Namespace, *arguments: str) -> list[text.Json]:
    """The events of a preview.  The config is checked by components/config.py."""
    lines = _pulumi(
        options, "preview", "--color", "never", "--skip-config-validation", *arguments
    ).splitlines()
    return [json.loads(line) for line in lines]


def _plan_of(options: argparse.Namespace, events: list[text.Json], *arguments: str) -> Any:
    """The migration engine's plan for the stack's database, if there is one already."""
    if not text.is_applied(events):
        return _plan({}, "--offline", *arguments)
    config = {
        key.removeprefix(f"{PROJECT}:"): item["value"]
        for key, item in json.loads(_pulumi(options, "config", "--show-secrets")).items()
    }
    platform = ["--platform"] if config["platform"] == "postgres" else []
    return _plan({"DATABASE_URL": DatabaseTarget.read(config.get).url()}, *platform, *arguments)


def _plan(environment: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "migrate", "--json", "plan", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


def _github() -> GitHub:
    try:
        return GitHub(
            os.environ["GITHUB_API_URL"],
            os.environ["GITHUB_REPOSITORY"],
            os.environ["GITHUB_TOKEN"],
        )
    except KeyError as missing:
        raise UserError(
            f"the variable {missing} is not set", "run this in a workflow of GitHub's, or set it"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
