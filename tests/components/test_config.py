"""The stack's config: what is accepted, and what is said of everything else.

The engine hands every value over as a string, an object as JSON, and so do these tests.  A message
is taken apart into its problems, and the YAML that a problem says to add is really added.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import pulumi
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pulumi.runtime import config as runtime_config

from components import PROJECT, ROOT
from components import config as stack_config
from components.authorization import SERVICES
from components.config import Config, parse
from components.database_target import DatabaseTarget
from dev import __main__ as dev
from embedded.errors import UserError
from policies.rules import PolicyException

pytestmark = pytest.mark.usefixtures("contexts")

CERTIFICATE = "certs/supabase-ca.crt"
DIGEST = "@sha256:" + "0a" * 32
PASSWORDS = {role: f"the password of {role}" for role in SERVICES}
VALID = {
    "platform": "supabase",
    "databaseHost": "pooler.example",
    "databasePort": "5432",
    "databaseName": "postgres",
    "databaseUser": "postgres.tenant",
    "databasePassword": "the administrator's",
    "databaseSslmode": "verify-full",
    "databaseSslrootcert": CERTIFICATE,
    "databaseConnections": "15",
    "servicePasswords": json.dumps(PASSWORDS),
    "kubernetesContext": "production",
    "renderDirectory": "",
    "provisionerImage": f"registry.example/instance-provisioner{DIGEST}",
    "provisionerApiToken": "the token of the API",
    "baseDomain": "mindroom.example",
    "automation": "pg_cron",
    "protect": "true",
    "policyExceptions": json.dumps(
        [{"policy": "pods-have-limits", "resource": "kubernetes:batch/*", "reason": "a trial"}]
    ),
}
SECRETS = ["databasePassword", "servicePasswords", "provisionerApiToken"]
REQUIRED = [str(f.alias) for f in Config.model_fields.values() if f.is_required()]


class Problem(NamedTuple):
    """One problem of a message: its key, what is said, and the YAML to add."""

    key: str
    text: str
    added: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project directory that has the CA's file."""
    directory = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "Pulumi.yaml", directory)
    (directory / CERTIFICATE).parent.mkdir()
    (directory / CERTIFICATE).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_config, "ROOT", directory)
        yield directory


def refusal(values: Mapping[str, str], exposed: list[str] | None = None) -> str:
    with pytest.raises(pulumi.RunError) as caught:
        parse(values, exposed or [], "prod")
    assert caught.value.__cause__ is caught.value.__context__ is None  # those would show values
    return str(caught.value)


def problems(values: Mapping[str, str], exposed: list[str] | None = None) -> list[Problem]:
    """What is wrong; every problem names its key, the stack file and what to do."""
    head, *blocks = refusal(values, exposed).split("\n\n")
    assert head == f"the config of stack prod has {len(blocks)} problem(s)"
    found = []
    for block in blocks:
        match = re.fullmatch(rf"{PROJECT}:(\w+) (.+)\n((?:  .+\n?)+)", block)
        assert match, block
        assert "\n  what to do: " in f"\n{match[3]}"
        assert "Pulumi.prod.yaml" in match[3]
        added = "".join(re.findall(r"^    (.+\n?)", match[3], re.MULTILINE))
        found.append(Problem(match[1], match[2], yaml.safe_load(added) if added else {}))
    return found


def only_problem(values: Mapping[str, str], exposed: list[str] | None = None) -> Problem:
    (problem,) = problems(values, exposed)
    return problem


def pasted(values: Mapping[str, str], problem: Problem) -> dict[str, str]:
    """The values with a problem's YAML in the stack file."""
    assert list(problem.added) == [f"{PROJECT}:{problem.key}"]
    (value,) = problem.added.values()
    return {**values, problem.key: value if isinstance(value, str) else json.dumps(value)}


def keys_of_problems(values: Mapping[str, str]) -> list[str]:
    try:
        parse(values, [], "prod")
    except pulumi.RunError:
        return [problem.key for problem in problems(values)]
    return []


def test_valid_config_is_typed() -> None:
    config = parse(VALID, [], "prod")
    assert config.database_port == 5432
    assert config.protect is True
    assert parse(VALID | {"protect": "false"}, [], "prod").protect is False
    assert config.policy_exceptions == [
        PolicyException("pods-have-limits", "kubernetes:batch/*", "a trial")
    ]
    assert config.render_directory == ""
    assert {r: w.get_secret_value() for r, w in config.service_passwords.items()} == PASSWORDS
    assert config.target == DatabaseTarget(
        host="pooler.example",
        port=5432,
        database="postgres",
        role="postgres",
        tenant="tenant",
        password="the administrator's",
        sslmode="verify-full",
        sslrootcert=CERTIFICATE,
    )


