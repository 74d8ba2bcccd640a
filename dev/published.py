"""The published MindRoom as the pods of an instance, on this machine: the cluster runs none.

What the images hold comes from PyPI. Commands, environment, files and secrets are those of the
manifests; only where the pods have a file or a host name of their own, the processes have ours.
"""

import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from components import ROOT
from embedded.errors import UserError
from embedded.process import is_free, listener, spawn

PACKAGES = ("mindroom[chromadb]==2026.10.589", "matrix-synapse==1.163.2")
"""The versions of charts/instance/values.yaml."""

LOCK = ROOT / "dev" / "published.txt"
"""These and all that they need, as `make lock` writes it."""

ENVIRONMENT = ROOT / ".tools" / "published"
TIMEOUT = 180.0
"""Seconds until the processes are ready, on a machine with much else to do."""

SANDBOX = """
import os, uvicorn
from mindroom.constants import resolve_primary_runtime_paths, write_startup_manifest
paths = resolve_primary_runtime_paths(process_env=dict(os.environ))
manifest = write_startup_manifest(paths.storage_root, paths, public_runtime=True)
os.environ |= {"MINDROOM_SANDBOX_STARTUP_MANIFEST_PATH": str(manifest)}
uvicorn.run("mindroom.api.sandbox_runner_app:app", port=8766)
"""
"""What a script of the image does."""

THINKING = "Thinking..."
"""What stands in the room before an answer does."""

FAILED = "⚠️ Error"
"""What an answer has where an agent could not make one."""

COMMANDS = {"/app/run-sandbox-runner.sh": ("python", "-c", SANDBOX)}

Manifest = Mapping[str, Any]


def newer_python() -> str | None:
    """A Python that MindRoom runs on, 3.12 or later; None if none is found."""
    if sys.version_info >= (3, 12):
        return sys.executable
    under_pyenv = Path.home().glob(".pyenv/versions/3.1[23].*/bin/python")
    found = [shutil.which("python3.13"), shutil.which("python3.12"), *map(str, under_pyenv)]
    # A shim of pyenv is found, and does not run, where its version is not the one in use.
    return next((each for each in found if each and _runs(each)), None)


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def environment() -> Path:
    """The directory of the programs, installed where they are missing: that takes minutes.

    Raises:
        UserError: there is no Python for them, or they cannot be installed.
    """
    stamp = ENVIRONMENT / "lock.txt"
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return ENVIRONMENT / "bin"
    python = newer_python()
    if not python:
        raise UserError("MindRoom needs Python 3.12 or later, and none is here", "install it")
    print(f"installing MindRoom and Synapse once, into {ENVIRONMENT}", flush=True)
    uv = [sys.executable, "-m", "uv", "--quiet"]
    install = ["pip", "install", "--python", str(ENVIRONMENT), "--require-hashes", "-r", str(LOCK)]
    try:
        subprocess.run([*uv, "venv", "--clear", "--python", python, ENVIRONMENT], check=True)
        subprocess.run([*uv, *install], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"MindRoom cannot be installed: {error}") from error
    shutil.copy(LOCK, stamp)
    return ENVIRONMENT / "bin"


