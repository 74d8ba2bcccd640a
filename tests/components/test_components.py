"""The wiring: what the real `__main__.py` declares, as the engine would be asked for it.

The program runs under Pulumi's mocks.  What a resource's options say (protection, parent,
dependencies, providers) is in none of the mocks' arguments, so `Recorder` keeps the requests.
"""

import base64
import importlib
import json
import re
import runpy
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import dill  # type: ignore[import-untyped]
import pulumi
import pytest
from psycopg.conninfo import conninfo_to_dict
from pulumi.runtime import config as runtime_config
from pulumi.runtime import mocks, rpc
from pulumi.runtime.settings import get_root_resource

from components import PROJECT, ROOT, access
from components import config as stack_config
from components.authorization import ALL, GROUP, SERVICES, Service
from components.automation import SCHEDULES
from components.database import ServerInventory
from policies.rules import Resource, data_is_protected

Properties = dict[str, Any]

PRINTABLE = "".join(map(chr, range(32, 127)))
PASSWORDS = {role: f"{role}{PRINTABLE}" for role in SERVICES}
ADMIN_PASSWORD = f"{PRINTABLE}%20"
TOKEN = "the token+of the API"
SECRETS = [*PASSWORDS.values(), ADMIN_PASSWORD, TOKEN]
CONFIG: Mapping[str, Any] = {
    "platform": "postgres",
    "databaseHost": "127.0.0.1",
    "databasePort": 5432,
    "databaseName": "mindroom",
    "databaseUser": "admin",
    "databasePassword": ADMIN_PASSWORD,
    "databaseSslmode": "require",
    "databaseSslrootcert": "",
    "databaseConnections": 15,
    "servicePasswords": PASSWORDS,
    "kubernetesContext": "",
    "renderDirectory": "manifests",
    "provisionerImage": "registry.example/instance-provisioner:1.0.0",
    "provisionerApiToken": TOKEN,
    "baseDomain": "mindroom.example",
    "automation": "kubernetes",
    "protect": False,
}
SUPABASE: Mapping[str, Any] = {
    "platform": "supabase",
    "databaseName": "postgres",
    "databaseUser": "postgres.tenant",
}
CONTEXT: Mapping[str, Any] = {"kubernetesContext": "production", "renderDirectory": ""}
pytestmark = pytest.mark.usefixtures("contexts")

RESERVED = re.compile(
    "anon|authenticated|service_role|authenticator|postgres|dashboard_user|pgbouncer"
    "|supabase_.*|pg_.*"
)

DATABASE = "mindroom:database:Database"
SCHEMA = "mindroom:schema:Schema"
ROLES = "mindroom:access:Roles"
GRANTS = "mindroom:access:Grants"
AUTOMATION = "mindroom:automation:Automation"
PROVISIONER = "mindroom:instance_provisioner:InstanceProvisioner"
PG_PROVIDER = "pulumi:providers:postgresql"
PG_DATABASE = "postgresql:index/database:Database"
PG_ROLE = "postgresql:index/role:Role"
PG_GRANT = "postgresql:index/grant:Grant"
MIGRATIONS = "pulumi-python:dynamic/schema:MigrationSet"
REPEATABLE = "pulumi-python:dynamic/schema:RepeatableSet"
VERIFICATION = "pulumi-python:dynamic/schema:Verification"
SETTINGS = "pulumi-python:dynamic/access:RoleSettings"
BY_HAND = "pulumi-python:dynamic/access:GivenByHand"
PG_CRON = "pulumi-python:dynamic/automation:PgCron"
K8S_PROVIDER = "pulumi:providers:kubernetes"
K8S_NAMESPACE = "kubernetes:core/v1:Namespace"
K8S_SECRET = "kubernetes:core/v1:Secret"
CHART = "kubernetes:helm.sh/v4:Chart"


class Key(NamedTuple):
    """What tells a resource from all others."""

    type: str
    name: str


@dataclass
class Declared:
    """One resource, as requested.

    Attributes:
        inputs: its inputs, secrets still wrapped.
        parent: None for a component of the stack itself.
        began: the moment of the request, counted in requests and answers.
        ended: the moment of the answer; the engine gives it when the resource exists.
    """

    key: Key
    request: Any
    inputs: Properties
    parent: Key | None
    dependencies: set[Key]
    began: int
    ended: int = -1