@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_told(key: str, value: str | None) -> None:
    values = {k: v for k, v in (VALID | {key: value}).items() if v is not None}
    problem = only_problem(values)
    assert (problem.key, problem.text) == (key, "is missing")
    if key not in SECRETS:
        assert keys_of_problems(pasted(values, problem)) == []


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("platform", "mysql", "must be 'postgres' or 'supabase', not 'mysql'"),
        ("platform", "Postgres", "must be 'postgres' or 'supabase', not 'Postgres'"),
        ("databasePort", "many", "a valid integer, unable to parse string as an integer, not 'man"),
        ("databasePort", "5432.5", "should be a valid integer"),
        ("databasePort", "0", "should be greater than 0, not '0'"),
        ("databasePort", "65536", "should be less than 65536, not '65536'"),
        ("databaseSslmode", "full", "or 'verify-full', not 'full'"),
        ("automation", "cron", "must be 'pg_cron', 'kubernetes' or 'none', not 'cron'"),
        ("measure", "kubelets", "must be 'kubelet' or 'none', not 'kubelets'"),
        ("protect", "perhaps", "should be a valid boolean, unable to interpret input, not 'perhap"),
        ("provisionerImage", "registry.example/provisioner", "is not repository:tag or repository"),
        ("provisionerImage", "registry.example:5000/provisioner", "is not repository:tag or rep"),
        ("provisionerImage", "registry.example/provisioner:", "is not repository:tag or repositor"),
        ("provisionerImage", "registry.example/provisioner@sha256:0a", "is not repository:tag or"),
        ("provisionerImage", f"registry.example/provisioner{DIGEST}0", "is not repository:tag or"),
        ("databaseSslrootcert", "certs/absent.crt", "'certs/absent.crt' is not a file"),
        ("databaseSslrootcert", "certs", "'certs' is not a file"),
    ],
)
def test_wrong_value_is_told(key: str, value: str, text: str) -> None:
    values = VALID | {key: value}
    problem = only_problem(values)
    assert problem.key == key
    assert text in problem.text
    assert keys_of_problems(pasted(values, problem)) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"reason": None}, "entry 2 has no reason"),
        ({"reason": " "}, "entry 2 has no reason"),
        ({"reason": ["a trial"]}, "entry 2 has no reason"),
        ({"resource": None}, "entry 2 has no resource"),
        ({"policy": ""}, "entry 2 has no policy"),
        (
            {"policy": "pods-have-limit"},
            "entry 2: 'pods-have-limit' is not a policy; there are no-gr",
        ),
        ({"until": "May"}, "entry 2 has an unknown until"),
        ({"reason": "", "policy": "x"}, "entry 2 has no reason; entry 2: 'x' is not a policy"),
    ],
)
def test_wrong_policy_exception_is_told(change: dict[str, Any], text: str) -> None:
    (right,) = json.loads(VALID["policyExceptions"])
    wrong = {k: v for k, v in {**right, **change}.items() if v is not None}
    values = VALID | {"policyExceptions": json.dumps([right, wrong])}
    problem = only_problem(values)
    assert problem.key == "policyExceptions"
    assert problem.text.startswith(text)
    assert keys_of_problems(pasted(values, problem)) == []


@pytest.mark.parametrize("value", ["pods-have-limits", "{", '{"policy": "x"}', "7"])
def test_policy_exceptions_that_are_no_list_are_told(value: str) -> None:
    problem = only_problem(VALID | {"policyExceptions": value})
    assert (problem.key, problem.text) == ("policyExceptions", "must be a list")


