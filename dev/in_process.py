"""The program without Pulumi: `__main__.py`, run in this process against the real database.

Each resource that the program declares is created or updated, on the database, on the cluster or in
a file, through the SDK's mocks.  There is no state: every run compares what exists with what is
declared, deletes nothing, and refuses a resource of a type that is not known here.
"""

import base64
import json
import os
import runpy
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import dill  # type: ignore[import-untyped]
import psycopg
import pulumi
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pulumi.dynamic import Config, ConfigureRequest
from pulumi.runtime import config as runtime_config
from pulumi.runtime import mocks, rpc
from pulumi.runtime.settings import get_root_resource

from components import PROJECT, ROOT
from components.database_target import endpoint
from embedded.cluster import ClusterAccess
from embedded.errors import UserError

HELM = ROOT / ".tools" / "bin" / "helm"

Properties = dict[str, Any]


class InProcessError(UserError):
    """The program or one of its resources failed; the message says which and why."""


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        outputs: the stack outputs, secrets in plain text.
        secrets: names of the outputs that are secret.
        changed: names of the resources that were created or updated.
        unchanged: how many resources were as declared.
    """

    outputs: Properties
    secrets: frozenset[str]
    changed: list[str]
    unchanged: int


def run(config: Mapping[str, str], secrets: Collection[str], stack: str) -> Result:
    """Run the program, once a process: the SDK does not forget an earlier run.

    Args:
        config: the stack's config, keyed as in Pulumi.yaml, defaults included.
        secrets: the keys among them that are secret.
        stack: the stack's name.

    Raises:
        InProcessError: the config is wrong, or a resource cannot be created or updated.
    """
    executor = Executor(config)
    outputs: Properties = {}
    secret: set[str] = set()

    async def collect(declared: Mapping[str, pulumi.Output[Any]]) -> None:
        for name, value in declared.items():
            output = pulumi.Output.from_input(value)
            outputs[name] = await output.future()
            if await output.is_secret():
                secret.add(name)

    @mocks.test  # type: ignore[untyped-decorator]
    def program() -> Any:
        runtime_config.set_all_config(
            {f"{PROJECT}:{key}": value for key, value in config.items()},
            [f"{PROJECT}:{key}" for key in secrets],
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, on_interrupt)  # the program has set its own
        return collect(cast("Any", get_root_resource()).outputs)

    mocks.set_mocks(executor, project=PROJECT, stack=stack, preview=False)
    try:
        program()
    except Exception as error:
        raise InProcessError(str(executor.failure or error)) from error
    return Result(outputs, frozenset(secret), executor.changed, len(executor.unchanged))


class Executor(mocks.Mocks):
    """Creates or updates each declared resource.

    Attributes:
        changed: names of the resources that were created or updated.
        unchanged: names of the resources that were as declared.
    """

    def __init__(self, config: Mapping[str, str]) -> None:
        self.config = config
        self.changed: list[str] = []
        self.unchanged: list[str] = []
        self.failure: InProcessError | None = None
        self.providers: dict[str, Properties] = {}
        self.lock = threading.Lock()

    def call(self, args: mocks.MockCallArgs) -> tuple[Properties, None]:
        """Refuse: the program calls no provider function."""
        raise InProcessError(f"{args.token}: provider functions are not known in-process")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, Properties]:
        """Create or update one resource; returns its id and outputs."""
        args.inputs = _plain(args.inputs)
        if args.typ.startswith("mindroom:"):
            return "", args.inputs
        if args.custom is None:  # only read, to see that it is there
            return str(args.resource_id), args.inputs
        if args.typ.startswith("pulumi:providers:"):
            self.providers[args.name] = args.inputs
            return args.name, args.inputs
        execute = _EXECUTORS.get("dynamic" if "__provider" in args.inputs else args.typ)
        if execute is None:
            raise InProcessError(f"{args.name}: resources of type {args.typ} are not known here")
        with self.lock:
            try:
                changed, outputs = execute(self, args)
            except InProcessError as error:
                self.failure = error
                raise
            except (UserError, psycopg.Error) as error:
                self.failure = InProcessError(f"{args.name}: {error}")
                raise self.failure from error
        (self.changed if changed else self.unchanged).append(args.name)
        return args.name, outputs

    def provider_of(self, args: mocks.MockResourceArgs) -> Properties:
        """The inputs of the provider that a resource names."""
        return self.providers[(args.provider or "").rpartition("::")[2] or "?"]

    def connect(self, args: mocks.MockResourceArgs, database: str = "") -> psycopg.Connection:
        """A connection of the resource's postgresql provider."""
        to = self.provider_of(args)
        return psycopg.connect(
            make_conninfo(
                **endpoint(to["host"], int(to["port"])),
                user=to["username"],
                password=to["password"],
                sslmode=to["sslmode"],
                sslrootcert=to.get("sslrootcert"),
                dbname=database or to["database"],
            ),
            autocommit=True,
        )