@dataclass
class Run:
    """What a run of the program declared.

    Attributes:
        outputs: the stack outputs; only what is known.
        secret: names of those that are secret.
        registered: type and name of the components that told their outputs, with them.
    """

    resources: dict[Key, Declared] = field(default_factory=dict)
    outputs: Properties = field(default_factory=dict)
    secret: set[str] = field(default_factory=set)
    registered: dict[Key, Properties] = field(default_factory=dict)

    def of(self, type_: str) -> dict[str, Declared]:
        """The resources of a type by name."""
        return {key.name: each for key, each in self.resources.items() if key.type == type_}

    def children(self, type_: str) -> set[Key]:
        """The children of the component of a type."""
        return {
            k for k, each in self.resources.items() if each.parent and each.parent.type == type_
        }

    def needs(self, key: Key) -> set[Key]:
        """All that a resource depends on, as the engine sees it: parents count."""
        found: set[Key] = set()
        todo = [key]
        while todo:
            each = self.resources[todo.pop()]
            above = each.dependencies | ({each.parent} if each.parent else set())
            todo += above - found
            found |= above
        return found


class Engine(mocks.Mocks):
    """Answers with the inputs and, but for a preview, what only a server could know."""

    def __init__(self, preview: bool) -> None:
        self.preview = preview

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, Properties]:
        time.sleep(0.005)  # so that whatever does not wait for it overtakes it
        computed = (
            {"fingerprint": "f" * 64} if args.typ == VERIFICATION and not self.preview else {}
        )
        return f"{args.name}-id", args.inputs | computed

    def call(self, args: mocks.MockCallArgs) -> Any:
        raise AssertionError(f"the program calls {args.token}")


class Recorder(mocks.MockMonitor):
    """The engine's end of the program's requests."""

    def __init__(self, run: Run, preview: bool) -> None:
        super().__init__(Engine(preview))
        self.run = run
        self.keys: dict[str, Key] = {}
        self.moment = 0
        self.lock = threading.Lock()

    def tick(self) -> int:
        with self.lock:
            self.moment += 1
            return self.moment

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 the protocol's name
        if request.type == "pulumi:pulumi:Stack":
            return super().RegisterResource(request)  # type: ignore[no-untyped-call]
        key = Key(request.type, request.name)
        self.keys[self.make_urn(request.parent, request.type, request.name)] = key
        assert key not in self.run.resources, f"{key} twice"
        declared = self.run.resources[key] = Declared(
            key,
            request,
            rpc.deserialize_properties(request.object),
            self.keys.get(request.parent),
            {self.keys[urn] for urn in request.dependencies},
            self.tick(),
        )
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        declared.ended = self.tick()
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802 the protocol's name
        if request.urn in self.keys:
            outputs = rpc.deserialize_properties(request.outputs)
            self.run.registered[self.keys[request.urn]] = outputs
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]


def run(changes: Mapping[str, Any], *, preview: bool = False, result: Run | None = None) -> Run:
    """Run the program with the config, changed; a given result holds what a failed run declared."""
    result = result or Run()

    async def collect(declared: Mapping[str, Any]) -> None:
        for name, value in declared.items():
            output = pulumi.Output.from_input(value)
            if await output.is_known():
                result.outputs[name] = await output.future()
            if await output.is_secret():
                result.secret.add(name)

    @mocks.test  # type: ignore[untyped-decorator]
    def program() -> Any:
        runtime_config.set_all_config(
            {
                f"{PROJECT}:{key}": value if isinstance(value, str) else json.dumps(value)
                for key, value in {**CONFIG, **changes}.items()
            },
            [
                f"{PROJECT}:{key}"
                for key in ("databasePassword", "servicePasswords", "provisionerApiToken")
            ],
        )
        runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")
        return collect(cast("Any", get_root_resource()).outputs)

    recorder = Recorder(result, preview)
    interrupt = signal.getsignal(signal.SIGINT)  # the program gives up Python's own
    mocks.set_mocks(
        recorder.mocks, project=PROJECT, stack="test", preview=preview, monitor=recorder
    )
    try:
        program()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        runtime_config.set_all_config({}, [])
    return result


