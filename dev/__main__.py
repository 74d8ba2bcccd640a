"""The dev stack from make: `python -m dev COMMAND`, the commands being those of `main`.

Everything it generates is kept in .state/, which git ignores: the embedded PostgreSQL and cluster,
passwords, Pulumi's state, the stack's config with what was generated, and the rendered manifests.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import psutil  # type: ignore[import-untyped]
import yaml

from components import INSTANCES_NAMESPACE, PROJECT, ROOT
from components.authorization import SERVICES
from components.database_target import DatabaseTarget
from dev import provisioner as process
from embedded.cluster import Cluster, ClusterAccess
from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin
from embedded.process import system_error
from ops import committed_config

STATE = ROOT / ".state"
PROVISIONER = STATE / "provisioner"
STACK = "dev"
STACK_FILE = STATE / f"Pulumi.{STACK}.yaml"
PULUMI_STATE = STATE / "pulumi" / ".pulumi" / "stacks" / PROJECT / f"{STACK}.json"

DOWNLOAD_TIMEOUT = 20.0


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
        "provisioner": provisioner,
        "demo": demo,
        "migrate": migrate,
        "psql": psql,
    }
    if not arguments or arguments[0] not in commands:
        print(f"usage: python -m dev {'|'.join(commands)}", file=sys.stderr)
        return 2
    try:
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
    pulumi = _find_pulumi()
    if pulumi:
        _prepare_stack(pulumi, config, secret_keys)
        _pulumi(pulumi, "up", "--yes", "--skip-preview", *options)
    from dev import in_process  # spares a run with Pulumi 0.13 s

    _ensure_helm(in_process.HELM)
    # The SDK would wait for what is in progress before it passes an interruption on.
    signal.signal(signal.SIGINT, _interrupted)
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
    result = in_process.run(plain, secret_keys, STACK)
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
    _pulumi(pulumi, "preview", "--policy-pack", "policies", *options)


def preview_comment(options: list[str]) -> int:
    """Show the comment on `up` that a pull request gets."""
    with redirect_stdout(sys.stderr):
        pulumi, _ = _prepare_preview(options)
    from ops.reviews.__main__ import main as command_line  # spares others 0.15 s

    os.environ |= _environment()
    os.environ["PATH"] = f"{Path(pulumi).parent}{os.pathsep}{os.environ['PATH']}"
    return command_line(["preview", STACK, "--config-file", str(STACK_FILE)])


def _prepare_preview(options: list[str]) -> tuple[str, list[str]]:
    """Bring the stack's config up to date; returns the path of the Pulumi CLI and its options."""
    config, secret_keys = _config()
    options = _deploy_to_cluster(config, options)
    pulumi = _find_pulumi()
    if not pulumi:
        raise UserError(
            "a preview needs the Pulumi CLI, which is missing",
            "install it; without it, `make migrate ARGS=plan` shows the pending migrations",
        )
    _prepare_stack(pulumi, config, secret_keys)
    return pulumi, options


def provisioner(_options: list[str]) -> int:
    """Start the instance-provisioner beside the cluster that `up --cluster` deployed it to."""
    config, _ = _config()
    _ensure_helm(process.HELM)
    role = "instance_provisioner"
    settings = {
        "DATABASE_URL": DatabaseTarget.read(config.get).url_for(
            role, config["servicePasswords"][role]
        ),
        "API_TOKEN": config["provisionerApiToken"],
        "BASE_DOMAIN": config["baseDomain"],
    }
    url = process.start(PROVISIONER, _cluster(), settings)
    print(f"the provisioner is at {url}, its log in {(PROVISIONER / 'log').relative_to(ROOT)}")
    return 0


def demo(_options: list[str]) -> int:
    """Play a customer's life on the platform of `up --cluster` and `provisioner`."""
    from dev.demo import Demo  # spares other commands 0.05 s

    config, _ = _config()
    connection = DatabaseTarget.read(config.get)
    Demo(
        connection.url(),
        connection.url_for("stripe_handler", config["servicePasswords"]["stripe_handler"]),
        process.url_of(PROVISIONER),
        config["provisionerApiToken"],
        _cluster(),
        INSTANCES_NAMESPACE,
    ).play()
    return 0