@pytest.mark.parametrize(
    "image",
    [
        "localhost/instance-provisioner:dev",
        "registry.example:5000/team/instance-provisioner:1.0.0",
        f"registry.example/instance-provisioner{DIGEST}",
    ],
)
def test_image_with_tag_or_digest_is_accepted(image: str) -> None:
    assert parse(VALID | {"provisionerImage": image}, [], "prod").provisioner_image == image


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"databasePort": "6543"}, "databasePort", "6543 is Supabase's transaction pooler"),
        ({"databaseSslmode": "disable"}, "databaseSslmode", "disable sends passwords in the clear"),
        ({"databaseSslmode": "allow"}, "databaseSslmode", "allow sends passwords in the clear"),
        ({"databaseSslmode": "prefer"}, "databaseSslmode", "prefer sends passwords in the clear"),
        (
            {"databaseSslrootcert": ""},
            "databaseSslrootcert",
            "is missing, and sslmode verify-full needs it",
        ),
        (
            {"databaseSslmode": "verify-ca", "databaseSslrootcert": ""},
            "databaseSslrootcert",
            "is missing, and sslmode verify-ca needs it",
        ),
        ({"kubernetesContext": ""}, "kubernetesContext", "and renderDirectory are missing"),
        (
            {"renderDirectory": "manifests"},
            "renderDirectory",
            "and kubernetesContext are both given",
        ),
    ],
)
def test_contradiction_is_told(changes: dict[str, str], key: str, text: str) -> None:
    values = VALID | changes
    problem = only_problem(values)
    assert problem.key == key
    assert text in problem.text
    assert keys_of_problems(pasted(values, problem)) == []


@pytest.mark.parametrize(
    ("content", "fits"),
    [
        ("contexts: [{name: other}, {name: production}]", True),
        ("contexts: [{name: other}]", False),
        ("contexts: [{name: 1}]", False),
        ("contexts:", False),
        ("kind: Config", False),
        ("", False),
        ("- a", False),
        (": :", False),
        ("\udcff", False),
        (None, False),
    ],
)
def test_a_context_is_one_of_the_kubeconfigs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, fits: bool
) -> None:
    path = tmp_path / "other"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'nothing'}:{path}")
    if fits:
        assert keys_of_problems(VALID) == []
        return
    problem = only_problem(VALID)
    assert problem.key == "kubernetesContext"
    assert problem.text.startswith(
        f"'production' is not a context of {tmp_path / 'nothing'}:{path}"
    )


def test_without_kubeconfig_it_is_kubectl_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"is not a context of {tmp_path}/.kube/config" in only_problem(VALID).text
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text("contexts: [{name: production}]")
    assert keys_of_problems(VALID) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"platform": "postgres", "databasePort": "6543"},
        {"databaseHost": "localhost", "databaseSslmode": "disable", "databaseSslrootcert": ""},
        {"databaseHost": "127.0.0.1", "databaseSslmode": "prefer", "databaseSslrootcert": ""},
        {"databaseHost": "::1", "databaseSslmode": "allow", "databaseSslrootcert": ""},
        {"databaseSslmode": "require", "databaseSslrootcert": ""},
        {"databaseSslmode": "verify-ca"},
        {"kubernetesContext": "", "renderDirectory": "manifests"},
    ],
)
def test_no_contradiction_is_seen_where_there_is_none(changes: dict[str, str]) -> None:
    parse(VALID | changes, [], "prod")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("databaseport", "databasePort"),
        ("databasePasword", "databasePassword"),
        ("protected", "protect"),
        ("provisioner_image", "provisionerImage"),
    ],
)
def test_typo_is_told_with_the_key_that_is_meant(key: str, meant: str) -> None:
    problem = only_problem(VALID | {key: "x"})
    assert problem == (key, f"is an unknown key; did you mean {meant}?", {})


def test_unknown_key_like_no_other_is_told_without_a_guess() -> None:
    assert only_problem(VALID | {"xyz": "x"}) == ("xyz", "is an unknown key", {})


@pytest.mark.parametrize(
    ("passwords", "text"),
    [
        (PASSWORDS | {"customer_portal": ""}, "has no password for customer_portal"),
        ({"customer_portal": PASSWORDS["customer_portal"]}, "has no password for stripe_handler, "),
        (PASSWORDS | {"postgres": "x" * 16}, "names roles that do not exist: postgres"),
        (PASSWORDS | {"admin_dashboard": "x" * 15}, "under 16 characters for admin_dashboard"),
        (PASSWORDS | {"admin_dashboard": 1234567890123456}, "is malformed (string_type;"),
        (PASSWORDS | {"admin_dashboard": ["x" * 16]}, "is malformed (string_type;"),
        (list(PASSWORDS.values()), "is malformed (dict_type;"),
        ("x" * 16, "is malformed (dict_type;"),
    ],
)
def test_wrong_service_passwords_are_told(passwords: Any, text: str) -> None:
    problem = only_problem(VALID | {"servicePasswords": json.dumps(passwords)})
    assert problem.key == "servicePasswords"
    assert text in problem.text


