"""The dev stack from make: `python -m dev COMMAND`, the commands being those of `main`.

Everything it generates is kept in .state/, which git ignores: the embedded PostgreSQL and cluster,
passwords, Pulumi's state, the stack's config with what was generated, and the rendered manifests.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from components import INSTANCES_NAMESPACE, NAMESPACE, ROOT
from components.authorization import SERVICES
from components.database_target import DatabaseTarget
from dev.services import Service, provisioners_kubeconfig
from dev.stack import NAME, Stack, find_pulumi, forget_other_stacks, take_turn, write
from embedded.cluster import Cluster, ClusterAccess
from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin
from embedded.process import LOOPBACK, reach_loopback_directly, system_error
from ops import committed_config

STATE = ROOT / ".state"
PROVISIONER = Service("provisioner", "provisioner", "/ready", STATE / "provisioner")
GATEWAY = Service("gateway", "provisioner.gateway", "/health", STATE / "gateway")
STACK = Stack(STATE)
URL_PARTS = ("user", "password", "host", "port", "sslmode", "sslrootcert")
"""What is taken of DEV_DATABASE_URL."""

TAKE_TURNS = ("up", "preview", "preview-comment", "services", "clean")
"""Commands of which one runs at a time."""


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    commands = {
        "up": up,
        "preview": preview,
        "preview-comment": preview_comment,
        "down": down,
        "clean": clean,
        "cluster": cluster,
        "cluster-down": cluster_down,
        "services": services,
        "demo": demo,
        "migrate": migrate,
        "psql": psql,
    }
    if not arguments or arguments[0] not in commands:
        print(f"usage: python -m dev {'|'.join(commands)}", file=sys.stderr)
        return 2
    forget_other_stacks()
    reach_loopback_directly()
    try:
        if arguments[0] in TAKE_TURNS:
            take_turn(STATE)
        return commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {system_error(error, STATE)}", file=sys.stderr)
    except KeyboardInterrupt:
        _interrupted()
    return 1


def _interrupted(*_: object) -> None:
    """End at once: a thread may wait for a statement, which the server cancels without us."""
    print("error: interrupted; `make up` continues where it stopped", file=sys.stderr, flush=True)
    os._exit(1)


def up(options: list[str]) -> int:
    """Bring the platform up and print its outputs; a second time it changes nothing."""
    config, secret_keys = _config()
    options = _deploy_to_cluster(config, options)
    pulumi = find_pulumi(STATE)
    if pulumi:
        STACK.prepare(pulumi, config, {key: config[key] for key in secret_keys})
        STACK.become(pulumi, "up", "--yes", "--skip-preview", *options)
    from dev import in_process  # spares a run with Pulumi 0.13 s

    _ensure_helm(in_process.HELM)
    # The SDK would wait for what is in progress before it passes an interruption on.
    signal.signal(signal.SIGINT, _interrupted)
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
    result = in_process.run(plain, secret_keys, NAME)
    print("\nOutputs (of an in-process run, which is not a Pulumi deployment and keeps no state):")
    shown = {
        name: "[secret]" if name in result.secrets else value
        for name, value in sorted(result.outputs.items())
    }
    print(yaml.safe_dump(shown, sort_keys=False).rstrip())
    changed = f"{len(result.changed)} resources changed" if result.changed else "nothing changed"
    print(f"\n{changed}, {result.unchanged} unchanged")
    return 0


def preview(options: list[str]) -> int:
    """Show what `up` would change."""
    pulumi, options = _prepare_preview(options)
    STACK.become(pulumi, "preview", "--policy-pack", "policies", *options)


def preview_comment(options: list[str]) -> int:
    """Show the comment on `up` that a pull request gets."""
    with redirect_stdout(sys.stderr):
        pulumi, _ = _prepare_preview(options)
    from ops.reviews.__main__ import main as command_line  # spares others 0.15 s

    os.environ |= STACK.environment
    os.environ["PATH"] = f"{Path(pulumi).parent}{os.pathsep}{os.environ['PATH']}"
    return command_line(["preview", NAME, "--config-file", str(STACK.file)])


def _prepare_preview(options: list[str]) -> tuple[str, list[str]]:
    """Bring the stack's config up to date; returns the path of the Pulumi CLI and its options."""
    config, secret_keys = _config()
    options = _deploy_to_cluster(config, options)
    pulumi = find_pulumi(STATE)
    if not pulumi:
        raise UserError(
            "a preview needs the Pulumi CLI, which is missing",
            "install it; without it, `make migrate ARGS=plan` shows the pending migrations",
        )
    STACK.prepare(pulumi, config, {key: config[key] for key in secret_keys})
    return pulumi, options