@cache
def variant(platform: str, target: str, protect: bool) -> Run:
    hosted = SUPABASE if platform == "supabase" else {}
    deployed = CONTEXT if target == "context" else {}
    return run({**hosted, **deployed, "protect": protect})


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of these stacks is only spoken of."""
    monkeypatch.setattr("components.database.existing_on_server", lambda _: ServerInventory())


@pytest.fixture(params=["postgres", "supabase"])
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["directory", "context"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["protected", "unprotected"])
def protect(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def declared(platform: str, target: str, protect: bool) -> Run:
    """What the program declares, for every platform, target and protection."""
    return variant(platform, target, protect)


@pytest.fixture
def plain() -> Run:
    """What it declares on a plain server, unprotected, rendered to files."""
    return variant("postgres", "directory", False)


def named(type_: str, names: Iterator[str] | list[str] | Mapping[str, Any]) -> set[Key]:
    return {Key(type_, name) for name in names}


def sql_files(folder: str) -> list[str]:
    return sorted(path.name for path in (ROOT / "sql" / folder).glob("*.sql"))


def test_everything_is_declared_under_its_component_and_nothing_else(
    declared: Run, platform: str
) -> None:
    grants = [name for role in SERVICES for name in expected_grants(role, SERVICES[role])]
    expected = {
        DATABASE: named(PG_PROVIDER, ["server"]),
        SCHEMA: named(MIGRATIONS, ["migrations"])
        | named(REPEATABLE, ["repeatable"])
        | named(BY_HAND, ["given-by-hand"])
        | named(VERIFICATION, ["verification"]),
        ROLES: named(PG_ROLE, SERVICES)
        | named(SETTINGS, [f"{role}-settings" for role in SERVICES]),
        GRANTS: named(PG_GRANT, grants),
        AUTOMATION: named(PG_CRON, ["pg-cron"]),
        PROVISIONER: named(K8S_PROVIDER, ["cluster"])
        | named(K8S_NAMESPACE, ["mindroom", "mindroom-instances"])
        | named(K8S_SECRET, ["instance-gateway", "instance-provisioner"])
        | named(CHART, ["instance-provisioner"]),
    }
    if platform == "postgres":
        expected[DATABASE] |= named(PG_DATABASE, ["database"]) | named(REPEATABLE, ["platform"])
    assert {type_: declared.children(type_) for type_ in expected} == expected
    components = {key for key, each in declared.resources.items() if each.parent is None}
    assert {key.type for key in components} == set(expected)
    assert len(declared.resources) == len(components) + sum(map(len, expected.values()))


def test_what_the_server_has_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ({"mindroom", "stripe_handler"}, set()):
        existing = ServerInventory(frozenset(found), frozenset(found))
        monkeypatch.setattr(
            "components.database.existing_on_server", lambda _, existing=existing: existing
        )
        made = run({})
        imported = {key.name: r.request.importId for key, r in made.resources.items()}
        assert {name: id_ for name, id_ in imported.items() if id_} == {
            name: id_
            for name, id_ in (("database", "mindroom"), ("stripe_handler", "stripe_handler"))
            if id_ in found
        }


def test_component_types_name_their_module_and_class(plain: Run) -> None:
    components = [key for key, each in plain.resources.items() if not each.parent]
    assert components
    for key in components:
        project, module, name = key.type.split(":")
        assert project == PROJECT
        found = getattr(importlib.import_module(f"components.{module}"), name)
        assert issubclass(found, pulumi.ComponentResource)


def test_every_component_registers_its_outputs(declared: Run) -> None:
    components = {key for key, each in declared.resources.items() if not each.parent}
    assert set(declared.registered) == components


class TestOrder:
    """Nothing is begun before all that it needs exists."""

    @pytest.mark.parametrize(
        ("later", "earlier"),
        [
            ((REPEATABLE, "platform"), (PG_DATABASE, "database")),
            ((MIGRATIONS, "migrations"), (PG_DATABASE, "database")),
            ((MIGRATIONS, "migrations"), (REPEATABLE, "platform")),
        ],
    )
    def test_plain_server_is_made_ready_before_the_schema(
        self, plain: Run, later: tuple[str, str], earlier: tuple[str, str]
    ) -> None:
        self.check(plain, later, earlier)

    @pytest.mark.parametrize(
        ("later", "earlier"),
        [
            ((REPEATABLE, "repeatable"), (MIGRATIONS, "migrations")),
            ((VERIFICATION, "verification"), (MIGRATIONS, "migrations")),
            ((BY_HAND, ""), (REPEATABLE, "repeatable")),
            ((VERIFICATION, "verification"), (BY_HAND, "")),
            ((PG_ROLE, ""), (VERIFICATION, "verification")),
            ((PG_GRANT, ""), (VERIFICATION, "verification")),
            ((PG_GRANT, ""), (PG_ROLE, "")),
            ((PG_GRANT, ""), (SETTINGS, "")),
            ((PG_CRON, "pg-cron"), (VERIFICATION, "verification")),
            ((CHART, ""), (VERIFICATION, "verification")),
            ((CHART, ""), (PG_GRANT, "")),
            ((K8S_SECRET, ""), (K8S_NAMESPACE, "mindroom")),
            ((CHART, ""), (K8S_NAMESPACE, "")),
            ((CHART, ""), (K8S_SECRET, "")),
        ],
    )
    def test_later_waits_for_earlier(
        self, declared: Run, later: tuple[str, str], earlier: tuple[str, str]
    ) -> None:
        self.check(declared, later, earlier)

    def check(self, declared: Run, later: tuple[str, str], earlier: tuple[str, str]) -> None:
        """Of the type and name, an empty name for all of the type."""
        pairs = [
            (after, before)
            for after in declared.of(later[0]).values()
            for before in declared.of(earlier[0]).values()
            if later[1] in ("", after.key.name) and earlier[1] in ("", before.key.name)
        ]
        assert pairs
        for after, before in pairs:
            assert before.key in declared.needs(after.key), (after.key, before.key)
            assert after.began > before.ended, (after.key, before.key)

    @pytest.mark.parametrize("role", SERVICES)
    def test_settings_need_their_role(self, plain: Run, role: str) -> None:
        settings = plain.of(SETTINGS)[f"{role}-settings"]
        assert Key(PG_ROLE, role) in plain.needs(settings.key)
        assert settings.began > plain.of(PG_ROLE)[role].ended


class TestProtection:
    """What holds customers' data is out of reach of `pulumi destroy`, where the stack says so."""

    def test_all_that_holds_data_is_protected_and_only_that(
        self, declared: Run, platform: str, protect: bool
    ) -> None:
        expected = (
            named(PG_ROLE, SERVICES)
            | named(MIGRATIONS, ["migrations"])
            | named(REPEATABLE, ["repeatable"])
            | named(VERIFICATION, ["verification"])
            | named(K8S_NAMESPACE, ["mindroom-instances"])
        )
        if platform == "postgres":
            expected |= named(PG_DATABASE, ["database"])
        protected = {k for k, each in declared.resources.items() if each.request.protect}
        assert protected == (expected if protect else set())
        bare = [Resource(key.type, key.name, {}) for key in declared.resources]
        asked = {Key(each.type, each.name) for each in bare if list(data_is_protected(each))}
        assert asked == expected

    def test_schema_is_retained(self, declared: Run, protect: bool) -> None:
        retained = {k for k, each in declared.resources.items() if each.request.retainOnDelete}
        holds = declared.children(SCHEMA) - named(BY_HAND, ["given-by-hand"])
        assert retained == (holds if protect else set())