def test_shortest_service_password_is_accepted() -> None:
    passwords = dict.fromkeys(SERVICES, "x" * 16)
    parse(VALID | {"servicePasswords": json.dumps(passwords)}, [], "prod")


@pytest.mark.parametrize("passwords", ["not json", "{}", "{ }"])
def test_service_passwords_that_are_none_are_told(passwords: str) -> None:
    assert only_problem(VALID | {"servicePasswords": passwords}).key == "servicePasswords"


@pytest.mark.parametrize("key", SECRETS)
def test_secret_is_added_by_a_command_and_stands_encrypted(key: str) -> None:
    message = refusal({k: v for k, v in VALID.items() if k != key})
    (problem,) = problems({k: v for k, v in VALID.items() if k != key})
    secure = {"secure": "(ciphertext)"}
    command = "pulumi config set -s prod --secret "
    if key == "servicePasswords":
        assert problem.added == {f"{PROJECT}:{key}": dict.fromkeys(SERVICES, secure)}
        commands = "\n  and: ".join(f"{command}--path {key}.{role}" for role in SERVICES)
        assert f"\n  what to do: {commands}\n" in message
    else:
        assert problem.added == {f"{PROJECT}:{key}": secure}
        assert f"\n  what to do: {command}{key}\n" in message


@pytest.mark.parametrize("key", SECRETS)
def test_secret_in_plain_text_is_told(key: str) -> None:
    problem = only_problem(VALID, [key])
    assert problem.key == key
    assert problem.text.startswith("stands in the stack file in plain text")


def test_all_problems_are_told_at_once() -> None:
    values = {
        "platform": "mysql",
        "databaseHost": "db.example",
        "databasePort": "0",
        "databaseName": "",
        "databaseSslmode": "prefer",
        "databaseSslrootcert": "absent.crt",
        "databaseConnections": "10",
        "servicePasswords": json.dumps(PASSWORDS | {"stripe_handler": "short", "nobody": "x" * 16}),
        "kubernetesContext": "production",
        "renderDirectory": "manifests",
        "provisionerImage": "provisioner",
        "provisionerApiToken": "exposed",
        "automation": "cron",
        "protect": "perhaps",
        "databseHost": "db.example",
    }
    assert sorted(problem.key for problem in problems(values, ["provisionerApiToken"])) == sorted(
        [
            "platform",
            "databasePort",
            "databaseName",
            "databaseUser",
            "databasePassword",
            "databaseSslmode",
            "databaseSslrootcert",
            "databaseConnections",
            "servicePasswords",  # unknown role
            "servicePasswords",  # too short
            "renderDirectory",
            "provisionerImage",
            "provisionerApiToken",  # exposed
            "provisionerApiToken",  # too short
            "baseDomain",
            "automation",
            "protect",
            "databseHost",
        ]
    )


def test_exposed_secret_hides_no_other_problem_of_it() -> None:
    short = json.dumps(dict.fromkeys(SERVICES, "short"))
    found = problems(VALID | {"servicePasswords": short}, ["servicePasswords"])
    assert len(found) == 2


words = st.text(min_size=1).filter(lambda word: word != "{}")
service_words = st.text(min_size=16)
short_words = st.text(min_size=1, max_size=15)


@given(words, service_words, service_words, short_words)
def test_no_message_depends_on_a_secret(admin: str, token: str, word: str, short: str) -> None:
    def message(admin: str, token: str, word: str, short: str) -> str:
        passwords = {"stripe_handler": short, "customer_portal": word, "nobody": word}
        values = {
            "databasePassword": admin,
            "provisionerApiToken": token,
            "servicePasswords": json.dumps(passwords),
        }
        return refusal(values, SECRETS)

    assert message(admin, token, word, short) == message("a", "b" * 16, "c" * 16, "d")


@given(st.text(), st.sampled_from(["{}", "[{}]", '{{"stripe_handler": [{}]}}', '{{"x": {}']))
def test_no_message_shows_malformed_passwords(word: str, around: str) -> None:
    marker = "hunter2"
    message = refusal({"servicePasswords": around.format(json.dumps(marker + word))})
    assert marker not in message