def services(_options: list[str]) -> int:
    """Start the instance gateway and the provisioner, whose chart `up --cluster` has deployed."""
    config, _ = _config()
    from dev.in_process import HELM  # spares other commands 0.13 s

    _ensure_helm(HELM)
    GATEWAY.start({"DATABASE_URL": _url_for("instance_gateway")})
    PROVISIONER.start(
        {
            "DATABASE_URL": _url_for("instance_provisioner"),
            "API_TOKEN": config["provisionerApiToken"],
            "BASE_DOMAIN": config["baseDomain"],
            "INSTANCES_NAMESPACE": INSTANCES_NAMESPACE,
            "INSTANCE_VALUES": json.dumps(
                {"gateway": {"url": GATEWAY.url, "namespace": NAMESPACE}}
            ),
            "HELM": str(HELM),
            "KUBECONFIG": str(provisioners_kubeconfig(PROVISIONER.directory, _cluster())),
        }
    )
    for service in (GATEWAY, PROVISIONER):
        print(f"the {service.name} is at {service.url}, its log in {service.log.relative_to(ROOT)}")
    return 0


def _url_for(role: str) -> str:
    config, _ = _config()
    return DatabaseTarget.read(config.get).url_for(role, config["servicePasswords"][role])


def demo(_options: list[str]) -> int:
    """Play a customer's life on the platform of `up --cluster` and `services`."""
    from dev.demo import Demo  # spares other commands 0.05 s
    from dev.published import environment, newer_python

    config, _ = _config()
    Demo(
        DatabaseTarget.read(config.get).url(),
        _url_for("stripe_handler"),
        PROVISIONER.ready_url,
        config["provisionerApiToken"],
        GATEWAY.ready_url,
        _cluster(),
        INSTANCES_NAMESPACE,
        environment() if newer_python() else None,
        STATE / "mindroom",
    ).play()
    return 0


def down(options: list[str]) -> int:
    """Stop all that `up` started; the data stays for the next one."""
    cluster_down(options)
    print("stopped PostgreSQL" if _embedded().stop() else "PostgreSQL was not running")
    return 0


def clean(_options: list[str]) -> int:
    """Stop all of it and remove all that the dev stack generated, its data included."""
    for service in (PROVISIONER, GATEWAY):
        service.stop()
    _own_cluster().destroy()
    _embedded().destroy()
    if STATE.exists():
        shutil.rmtree(STATE)
    print(f"removed {STATE.name}/")
    return 0


def cluster(_options: list[str]) -> int:
    """Start the embedded cluster, unless CLUSTER_KUBECONFIG names another."""
    access = _cluster()
    access.kubectl("get", "--raw=/readyz")
    print(f"the cluster is reached by KUBECONFIG={access.kubeconfig}, context {access.context}")
    return 0


def cluster_down(_options: list[str]) -> int:
    """Stop the embedded cluster and the services; its data stays for the next start."""
    for service in (PROVISIONER, GATEWAY):
        if service.stop():
            print(f"stopped the {service.name}")
    print("stopped the cluster" if _own_cluster().stop() else "the cluster was not running")
    return 0


def migrate(options: list[str]) -> int:
    """Run `python -m migrate` on the dev database."""
    from migrate.__main__ import main as command_line  # spares others 0.06 s

    os.environ["DATABASE_URL"] = DatabaseTarget.read(_config()[0].get).url()
    return command_line(options)


def psql(options: list[str]) -> NoReturn:
    """Become psql on the dev database, as its administrator."""
    config, _ = _config()
    given = {
        "PGHOST": config["databaseHost"],
        "PGPORT": str(config["databasePort"]),
        "PGUSER": config["databaseUser"],
        "PGPASSWORD": config["databasePassword"],
        "PGDATABASE": config["databaseName"],
        "PGSSLMODE": config["databaseSslmode"],
    }
    # The wheel's has neither line editing nor TLS, which a server of DEV_DATABASE_URL may ask for.
    program = shutil.which("psql") or str(embedded_bin() / "psql")
    os.execve(program, [program, *options], os.environ | given)


def _embedded() -> Server:
    return Server(STATE / "postgres", embedded_bin())


def _own_cluster() -> Cluster:
    return Cluster(STATE / "cluster")


def _cluster() -> ClusterAccess:
    """The cluster that CLUSTER_KUBECONFIG names, otherwise the embedded one, started."""
    if given := os.environ.get("CLUSTER_KUBECONFIG"):
        return ClusterAccess(Path(given))
    STATE.mkdir(mode=0o700, exist_ok=True)
    own = _own_cluster()
    if own.start():
        print("started a Kubernetes cluster on 127.0.0.1")
    return own


def _deploy_to_cluster(config: dict[str, Any], options: list[str]) -> list[str]:
    """Where `--cluster` is given, deploy to the cluster; returns the other options."""
    if "--cluster" in options:
        access = _cluster()
        os.environ["KUBECONFIG"] = str(access.kubeconfig)
        config |= {"kubernetesContext": access.context, "renderDirectory": ""}
        if access.kubeconfig == _own_cluster().kubeconfig:
            # All there is ours: where Pulumi's state is lost, it takes over what is there.
            os.environ["PULUMI_K8S_UPSERT_EXISTING_OBJECTS"] = "true"
    elif (own := _own_cluster()).kubeconfig.exists() and STACK.is_deployed_to(own.context):
        # Pulumi removes it from there.
        if own.start():
            print("started the cluster, from which the former deployment is removed")
        os.environ["KUBECONFIG"] = str(own.kubeconfig)
    elif config["renderDirectory"]:
        # The provider would ask the operator's own cluster for its version.
        os.environ["KUBECONFIG"] = os.devnull
    return [option for option in options if option != "--cluster"]