class TestProviders:
    """No resource goes to whatever server or cluster the environment happens to name."""

    def test_every_resource_names_the_declared_provider(self, declared: Run) -> None:
        for key, each in declared.resources.items():
            provider = {
                "postgresql": (PG_PROVIDER, "server"),
                "kubernetes": (K8S_PROVIDER, "cluster"),
            }
            if expected := provider.get(key.type.split(":")[0]):
                type_, name = expected
                assert each.request.provider.endswith(f"{type_}::{name}::{name}-id"), key
            elif not key.type.startswith("pulumi:providers:"):
                assert not each.request.provider, key

    def test_plain_server_is_administrated_from_its_maintenance_database(self) -> None:
        inputs = variant("postgres", "directory", True).of(PG_PROVIDER)["server"].inputs
        assert (inputs["database"], inputs["superuser"]) == ("postgres", "true")
        assert (inputs["username"], inputs["databaseUsername"]) == ("admin", "admin")
        assert (inputs["host"], inputs["port"]) == ("127.0.0.1", "5432")
        assert inputs["sslmode"] == "require"

    def test_supabase_is_administrated_without_a_superuser(self) -> None:
        inputs = variant("supabase", "directory", True).of(PG_PROVIDER)["server"].inputs
        assert (inputs["database"], inputs["superuser"]) == ("postgres", "false")
        assert (inputs["username"], inputs["databaseUsername"]) == ("postgres.tenant", "postgres")

    @pytest.mark.parametrize(
        ("platform", "connections", "expected"),
        [
            ("supabase", 11, "1"),
            ("supabase", 15, "2"),
            ("postgres", 15, "2"),  # with one, dropping the database would wait for ever
            ("postgres", 39, "3"),
        ],
    )
    def test_sessions_are_bounded(self, platform: str, connections: int, expected: str) -> None:
        hosted = SUPABASE if platform == "supabase" else {}
        inputs = (
            run({**hosted, "databaseConnections": connections}).of(PG_PROVIDER)["server"].inputs
        )
        assert inputs["maxConnections"] == expected

    def test_certificate_reaches_the_provider(self, tmp_path: Path) -> None:
        certificate = tmp_path / "ca.crt"
        certificate.touch()
        tls = {"databaseSslmode": "verify-full", "databaseSslrootcert": str(certificate)}
        inputs = run(tls).of(PG_PROVIDER)["server"].inputs
        assert (inputs["sslmode"], inputs["sslrootcert"]) == ("verify-full", str(certificate))

    def test_certificate_reaches_the_pods_and_no_url_names_its_file(self, tmp_path: Path) -> None:
        certificate = tmp_path / "ca.crt"
        certificate.write_text("the certificate")
        tls = {"databaseSslmode": "verify-full", "databaseSslrootcert": str(certificate)}
        found = run(tls)
        for declared in found.of(K8S_SECRET).values():
            assert secret(declared.inputs["stringData"])["ca.crt"] == "the certificate"
        assert found.of(CHART)["instance-provisioner"].inputs["values"]["databaseCa"] is True
        for url in found.outputs["service_database_urls"].values():
            assert "sslrootcert" not in url

    def test_cluster_is_the_named_context_or_a_directory(self, declared: Run, target: str) -> None:
        inputs = dict(declared.of(K8S_PROVIDER)["cluster"].inputs)
        assert inputs.pop("enablePatchForce") is True
        assert inputs == (
            {"context": "production"}
            if target == "context"
            else {"renderYamlToDirectory": "manifests"}
        )