def down(options: list[str]) -> int:
    """Stop all that `up` started; the data stays for the next one."""
    cluster_down(options)
    print("stopped PostgreSQL" if _embedded().stop() else "PostgreSQL was not running")
    return 0


def clean(_options: list[str]) -> int:
    """Stop all of it and remove all that the dev stack generated, its data included."""
    process.stop(PROVISIONER)
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
    """Stop the embedded cluster and the provisioner; its data stays for the next start."""
    if process.stop(PROVISIONER):
        print("stopped the provisioner")
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
    elif (own := _own_cluster()).kubeconfig.exists() and _is_deployed_to(own.context):
        # Pulumi removes it from there.
        if own.start():
            print("started the cluster, from which the former deployment is removed")
        os.environ["KUBECONFIG"] = str(own.kubeconfig)
    elif config["renderDirectory"]:
        # The provider would ask the operator's own cluster for its version.
        os.environ["KUBECONFIG"] = os.devnull
    return [option for option in options if option != "--cluster"]


def _is_deployed_to(context: str) -> bool:
    """Whether Pulumi's state, which knows what a failed run left, too, has resources there."""
    if not PULUMI_STATE.exists():
        return False
    latest = json.loads(PULUMI_STATE.read_text())["checkpoint"]["latest"] or {}
    return any(
        resource["type"] == "pulumi:providers:kubernetes"
        and resource["inputs"].get("context") == context
        for resource in latest.get("resources", [])
    )


def _config() -> tuple[dict[str, Any], list[str]]:
    """The dev stack's whole config, keyed as in Pulumi.yaml, and the keys that are secret.

    Generates what is missing and starts the embedded server, unless DEV_DATABASE_URL names one.

    Raises:
        UserError: DEV_DATABASE_URL cannot be parsed, or the embedded server does not come up.
    """
    STATE.mkdir(mode=0o700, exist_ok=True)
    url = os.environ.get("DEV_DATABASE_URL")
    if url is None:
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
    config = committed_config(STACK)
    config |= {
        "databaseHost": str(given.get("host") or "127.0.0.1"),
        "databasePort": int(given.get("port") or 5432),
        "databaseUser": str(given.get("user") or "postgres"),
        "databaseSslmode": str(given.get("sslmode") or config["databaseSslmode"]),
    }
    kept = _generated(str(given.get("password") or ""))
    return config | kept, list(kept)


def _parse(url: str) -> dict[str, Any]:
    import psycopg  # spares a run on the embedded server 0.05 s
    from psycopg.conninfo import conninfo_to_dict

    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise UserError(
            "DEV_DATABASE_URL cannot be parsed (it is not shown, since it may hold a password)",
            "write postgresql://SUPERUSER:PASSWORD@HOST:PORT",
        ) from None


def _generated(admin_password: str) -> dict[str, Any]:
    """The secrets, generated on first use; the file changes only when one of them does."""
    path = STATE / "secrets.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    passwords = before.get("servicePasswords", {})
    after = {
        "databasePassword": admin_password,
        "provisionerApiToken": before.get("provisionerApiToken") or secrets.token_urlsafe(32),
        "servicePasswords": {
            role: passwords.get(role) or secrets.token_urlsafe(32) for role in SERVICES
        },
    }
    if after != before:
        _write(path, json.dumps(after, indent=2))
    return after