@given(service_words)
def test_config_shows_no_secret(word: str) -> None:
    word = "hunter2" + word
    passwords = json.dumps(dict.fromkeys(SERVICES, word))
    secrets = dict.fromkeys(SECRETS, word) | {"servicePasswords": passwords}
    config = parse(VALID | secrets, [], "prod")
    assert "hunter2" not in f"{config!r} {config} {config.target!r} {config.target}"


class TestLoad:
    """From the engine's own config."""

    @pytest.fixture(autouse=True)
    def stack(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(pulumi, "get_stack", lambda: "staging")
        yield
        runtime_config.set_all_config({}, [])

    def given(self, values: Mapping[str, str], secrets: list[str]) -> None:
        runtime_config.set_all_config(
            {f"{PROJECT}:{key}": value for key, value in values.items()}
            | {"postgresql:host": "not ours", "pulumi:disable-default-providers": "[]"},
            [f"{PROJECT}:{key}" for key in secrets],
        )

    def test_other_namespaces_are_left_alone(self) -> None:
        self.given(VALID, SECRETS)
        assert stack_config.load() == parse(VALID, [], "staging")

    @pytest.mark.parametrize("key", SECRETS)
    def test_secret_that_is_not_encrypted_is_told(self, key: str) -> None:
        self.given(VALID, [each for each in SECRETS if each != key])
        with pytest.raises(pulumi.RunError) as caught:
            stack_config.load()
        message = str(caught.value)
        assert message.startswith("the config of stack staging has 1 problem(s)\n")
        assert f"\n{PROJECT}:{key} stands in the stack file in plain text" in message
        assert "Pulumi.staging.yaml" in message
        assert VALID[key] not in message

    def test_a_bastion_without_a_tunnel_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(pulumi.log, "warn", told.append)
        self.given(VALID | {"databaseBastion": "bastion.example"}, SECRETS)
        for leads_to in ("", "41234:other.example:5432", "41234:pooler.example:5432"):
            monkeypatch.setenv("DATABASE_TUNNEL", leads_to)
            stack_config.load()
        (first, second) = told
        assert first == second
        assert first.endswith("run bin/tunnel -- pulumi ... -s staging")

    def test_missing_secret_is_not_called_exposed(self) -> None:
        self.given(VALID | dict.fromkeys(SECRETS, ""), [])
        with pytest.raises(pulumi.RunError) as caught:
            stack_config.load()
        assert str(caught.value).count(" is missing") == len(SECRETS)
        assert "plain text" not in str(caught.value)


class TestProjectFiles:
    """Pulumi.yaml and the committed stack files."""

    DECLARED: Mapping[str, dict[str, Any]] = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())[
        "config"
    ]

    def values(self, stack: str) -> dict[str, str]:
        """Defaults and stack file, as the engine puts them together."""
        committed = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
        merged = {key: each["default"] for key, each in self.DECLARED.items()} | {
            key.removeprefix(f"{PROJECT}:"): value for key, value in committed.items()
        }
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in merged.items()}

    def test_declared_keys_are_the_fields(self) -> None:
        assert list(self.DECLARED) == [field.alias for field in Config.model_fields.values()]

    @pytest.mark.parametrize("name", Config.model_fields)
    def test_key_has_its_type_and_a_description(self, name: str) -> None:
        field = Config.model_fields[name]
        types: dict[Any, str] = {int: "integer", bool: "boolean", dict: "object", list: "array"}
        declared = self.DECLARED[str(field.alias)]
        expected = types.get(get_origin(field.annotation) or field.annotation, "string")
        assert declared["type"] == expected
        assert len(declared["description"]) > 10

    def test_defaults_are_right_and_what_has_none_is_missing(self) -> None:
        values = {
            key: each["default"]
            if isinstance(each["default"], str)
            else json.dumps(each["default"])
            for key, each in self.DECLARED.items()
        }
        empty = {key for key in REQUIRED if values[key] in ("", "{}")}
        found = problems(values)
        assert {problem.key for problem in found if problem.text == "is missing"} == empty
        contradictions = {problem.key for problem in found if problem.text != "is missing"}
        assert contradictions == {"databaseSslrootcert", "kubernetesContext"}

    def test_dev_stack_with_what_is_generated_is_valid(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dev, "STATE", tmp_path / "state")
        monkeypatch.setenv("DEV_DATABASE_URL", "postgresql://postgres:word@127.0.0.1:20000")
        values, secrets = dev._config()
        assert sorted(secrets) == sorted(SECRETS)
        config = parse(
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}, [], "dev"
        )
        assert config.target.host == "127.0.0.1"
        assert config.target.port == 20000
        assert config.target.password == "word"
        assert config.automation == "kubernetes"
        assert config.protect is False

    def test_damaged_secrets_of_the_dev_stack_are_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dev, "STATE", tmp_path)
        (tmp_path / "secrets.json").write_text("")
        with pytest.raises(UserError, match=r"secrets\.json is damaged"):
            dev._generated("word")

    @pytest.mark.parametrize("stack", ["staging", "prod"])
    def test_hosted_stack_with_its_secrets_and_image_is_valid(self, stack: str) -> None:
        missing = [*SECRETS, "provisionerImage"]
        config = parse(self.values(stack) | {key: VALID[key] for key in missing}, [], stack)
        assert config.platform == "supabase"
        assert config.automation == "pg_cron"
        assert config.protect is True

    @pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
    def test_committed_secrets_are_encrypted(self, stack: str) -> None:
        def plain(value: Any) -> bool:
            inner = value.values() if isinstance(value, dict) else ()
            return not (isinstance(value, dict) and "secure" in value) and (
                not inner or any(map(plain, inner))
            )

        committed = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
        exposed = {key: plain(committed.get(f"{PROJECT}:{key}", {"secure": ""})) for key in SECRETS}
        assert exposed == dict.fromkeys(SECRETS, False)