@dataclass
class Pods:
    """The pods of one instance, as processes.

    They listen on the ports of the containers: one instance runs at a time.

    Attributes:
        manifests: workloads, Services, ConfigMaps and Secrets.
        directory: of volumes, which stay, of mounted files and of logs.
        programs: the directory of `environment()`.
    """

    manifests: Sequence[Manifest]
    directory: Path
    programs: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator["Pods"]:
        """All of them, ready.

        Raises:
            UserError: a port is taken, or one does not become ready.
        """
        try:
            ready = [
                self._start(pod, container)
                for pod in self._pods()
                for container in pod.get("initContainers", []) + pod["containers"]
            ]
            for container, url in [each for each in ready if each]:
                self._wait(container, url)
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """End them as Kubernetes does."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def url(self, component: str) -> str:
        """Where the Service of a component leads to."""
        for service in self._each("Service"):
            if service["spec"]["selector"]["app.kubernetes.io/component"] == component:
                return self._services()[f"http://{service['metadata']['name']}"]
        raise KeyError(component)

    def log(self, container: str) -> Path:
        """What a container wrote."""
        return self.directory / container / "log"

    # ---- the manifests

    def _each(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] in kinds]

    def _pods(self) -> list[Manifest]:
        return [
            each["spec"]["template"]["spec"] for each in self._each("Deployment", "StatefulSet")
        ]

    def _content(self, kind: str, name: str) -> dict[str, str]:
        """Of a ConfigMap or Secret."""
        [found] = [each for each in self._each(kind) if each["metadata"]["name"] == name]
        encoded = found.get("data", {}) if kind == "Secret" else {}
        plain = found.get("stringData", {}) if kind == "Secret" else found.get("data", {})
        return {key: b64decode(value).decode() for key, value in encoded.items()} | dict(plain)

    def _services(self) -> dict[str, str]:
        """The URL of each Service -> ours."""
        found = {}
        for service in self._each("Service"):
            component = service["spec"]["selector"]["app.kubernetes.io/component"]
            for workload in self._each("Deployment", "StatefulSet"):
                template = workload["spec"]["template"]
                if template["metadata"]["labels"]["app.kubernetes.io/component"] == component:
                    [container, *_] = template["spec"]["containers"]
                    port = container["ports"][0]["containerPort"]
                    found[f"http://{service['metadata']['name']}"] = f"http://127.0.0.1:{port}"
        return found

    # ---- the processes

    def _start(self, pod: Manifest, container: Manifest) -> tuple[str, str] | None:
        """Start one; its name and the URL of its readiness, if it has one."""
        name, root = container["name"], self.directory / container["name"]
        ports = {each.get("name"): each["containerPort"] for each in container.get("ports", [])}
        for port in ports.values():
            if not is_free(port):
                raise UserError(
                    f"{listener(port)} listens on port {port}, which the container {name} needs",
                    "end it, then try again",
                )
        paths = self._mount(pod, container, root)
        values = {each["name"]: self._value(each, paths) for each in container.get("env", [])}
        values |= {
            "PATH": f"{self.programs}{os.pathsep}{os.defpath}",
            "TMPDIR": str(paths.get("/tmp", root)),  # noqa: S108
            "PYTHONUNBUFFERED": "1",
        }
        command = [here(word, paths) for word in container["command"]]
        if command[:2] == ["tini", "--"]:
            del command[:2]
        program, *arguments = COMMANDS.get(command[0], (command[0],)) + tuple(command[1:])
        with self.log(name).open("w") as log:
            process = spawn(
                [str(self.programs / program), *arguments], log, log, root, environment=values
            )
        if container in pod.get("initContainers", []):
            if process.wait(TIMEOUT):
                raise self._failed(name)
            return None
        self.processes.append(process)
        if "readinessProbe" not in container:
            return None
        probe = container["readinessProbe"]["httpGet"]
        port = ports.get(probe["port"], probe["port"])
        return name, f"http://127.0.0.1:{port}{probe['path']}"

    def _mount(self, pod: Manifest, container: Manifest, root: Path) -> dict[str, Path]:
        """Lay out the volumes of a container: where it sees each -> where it is."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        volumes = {each["name"]: each for each in pod["volumes"]}
        paths = {
            mount["mountPath"]: self._volume(volumes[mount["name"]], root)
            / mount.get("subPath", "")
            for mount in container["volumeMounts"]
        }
        for path in paths.values():
            path.mkdir(parents=True, exist_ok=True)
            for file in path.rglob("*"):
                if root in path.parents and file.is_file() and file.suffix == ".yaml":
                    file.write_text(here(file.read_text(), paths))
        return paths

    def _volume(self, volume: Manifest, root: Path) -> Path:
        """The directory of a volume, with the files of ConfigMaps and Secrets written to it."""
        if claim := volume.get("persistentVolumeClaim"):
            return self.directory / "volumes" / str(claim["claimName"])
        directory = root / "mounted" / str(volume["name"])
        for source in volume.get("projected", {}).get("sources", [volume]):
            if given := source.get("configMap"):
                content = self._content("ConfigMap", given["name"])
            elif given := source.get("secret"):
                content = self._content("Secret", given["secretName"])
            else:
                continue
            names = {each["key"]: each["path"] for each in given.get("items", [])}
            for key, path in (names or dict(zip(content, content, strict=True))).items():
                file = directory / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(0o600)
                file.write_text(content[key])
        return directory

    def _value(self, variable: Manifest, paths: Mapping[str, Path]) -> str:
        if "value" in variable:
            value = here(variable["value"], paths)
            for theirs, ours in self._services().items():
                value = re.sub(rf"{re.escape(theirs)}(?![\w.:-])", ours, value)
            return value
        reference = variable["valueFrom"]["secretKeyRef"]
        return self._content("Secret", reference["name"])[reference["key"]]

    def _wait(self, container: str, url: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not _is_ready(url):
            if time.monotonic() > deadline or any(
                each.poll() is not None for each in self.processes
            ):
                raise self._failed(container)
            time.sleep(0.2)

    def _failed(self, container: str) -> UserError:
        lines = "\n  ".join(self.log(container).read_text().splitlines()[-5:])
        return UserError(
            f"the container {container} is not ready;"
            f" the last lines of {self.log(container)}:\n  {lines}",
            "fix what these lines name, or look at the other logs there",
        )


def here(text: str, paths: Mapping[str, Path]) -> str:
    """A text with the paths that it names as they are on this machine."""
    # All at once, since one of ours may begin with one of theirs, as /tmp.
    theirs = "|".join(re.escape(path) for path in paths)
    return re.sub(rf"(?<![\w./-])({theirs})(?![\w.-])", lambda match: str(paths[match[1]]), text)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).is_success
    except httpx2.RequestError:
        return False