def _write(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _find_pulumi() -> str | None:
    """The CLI on PATH, otherwise one that the SDK downloads; None where neither is possible."""
    if found := shutil.which("pulumi"):
        return found
    from pulumi.automation import PulumiCommand  # spares a run that finds it 0.08 s

    # The SDK's downloader has no time limit of its own.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return PulumiCommand.install(root=str(STATE / "pulumi-cli")).command
    except Exception as error:  # of the network or the script, of any type
        print(f"no Pulumi CLI on PATH, nor can it be downloaded ({error}): running in-process")
        return None
    finally:
        socket.setdefaulttimeout(None)


def _environment() -> dict[str, str]:
    backend = STATE / "pulumi"
    backend.mkdir(exist_ok=True)
    passphrase = STATE / "passphrase"
    if not passphrase.exists():
        _write(passphrase, secrets.token_urlsafe(32))
    return {
        "PULUMI_BACKEND_URL": backend.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    } | os.environ


def _pulumi(pulumi: str, command: str, *options: str) -> NoReturn:
    """Become a Pulumi command on the stack, so that Ctrl-C is Pulumi's alone to handle.

    The config is checked by components/config.py, which names all problems at once.
    """
    common = ["--stack", STACK, "--config-file", str(STACK_FILE), "--non-interactive"]
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execve(
        pulumi,
        [pulumi, command, *common, "--skip-config-validation", *options],
        _environment(),
    )


def _prepare_stack(pulumi: str, config: dict[str, Any], secret_keys: list[str]) -> None:
    """Create the stack where there is none, and write its config with the secrets encrypted.

    It is created from .state/, with a project file of its own, so that the salt of its encryption
    goes to .state/Pulumi.dev.yaml and not into the committed one.
    """
    if not (STACK_FILE.exists() and PULUMI_STATE.exists()):
        (STATE / "Pulumi.yaml").write_text(f"name: {PROJECT}\nruntime: python\n")
        _run_pulumi(pulumi, "stack", "select", "--create")
    _unlock_stack(pulumi)
    _write_config(pulumi, config, secret_keys)


def _run_pulumi(pulumi: str, *arguments: str, stdin: str | None = None) -> None:
    """Run a Pulumi command on the stack, which prints nothing.

    Raises:
        UserError: it fails.
    """
    done = subprocess.run(
        [pulumi, *arguments, "--stack", STACK, "--non-interactive"],
        cwd=STATE,
        env=_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        command = " ".join(arguments[:2])
        raise UserError(f"pulumi {command} failed: {done.stderr.strip()}", "see docs/recovery.md")


def _unlock_stack(pulumi: str) -> None:
    """Remove the lock and the pending operations of a run whose process has ended."""
    locks = STATE / "pulumi" / ".pulumi" / "locks" / "organization" / PROJECT / STACK
    for lock in locks.glob("*.json"):
        if not psutil.pid_exists(json.loads(lock.read_text())["pid"]):
            print("a run was killed: its lock and its unfinished operations are removed")
            _run_pulumi(pulumi, "cancel", "--yes")
            # Of the stack resource alone, so that no provider is asked.
            target = ("--target", "**pulumi:pulumi:Stack**")
            refresh = ("refresh", "--yes", "--skip-preview", "--clear-pending-creates")
            _run_pulumi(pulumi, *refresh, *target)


def _write_config(pulumi: str, config: dict[str, Any], secret_keys: list[str]) -> None:
    """Write the stack's config; secrets are encrypted again only where one may have changed."""
    stack = yaml.safe_load(STACK_FILE.read_text())
    present = stack.get("config", {})
    encrypted = {f"{PROJECT}:{key}": present.get(f"{PROJECT}:{key}") for key in secret_keys}
    changed = (STATE / "secrets.json").stat().st_mtime > STACK_FILE.stat().st_mtime
    stale = changed or not all(encrypted.values())
    plain = {f"{PROJECT}:{k}": v for k, v in config.items() if k not in secret_keys and v != ""}
    if stale or plain | encrypted != present:
        stack["config"] = plain if stale else plain | encrypted
        _write(STACK_FILE, yaml.safe_dump(stack))
    for key in secret_keys if stale else ():
        named = config[key] if isinstance(config[key], dict) else {None: config[key]}
        for name, secret in named.items():
            path = f"{PROJECT}:{key}" + (f".{name}" if name else "")
            # By standard input, since every user of the machine can read arguments.
            _run_pulumi(pulumi, "config", "set", "--secret", "--path", path, stdin=secret)


def _ensure_helm(helm: Path) -> None:
    if not helm.exists():
        print("building helm, which renders the chart where Pulumi does not")
        if subprocess.run(["make", "--silent", "tools"], cwd=ROOT, check=False).returncode:
            raise UserError("helm could not be built: see above", "fix that, then `make tools`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