def _plain(value: Any) -> Any:
    """The value with every secret in it unwrapped."""
    value = rpc.unwrap_rpc_secret(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _database(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    name = args.inputs["name"]
    with closing(executor.connect(args)) as connection:
        if connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
            return False, args.inputs
        connection.execute(
            sql.SQL("create database {} template template0 encoding {}").format(
                sql.Identifier(name), args.inputs["encoding"]
            )
        )
    return True, args.inputs


def _role(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    wanted = args.inputs
    name, timeout = wanted["name"], f"statement_timeout={int(wanted['statementTimeout'])}"
    to = executor.provider_of(args)
    login = name + to["username"].removeprefix(to["databaseUsername"])
    password = json.loads(executor.config["servicePasswords"])[name]  # declared is its verifier
    with closing(executor.connect(args)) as connection:
        found = connection.execute(
            """select rolcanlogin, rolinherit, rolconnlimit, coalesce(
                 (select array_agg(roleid::regrole::text order by 1) from pg_auth_members
                  where member = pg_roles.oid), '{}'),
               coalesce((select setconfig from pg_db_role_setting
                         where setrole = pg_roles.oid and setdatabase = 0), '{}')
               from pg_roles where rolname = %s""",
            [name],
        ).fetchone()
        members = sorted(wanted["roles"])
        declared = (wanted["login"], wanted["inherit"], int(wanted["connectionLimit"]), members)
        if (
            found
            and found[:4] == declared
            and timeout in found[4]
            and _can_log_in(connection, login, password)
        ):
            return False, wanted
        role = sql.Identifier(name)
        statement = "alter role {} with" if found else "create role {} with"
        connection.execute(
            sql.SQL(statement + " {} {} connection limit {} password {}").format(
                role,
                sql.SQL("login" if wanted["login"] else "nologin"),
                sql.SQL("inherit" if wanted["inherit"] else "noinherit"),
                int(wanted["connectionLimit"]),
                wanted["password"],
            )
        )
        for group in set(found[3] if found else ()) - set(members):
            connection.execute(sql.SQL("revoke {} from {}").format(sql.Identifier(group), role))
        for group in members:
            connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), role))
        connection.execute(
            sql.SQL("alter role {} set statement_timeout to {}").format(
                role, int(wanted["statementTimeout"])
            )
        )
    return True, wanted


def _can_log_in(connection: psycopg.Connection, login: str, password: str) -> bool:
    try:
        psycopg.connect(connection.info.dsn, user=login, password=password).close()
    except psycopg.OperationalError as error:
        return "too many connections" in str(error)
    return True


_PRIVILEGES = {
    "schema": """select privilege_type from pg_namespace, aclexplode(nspacl) a
                 where nspname = %(schema)s and a.grantee = %(role)s::regrole""",
    "table": """select privilege_type from pg_class, aclexplode(relacl) a
                where pg_class.oid = format('%%I.%%I', %(schema)s::text, %(object)s::text)::regclass
                and a.grantee = %(role)s::regrole""",
    "function": """select privilege_type from pg_proc, aclexplode(proacl) a
                   where pronamespace = %(schema)s::regnamespace and proname = %(object)s
                   and a.grantee = %(role)s::regrole""",
    "column": """select attname from pg_attribute, aclexplode(attacl) a
                 where attrelid = format('%%I.%%I', %(schema)s::text, %(object)s::text)::regclass
                 and a.grantee = %(role)s::regrole and privilege_type = %(privilege)s""",
}