def _config() -> tuple[dict[str, Any], list[str]]:
    """The dev stack's whole config, keyed as in Pulumi.yaml, and the keys that are secret.

    Generates what is missing and starts the embedded server, unless DEV_DATABASE_URL names one.

    Raises:
        UserError: DEV_DATABASE_URL cannot be parsed, the embedded server does not come up, or what
            was generated is damaged.
    """
    STATE.mkdir(mode=0o700, exist_ok=True)
    url = os.environ.get("DEV_DATABASE_URL")
    if not url:
        server = _embedded()
        if server.start():
            print(f"started PostgreSQL on 127.0.0.1:{server.port}")
        given: dict[str, Any] = {
            "port": server.port,
            "user": server.superuser,
            "password": server.password,
            "sslmode": "disable",
        }
    else:
        given = _parse(url)
    config = committed_config(NAME)
    config |= {
        "databaseHost": str(given.get("host") or "127.0.0.1"),
        "databasePort": int(given.get("port") or 5432),
        "databaseUser": str(given.get("user") or "postgres"),
        "databaseSslmode": str(given.get("sslmode") or config["databaseSslmode"]),
        "databaseSslrootcert": str(given.get("sslrootcert") or config["databaseSslrootcert"]),
    }
    kept = _generated(str(given.get("password") or ""))
    return config | kept, list(kept)


def _parse(url: str) -> dict[str, Any]:
    """What DEV_DATABASE_URL says of the server, the password of ~/.pgpass included.

    Raises:
        UserError: it cannot be parsed, or has what make cannot pass on; or it has no password, and
            the server does not let us in without.
    """
    import psycopg  # spares a run on the embedded server 0.05 s
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    remedy = "write postgresql://SUPERUSER:PASSWORD@HOST:PORT"
    try:
        given = {k: v for k, v in conninfo_to_dict(url).items() if v not in (None, "")}
    except psycopg.ProgrammingError:
        raise UserError(
            "DEV_DATABASE_URL cannot be parsed (it is not shown, since it may hold a password)",
            remedy,
        ) from None
    host, port = str(given.get("host", "127.0.0.1")), str(given.get("port", "5432"))
    if "," in host + port:
        raise UserError("DEV_DATABASE_URL names several servers", "name the one to write to")
    if host.startswith("/"):
        raise UserError("DEV_DATABASE_URL names a socket, and not every part reaches one", remedy)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"the port in DEV_DATABASE_URL, {port!r}, is none", remedy)
    if more := given.keys() - {"dbname", *URL_PARTS}:
        raise UserError(
            f"DEV_DATABASE_URL has {', '.join(sorted(more))}, which is not passed on",
            f"leave that out; what is: {', '.join(URL_PARTS)}",
        )
    if host not in LOOPBACK and given.get("sslmode") in ("disable", "allow", "prefer"):
        raise UserError(
            f"DEV_DATABASE_URL has sslmode={given['sslmode']}, which sends passwords in the clear "
            f"to {host}",
            "write sslmode=require there, or verify-full with sslrootcert",
        )
    if "password" not in given:
        to: dict[str, Any] = {"host": host, "user": "postgres", "connect_timeout": 10}
        to |= given | {"dbname": "postgres"}
        try:
            with psycopg.connect(make_conninfo("", **to)) as connection:
                given["password"] = connection.info.password
        except psycopg.OperationalError as error:
            raise UserError(
                f"DEV_DATABASE_URL has no password, and the server does not let us in: {error}",
                "give the password there, or in ~/.pgpass",
            ) from None
    return given


def _generated(admin_password: str) -> dict[str, Any]:
    """The secrets, generated on first use; the file changes only when one of them does.

    Raises:
        UserError: the file is damaged.
    """
    path = STATE / "secrets.json"
    try:
        before = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(
            f"{path} is damaged",
            "restore it; or remove it, and other passwords are generated and set on the roles",
        ) from None
    passwords = before.get("servicePasswords", {})
    new = partial(secrets.token_urlsafe, 32)
    after = {
        # A server that asks for none ignores it.
        "databasePassword": admin_password or before.get("databasePassword") or new(),
        "provisionerApiToken": before.get("provisionerApiToken") or new(),
        "servicePasswords": {role: passwords.get(role) or new() for role in SERVICES},
    }
    if after != before:
        write(path, json.dumps(after, indent=2))
    return after


def _ensure_helm(helm: Path) -> None:
    if not helm.exists():
        print("building helm, which renders the chart where Pulumi does not")
        if subprocess.run(["make", "--silent", "tools"], cwd=ROOT, check=False).returncode:
            raise UserError("helm could not be built: see above", "fix that, then `make tools`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