TO = DatabaseTarget("pooler.example", 5432, "postgres", "postgres", "", "a word", "require", "")
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
hosts = st.one_of(
    st.sampled_from(["localhost", "127.0.0.1", "db.example", "/run/a directory"]),
    st.ip_addresses(v=6).map(str),
)


class TestConnection:
    """URLs, as libpq itself reads them."""

    @given(hosts, texts, texts, texts, texts)
    def test_url_holds_whatever_it_was_made_of(
        self, host: str, database: str, role: str, password: str, certificate: str
    ) -> None:
        to = replace(TO, host=host, database=database, sslrootcert=certificate)
        parts = {
            "host": host,
            "port": "5432",
            "dbname": database,
            "user": role,
            "password": password,
            "sslmode": "require",
        }
        assert conninfo_to_dict(to.url_for(role, password)) == parts
        administrator = replace(to, role=role, password=password)
        assert conninfo_to_dict(administrator.url()) == parts | {"sslrootcert": certificate}

    def test_without_certificate_there_is_no_such_parameter(self) -> None:
        assert "sslrootcert" not in conninfo_to_dict(TO.url_for("stripe_handler", "word"))

    @pytest.mark.parametrize("host", ["db.example", "2001:db8::1"])
    def test_a_tunnel_to_it_is_for_this_machine_alone(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        to = replace(TO, host=host)
        direct, elsewhere = conninfo_to_dict(to.url()), to.url_for("stripe_handler", "word")
        monkeypatch.setenv("DATABASE_TUNNEL", f"41234:{host}:5432")
        through = {"hostaddr": "127.0.0.1", "port": "41234"}
        assert conninfo_to_dict(to.url()) == direct | through
        assert to.url_for("stripe_handler", "word") == elsewhere
        assert conninfo_to_dict(replace(to, port=5433).url()) == direct | {"port": "5433"}

    def test_without_password_there_is_no_colon(self) -> None:
        assert f"//{TO.role}@" in replace(TO, password="").url()

    def test_ipv6_address_is_in_brackets(self) -> None:
        assert "@[2001:db8::1]:5432/" in replace(TO, host="2001:db8::1").url()

    def test_behind_the_pooler_every_role_carries_the_tenant(self) -> None:
        to = replace(TO, tenant="a.b")
        assert (
            conninfo_to_dict(to.url_for("stripe_handler", "word"))["user"] == "stripe_handler.a.b"
        )
        assert conninfo_to_dict(to.url())["user"] == f"{TO.role}.a.b"

    def test_on_a_plain_server_a_dot_in_a_name_means_nothing(self) -> None:
        plain = VALID | {"platform": "postgres", "databaseUser": "ops.admin"}
        to = parse(plain, [], "prod").target
        assert conninfo_to_dict(to.url())["user"] == "ops.admin"
        assert conninfo_to_dict(to.url_for("stripe_handler", "word"))["user"] == "stripe_handler"