@dataclass
class Chat:
    """A customer at her instance's Matrix server.

    Attributes:
        url: of the server.
        user: her id, such as @ada:SERVER.
        agent: the id of the agent that she talks to.
    """

    url: str
    user: str
    token: str
    agent: str = ""
    room: str = ""
    sent: int = 0

    @classmethod
    def register(cls, url: str, name: str, shared_secret: str) -> "Chat":
        """Register a user as an operator may, with the server's shared secret."""
        path = f"{url}/_synapse/admin/v1/register"
        nonce = httpx2.get(path, trust_env=False).json()["nonce"]
        password = nonce  # nobody logs in with it
        text = "\0".join([nonce, name, password, "notadmin"])
        mac = hmac.new(shared_secret.encode(), text.encode(), hashlib.sha1).hexdigest()
        given = {"nonce": nonce, "username": name, "password": password, "admin": False, "mac": mac}
        answer = httpx2.post(path, json=given, trust_env=False).raise_for_status().json()
        return cls(url, answer["user_id"], answer["access_token"])

    def join(self, alias: str, timeout: float = 60) -> None:
        """Join a room, which MindRoom may be about to make."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.room = self._call("POST", f"join/{_quoted(alias)}", {})["room_id"]
            except httpx2.HTTPStatusError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def say(self, text: str) -> str:
        """Write to the room; returns the message's id."""
        self.sent += 1
        mentioned = [member for member in self.members() if member in text]
        content = {"msgtype": "m.text", "body": text, "m.mentions": {"user_ids": mentioned}}
        path = f"rooms/{_quoted(self.room)}/send/m.room.message/{self.sent}"
        return str(self._call("PUT", path, content)["event_id"])

    def members(self) -> list[str]:
        """The ids of who is in the room."""
        return list(self._call("GET", f"rooms/{_quoted(self.room)}/joined_members")["joined"])

    def heard(self) -> list[str]:
        """What others wrote to the room, the newest last; an edited message as it is now."""
        return [content["body"] for _, content in self._messages()]

    def answer(self, question: str) -> str:
        """What was answered to a message, by its id; "" while it is being thought about.

        Raises:
            UserError: the agent answered that it cannot.
        """
        texts = (
            content["body"]
            for thread, content in self._messages()
            if thread == question and content["body"] != THINKING
        )
        text = next(texts, "")
        if FAILED in text:
            raise UserError(
                f"the agent cannot answer: {text}", "correct the config, or the packages"
            )
        return text

    def notices(self) -> list[str]:
        """The notices that are no part of an answer."""
        return [
            content["body"]
            for thread, content in self._messages()
            if thread is None and content["msgtype"] == "m.notice"
        ]

    def _messages(self) -> list[tuple[str | None, dict[str, str]]]:
        """What others wrote: the message that began the thread, and the content as it is now."""
        chunk = self._call("GET", f"rooms/{_quoted(self.room)}/messages?dir=b&limit=100")["chunk"]
        messages: dict[str, tuple[str | None, dict[str, str]]] = {}
        for event in reversed(chunk):
            if event["type"] != "m.room.message" or event["sender"] == self.user:
                continue
            content = event["content"]
            relation = content.get("m.relates_to", {})
            related = relation.get("event_id")
            if relation.get("rel_type") == "m.replace":
                thread, _ = messages.get(related, (None, {}))
                messages[related] = thread, content["m.new_content"]
            else:
                messages[event["event_id"]] = related, content
        return list(messages.values())

    def _call(self, method: str, path: str, body: object = None) -> Any:
        answer = httpx2.request(
            method,
            f"{self.url}/_matrix/client/v3/{path}",
            content=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            timeout=30,
            trust_env=False,
        )
        return answer.raise_for_status().json()


def _quoted(text: str) -> str:
    return quote(text, safe="")