class TestSupabase:
    """What Supabase reserves is neither declared nor handed out by Pulumi."""

    def test_no_reserved_role_database_or_schema_is_declared(self, protect: bool) -> None:
        declared = variant("supabase", "context", protect)
        ours = {k.type for k in declared.resources if k.type.startswith("postgresql:")}
        assert ours == {PG_ROLE, PG_GRANT}
        roles = {each.inputs["name"] for each in declared.of(PG_ROLE).values()}
        grantees = {each.inputs["role"] for each in declared.of(PG_GRANT).values()}
        settled = {each.inputs["role"] for each in declared.of(SETTINGS).values()}
        assert roles == settled == set(SERVICES)
        assert grantees <= roles
        assert [role for role in roles if RESERVED.fullmatch(role)] == []
        assert {each.inputs["folder"] for each in declared.of(REPEATABLE).values()} == {
            "repeatable"
        }

    def test_grants_are_on_the_projects_database(self) -> None:
        declared = variant("supabase", "context", True)
        assert {e.inputs["database"] for e in declared.of(PG_GRANT).values()} == {"postgres"}


def plain_strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string that is not inside a secret, with its place."""
    if rpc.is_rpc_secret(value):
        return
    if isinstance(value, dict):
        for key, each in value.items():
            yield from plain_strings(each, f"{path}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from plain_strings(each, path)
    else:
        yield path, str(value)


def secret(value: Any) -> Any:
    assert rpc.is_rpc_secret(value), value
    return rpc.unwrap_rpc_secret(value)


class TestSecrets:
    """Every secret is marked as one wherever it goes, so that the state encrypts it."""

    def test_no_secret_is_in_any_unmarked_input_or_output(self, declared: Run) -> None:
        told = [each.inputs for each in declared.resources.values()]
        told += declared.registered.values()
        told.append({k: v for k, v in declared.outputs.items() if k not in declared.secret})
        forms = {form for word in SECRETS for form in (word, quote(word), quote(word, safe=""))}
        for each in told:
            for path, text in plain_strings(each):
                assert not any(form in text for form in forms), path

    def test_passwords_are_secret_inputs(self, declared: Run) -> None:
        assert secret(declared.of(PG_PROVIDER)["server"].inputs["password"]) == ADMIN_PASSWORD
        found = [secret(each.inputs["password"]) for each in declared.of(PG_ROLE).values()]
        assert all(text.startswith("SCRAM-SHA-256$") for text in found)
        assert len(set(found)) == len(PASSWORDS)

    def test_passwords_stay_secret_when_a_provider_reads_them_back(self, declared: Run) -> None:
        expected = {PG_PROVIDER: "password", PG_ROLE: "password", K8S_SECRET: "stringData"}
        for type_, output in expected.items():
            for each in declared.of(type_).values():
                assert output in each.request.additionalSecretOutputs

    def test_each_secret_holds_its_own_url_and_no_more_than_is_needed(self, plain: Run) -> None:
        urls = plain.outputs["service_database_urls"]
        found = {
            name: secret(each.inputs["stringData"]) for name, each in plain.of(K8S_SECRET).items()
        }
        assert found == {
            "instance-provisioner": {
                "DATABASE_URL": urls["instance_provisioner"],
                "API_TOKEN": TOKEN,
            },
            "instance-gateway": {"DATABASE_URL": urls["instance_gateway"]},
        }

    @pytest.mark.parametrize(
        ("changes", "rolled"),
        [
            ({"provisionerApiToken": "another token for it"}, "provisioner"),
            (
                {"servicePasswords": PASSWORDS | {"instance_provisioner": "another password"}},
                "provisioner",
            ),
            ({"servicePasswords": PASSWORDS | {"instance_gateway": "another password"}}, "gateway"),
        ],
        ids=["token", "password", "gateway-password"],
    )
    def test_rotation_rolls_the_pods(
        self, plain: Run, changes: Mapping[str, Any], rolled: str
    ) -> None:
        def checksums(run: Run) -> dict[str, str]:
            values = run.of(CHART)["instance-provisioner"].inputs["values"]
            return {
                "provisioner": values["secretChecksum"],
                "gateway": values["gateway"]["secretChecksum"],
            }

        before, after = checksums(plain), checksums(run(changes))
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in before.values())
        assert [name for name in before if before[name] != after[name]] == [rolled]

    def test_another_services_password_does_not_roll_the_pods(self, plain: Run) -> None:
        changed = PASSWORDS | {"stripe_handler": "another password of it"}
        chart = run({"servicePasswords": changed}).of(CHART)["instance-provisioner"]
        assert chart.inputs == plain.of(CHART)["instance-provisioner"].inputs


class TestDynamicProviders:
    """What the state keeps of a dynamic provider."""

    def test_provider_is_its_name_only(self, declared: Run) -> None:
        found = set()
        for key, each in declared.resources.items():
            if "__provider" in each.inputs:
                pickled = base64.b64decode(each.inputs["__provider"])
                assert len(pickled) < 100, key
                provider = dill.loads(pickled)
                assert vars(provider) == {}, key
                module, name = type(provider).__module__, type(provider).__name__
                assert getattr(importlib.import_module(module), name) is type(provider)
                found.add((key.type, f"{module}.{name}"))
        assert found == {
            (MIGRATIONS, "components.schema.FilesProvider"),
            (REPEATABLE, "components.schema.FilesProvider"),
            (VERIFICATION, "components.schema.VerificationProvider"),
            (BY_HAND, "components.by_hand.GivenByHandProvider"),
            (SETTINGS, "components.role_settings.RoleSettingsProvider"),
            (PG_CRON, "components.automation.PgCronProvider"),
        }

    def test_inputs_say_nothing_of_the_connection(self) -> None:
        moved = {
            "databaseHost": "db.example",
            "databasePort": 5433,
            "databaseUser": "other",
            "databasePassword": "rotated",
        }
        types = (MIGRATIONS, REPEATABLE, VERIFICATION, SETTINGS, PG_CRON)

        def inputs(run: Run) -> dict[Key, Properties]:
            return {k: each.inputs for k, each in run.resources.items() if k.type in types}

        assert inputs(run(moved)) == inputs(variant("postgres", "directory", False))

    def test_files_are_a_map_of_every_file_to_its_digest(self, plain: Run) -> None:
        sets = plain.of(MIGRATIONS) | plain.of(REPEATABLE)
        assert set(sets) == {"migrations", "repeatable", "platform"}
        for folder, each in sets.items():
            assert each.inputs["folder"] == folder
            assert sorted(each.inputs["files"]) == sql_files(folder)
            assert each.inputs["head"] == sql_files(folder)[-1]
            assert all(re.fullmatch("[0-9a-f]{64}", d) for d in each.inputs["files"].values())


def expected_grants(role: str, service: Service) -> dict[str, Properties]:
    """The grants of a role by the name of their resource, out of the matrix."""
    found: dict[str, Properties] = {}

    def grant(name: str, kind: str, schema: str, privileges: list[str], **more: Any) -> None:
        found[f"{role}-{name}"] = {
            "role": role,
            "database": "mindroom",
            "objectType": kind,
            "schema": schema,
            "privileges": privileges,
        } | more

    for table, privileges in service.tables.items():
        schema, _, name = table.partition(".")
        grant(schema, "schema", schema, ["USAGE"])
        whole = [privilege for privilege, columns in privileges.items() if columns == ALL]
        if whole:
            grant(table, "table", schema, whole, objects=[name])
        for privilege in privileges.keys() - set(whole):
            columns = list(privileges[privilege])
            more = {"objects": [name], "columns": columns}
            grant(f"{table}-{privilege.lower()}", "column", schema, [privilege], **more)
    for function in service.functions:
        grant(f"public.{function}", "function", "public", ["EXECUTE"], objects=[function])
    return found


class TestAccess:
    """Roles and grants are the matrix in components/authorization.py and nothing more."""

    def test_grants_are_exactly_the_matrix(self, plain: Run) -> None:
        expected: dict[str, Properties] = {}
        for role, service in SERVICES.items():
            expected |= expected_grants(role, service)
        assert {n: each.inputs for n, each in plain.of(PG_GRANT).items()} == expected

    def test_grant_is_of_one_table_and_the_only_one_of_its_kind(self, plain: Run) -> None:
        """A change of a list of tables would replace the grant of all of them."""
        inputs = [each.inputs for each in plain.of(PG_GRANT).values()]
        found = []
        for each in inputs:
            if each["objectType"] != "schema":
                (table,) = each["objects"]
                privileges = each["privileges"] if each["objectType"] == "column" else []
                found.append((each["role"], each["schema"], table, *privileges))
        assert found
        assert sorted(found) == sorted(set(found))

    def test_columns_are_granted_beside_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        privileges = {"INSERT": ALL, "SELECT": ("id", "email"), "UPDATE": ("email",)}
        service = Service(tables={"private.things": privileges})
        services = {"instance_provisioner": service, "instance_gateway": Service()}
        monkeypatch.setattr(access, "SERVICES", services)
        monkeypatch.setattr(stack_config, "SERVICES", services)
        found = run({"servicePasswords": dict.fromkeys(services, "x" * 16)}).of(PG_GRANT)
        assert {n: each.inputs for n, each in found.items()} == expected_grants(
            "instance_provisioner", service
        )
        assert sorted(each.inputs["objectType"] for each in found.values()) == [
            "column",
            "column",
            "schema",
            "table",
        ]

    @pytest.mark.parametrize("role", SERVICES)
    def test_role_is_the_matrix_row(self, plain: Run, role: str) -> None:
        service, inputs = SERVICES[role], dict(plain.of(PG_ROLE)[role].inputs)
        del inputs["password"]
        assert inputs == {
            "name": role,
            "login": True,
            "roles": list(service.member_of),
            "inherit": service.inherit,
            "connectionLimit": service.connection_limit,
            "statementTimeout": service.statement_timeout,
        }
        settings = plain.of(SETTINGS)[f"{role}-settings"].inputs
        assert settings["role"] == role
        assert settings["settings"] == {"lock_timeout": str(service.lock_timeout)}

    def test_portal_has_no_privilege_of_its_own(self) -> None:
        portal = SERVICES["customer_portal"]
        assert (portal.tables, portal.inherit) == ({}, False)
        assert sorted(portal.member_of) == ["anon", "authenticated"]
        groups = {role: s.member_of for role, s in SERVICES.items() if s.tables}
        assert set(groups.values()) == {(GROUP,)}

    def test_gateway_reaches_no_table(self) -> None:
        gateway = SERVICES["instance_gateway"]
        assert (gateway.tables, gateway.member_of) == ({}, ())
        assert gateway.functions == ("record_usage", "instance_of_token", "verify_api_key")


class TestOutputs:
    """The contract with other services."""

    def test_outputs_are_the_contract(self, declared: Run, platform: str) -> None:
        outputs = dict(declared.outputs)
        urls = outputs.pop("service_database_urls")
        tenant = ".tenant" if platform == "supabase" else ""
        name = "postgres" if platform == "supabase" else "mindroom"
        for role, password in PASSWORDS.items():
            found = conninfo_to_dict(urls[role])
            assert (found["user"], found["password"]) == (role + tenant, password)
            assert (found["dbname"], found["sslmode"]) == (name, "require")
        migrations = sql_files("migrations")
        assert outputs == {
            "contract_version": "1.1.0",
            "schema_version": migrations[-1].removesuffix(".sql"),
            "schema_fingerprint": "f" * 64,
            "applied_migrations": migrations,
            "database": {
                "host": "127.0.0.1",
                "port": 5432,
                "name": name,
                "sslmode": "require",
                "platform": platform,
            },
            "api_roles": ["anon", "authenticated", "service_role"],
            "instance_provisioner": {
                "namespace": "mindroom",
                "service_url": "http://instance-provisioner.mindroom.svc:8080",
                "service_account": "instance-provisioner",
                "chart_version": outputs["instance_provisioner"]["chart_version"],
            },
            "instance_gateway": {
                "namespace": "mindroom",
                "service_url": "http://instance-gateway.mindroom.svc:8081",
            },
            "automation": {"scheduler": "kubernetes", "jobs": SCHEDULES},
        }

    def test_urls_alone_are_secret(self, declared: Run) -> None:
        assert declared.secret == {"service_database_urls"}

    def test_preview_knows_all_but_the_fingerprint(self, plain: Run) -> None:
        applied = dict(plain.outputs)
        del applied["schema_fingerprint"]
        assert run({}, preview=True).outputs == applied


class TestAutomation:
    """The jobs, by the scheduler of the stack and by no other."""

    @pytest.mark.parametrize("platform", [{}, SUPABASE], ids=["postgres", "supabase"])
    @pytest.mark.parametrize("scheduler", ["pg_cron", "kubernetes", "none"])
    def test_one_scheduler_has_every_job(self, scheduler: str, platform: Properties) -> None:
        declared = run({**platform, "automation": scheduler})
        jobs = {
            name: {
                "schedule": schedule,
                "sql": (ROOT / "sql" / "jobs" / f"{name}.sql").read_text(),
            }
            for name, schedule in SCHEDULES.items()
        }
        of_pg_cron = declared.of(PG_CRON)["pg-cron"].inputs["jobs"]
        values = declared.of(CHART)["instance-provisioner"].inputs["values"]
        assert of_pg_cron == (jobs if scheduler == "pg_cron" else {})
        assert values["automation"] == {"jobs": jobs if scheduler == "kubernetes" else {}}
        assert declared.outputs["automation"] == {
            "scheduler": scheduler,
            "jobs": {} if scheduler == "none" else SCHEDULES,
        }

    def test_every_file_of_a_job_has_a_schedule(self) -> None:
        assert sql_files("jobs") == sorted(f"{name}.sql" for name in SCHEDULES)


class TestProvisioner:
    """The chart gets what it needs, and its secret by name only."""

    @pytest.mark.parametrize(
        ("image", "parts"),
        [
            (
                "registry.example:5000/a/b:1.0",
                {"repository": "registry.example:5000/a/b", "tag": "1.0"},
            ),
            (
                f"registry.example/a@sha256:{'0a' * 32}",
                {"repository": "registry.example/a", "digest": f"sha256:{'0a' * 32}"},
            ),
        ],
        ids=["tag", "digest"],
    )
    def test_chart_gets_the_config(self, image: str, parts: Mapping[str, str]) -> None:
        found = run({"provisionerImage": image, "databasePort": 5433})
        inputs = found.of(CHART)["instance-provisioner"].inputs
        values = inputs.pop("values")
        assert values.pop("automation")["jobs"].keys() == SCHEDULES.keys()
        assert inputs == {"chart": "charts/instance-provisioner", "namespace": "mindroom"}
        assert (ROOT / inputs["chart"] / "Chart.yaml").is_file()
        for each in (values, values["gateway"]):
            assert re.fullmatch("[0-9a-f]{64}", each.pop("secretChecksum"))
        assert values == {
            "image": parts,
            "existingSecret": "instance-provisioner",
            "gateway": {"existingSecret": "instance-gateway"},
            "databaseCa": False,
            "instancesNamespace": "mindroom-instances",
            "config": {"baseDomain": "mindroom.example", "measure": "kubelet"},
            "networkPolicy": {"databasePort": 5433},
        }

    def test_namespaces_enforce_the_restricted_standard(self, plain: Run) -> None:
        for name, each in plain.of(K8S_NAMESPACE).items():
            assert each.inputs["metadata"] == {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            }


def test_wrong_config_declares_nothing() -> None:
    result = Run()
    with pytest.raises(pulumi.RunError, match="2 problem"):
        run({"platform": "mysql", "baseDomain": ""}, result=result)
    assert result.resources == {}