def _grant(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    wanted = args.inputs
    kind, privileges = wanted["objectType"], wanted["privileges"]
    name = wanted.get("objects", [""])[0]
    with closing(executor.connect(args, wanted["database"])) as connection:
        rows = connection.execute(
            _PRIVILEGES[kind],
            {
                "schema": wanted["schema"],
                "object": name,
                "role": wanted["role"],
                "privilege": privileges[0],
            },
        )
        found = {row[0] for row in rows}
        declared = set(wanted["columns"] if kind == "column" else privileges)
        if found == declared:
            return False, wanted
        target = (
            sql.SQL("schema {}").format(sql.Identifier(wanted["schema"]))
            if kind == "schema"
            else sql.SQL("function {}" if kind == "function" else "table {}").format(
                sql.Identifier(wanted["schema"], name)
            )
        )

        def privileges_on(names: set[str]) -> sql.Composable:
            if kind != "column":
                return sql.SQL(", ").join(map(sql.SQL, sorted(names)))
            columns = sql.SQL(", ").join(map(sql.Identifier, sorted(names)))
            return sql.SQL("{} ({})").format(sql.SQL(privileges[0]), columns)

        role = sql.Identifier(wanted["role"])
        with connection.transaction():
            connection.execute(
                sql.SQL("revoke {} on {} from {}").format(
                    privileges_on(found | declared), target, role
                )
            )
            connection.execute(
                sql.SQL("grant {} on {} to {}").format(privileges_on(declared), target, role)
            )
    return True, wanted


def _dynamic(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    inputs = dict(args.inputs)
    provider = dill.loads(base64.b64decode(inputs.pop("__provider")))  # noqa: S301 our own class
    raw = {f"{PROJECT}:{key}": value for key, value in executor.config.items()}
    provider.configure(ConfigureRequest(Config(raw, PROJECT)))
    failures = provider.check({}, inputs).failures
    if failures:
        raise InProcessError("\n".join(failure.reason for failure in failures))
    live = provider.read(args.name, inputs).outs
    with redirect_stdout(StringIO()):  # create reports pending files better
        changed = provider.diff(args.name, live, inputs).changes
    return bool(changed), provider.create(inputs).outs


def _manifest(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    return _apply(executor.provider_of(args), args.inputs), args.inputs


def _chart(executor: Executor, args: mocks.MockResourceArgs) -> tuple[bool, Properties]:
    if not HELM.exists():
        raise InProcessError(f"{HELM} is missing", "make tools")
    inputs = args.inputs
    command = [HELM, "template", args.name, inputs["chart"], "--namespace", inputs["namespace"]]
    rendered = subprocess.run(
        [*command, "--skip-tests", "-f-"],
        input=json.dumps(inputs["values"]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if rendered.returncode:
        raise InProcessError(f"{args.name}: {rendered.stderr.strip()}")
    provider = executor.provider_of(args)
    manifests = filter(None, yaml.safe_load_all(rendered.stdout))
    return sum([_apply(provider, manifest) for manifest in manifests]) > 0, {}


def _apply(provider: Properties, manifest: Properties) -> bool:
    """Apply or write a manifest as the Kubernetes provider would; whether that changed anything."""
    if directory := provider.get("renderYamlToDirectory"):
        return _write(ROOT / directory, manifest)
    access = ClusterAccess(Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config"))
    to = ["--context", provider["context"]]
    if namespace := manifest["metadata"].get("namespace"):
        to += ["--namespace", namespace]
    name = f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
    version = ["-o", "jsonpath={.metadata.resourceVersion}"]
    before = access.kubectl("get", name, *to, *version, "--ignore-not-found")
    apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=mindroom", "-f-"]
    after = access.kubectl(*apply, *to, *version, stdin=json.dumps(manifest))
    if manifest["kind"] == "Deployment":
        access.kubectl("rollout", "status", name, *to, "--timeout=120s")
    return before != after


def _write(directory: Path, manifest: Properties) -> bool:
    """Write a manifest where the Kubernetes provider would; whether that changed the file."""
    version, kind = manifest["apiVersion"].replace("/", "_"), manifest["kind"].lower()
    namespace = manifest["metadata"].get("namespace", "default")
    path = (
        directory
        / "1-manifest"
        / f"{version}-{kind}-{namespace}-{manifest['metadata']['name']}.yaml"
    )
    text = yaml.safe_dump(manifest)
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return True


_EXECUTORS: Mapping[str, Callable[[Executor, mocks.MockResourceArgs], tuple[bool, Properties]]] = {
    "postgresql:index/database:Database": _database,
    "postgresql:index/role:Role": _role,
    "postgresql:index/grant:Grant": _grant,
    "dynamic": _dynamic,
    "kubernetes:core/v1:Namespace": _manifest,
    "kubernetes:core/v1:Secret": _manifest,
    "kubernetes:helm.sh/v4:Chart": _chart,
}
