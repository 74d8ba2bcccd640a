"""The policy pack, as Pulumi starts it: `pulumi preview --policy-pack policies`."""

import sys
from contextlib import suppress
from pathlib import Path

import pulumi
from pulumi.runtime import get_config_env
from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

# The engine starts a pack as if its directory were the whole project.
sys.path.append(str(Path(__file__).parent.parent))

from policies.rules import RULES, PolicyException, Resource, Rule, parse_exceptions, secrets_of


def main() -> None:
    """Serve Pulumi until it ends this process."""
    exceptions: list[PolicyException] = []
    with suppress(ValueError):  # components/config.py reports what is wrong with them
        exceptions = parse_exceptions(pulumi.Config().get("policyExceptions") or "[]")
    secrets = secrets_of(get_config_env())
    needed: set[PolicyException] = set()

    def policy(name: str, rule: Rule) -> ResourceValidationPolicy:
        def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
            resource = Resource(
                args.resource_type, args.name, args.props, args.opts.protect, secrets
            )
            problems = list(rule(resource))
            excused = {e for e in exceptions if problems and e.excuses(name, resource)}
            needed.update(excused)
            for problem in problems if not excused else ():
                report(problem, None)

        return ResourceValidationPolicy(name, rule.__doc__ or "", validate)

    def validate_stack(_: StackValidationArgs, report: ReportViolation) -> None:
        for exception in exceptions:
            if exception not in needed:
                unused = f"nothing of {exception.resource} breaks {exception.policy}: remove it"
                report(unused, None)

    no_idle_exception = StackValidationPolicy(
        "no-idle-exception",
        "Every exception in the stack file excuses something.",
        validate_stack,
        EnforcementLevel.ADVISORY,
    )
    policies = [policy(name, rule) for name, rule in RULES.items()]
    PolicyPack("mindroom", [*policies, no_idle_exception], EnforcementLevel.MANDATORY)


main()
