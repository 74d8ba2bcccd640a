"""Comments and issues that are updated in place, against a server that plays GitHub's REST API."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from embedded.errors import UserError
from ops.reviews import text
from ops.reviews.__main__ import main
from ops.reviews.github import AUTHOR, PAGE_SIZE, GitHub

TOKEN = "ghs_a-token-that-nobody-may-see"
SOMEBODY = "somebody"


@dataclass
class Hub:
    """What the server holds, as GitHub would answer with it."""

    address: str = ""
    comments: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    token: str = TOKEN

    def add(self, things: list[dict[str, Any]], author: str, **given: Any) -> dict[str, Any]:
        number = len(things) + 1
        things.append(
            {
                "id": 1000 + number,
                "number": number,
                "user": {"login": author},
                "html_url": f"{self.address}/{number}",
                "state": "open",
            }
            | given
        )
        return things[-1]

    @property
    def repository(self) -> GitHub:
        return GitHub(self.address, "mindroom/platform", TOKEN)

    def bodies(self) -> list[str]:
        return [each["body"] for each in self.comments if each["user"]["login"] == AUTHOR]


class Handler(BaseHTTPRequestHandler):
    """The few calls that are needed, each for one pull request, number 7."""

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, document: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def do(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        given = json.loads(self.rfile.read(length)) if length else {}
        path = parts.path.removeprefix("/repos/mindroom/platform/")
        self.hub.requests.append(f"{self.command} {path}")
        if self.headers["Authorization"] != f"Bearer {self.hub.token}":
            self.answer(403, {"message": "Resource not accessible by integration"})
            return
        listed = self.hub.comments if "comments" in path else self.hub.issues
        if self.command == "GET":
            query = {key: value for key, (value,) in parse_qs(parts.query).items()}
            chosen = [each for each in listed if each["state"] == query.get("state", "open")]
            start = (int(query["page"]) - 1) * int(query["per_page"])
            self.answer(200, chosen[start : start + int(query["per_page"])])
        elif self.command == "POST" and path in ("issues/7/comments", "issues"):
            self.answer(201, self.hub.add(listed, AUTHOR, **given))
        elif found := re.fullmatch(r"issues/(?:comments/)?(\d+)", path):
            key = "id" if "comments" in path else "number"
            (one,) = (each for each in listed if each[key] == int(found[1]))
            one |= given
            self.answer(200, one)
        else:
            self.answer(404, {"message": "Not Found"})

    do_GET = do_POST = do_PATCH = do  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("GITHUB_API_URL", hub.address)
    monkeypatch.setenv("GITHUB_REPOSITORY", "mindroom/platform")
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def preview(environment: str, line: str) -> str:
    return text.render("preview", environment, [text.Section(line)])


def test_one_comment_an_environment_is_updated_in_place(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "comment.md"
    for environment in ("staging", "prod"):
        for line in ("first", "second"):
            file.write_text(preview(environment, line))
            assert main(["comment", "7", str(file)]) == 0
    assert hub.bodies() == [preview("staging", "second"), preview("prod", "second")]


def test_its_comment_is_found_behind_many_others(hub: Hub) -> None:
    for number in range(2 * PAGE_SIZE):
        hub.add(hub.comments, SOMEBODY, body=f"comment {number}")
    for line in ("first", "second", "third"):
        hub.repository.comment(7, preview("prod", line))
    assert hub.bodies() == [preview("prod", "third")]
    assert [each for each in hub.requests if not each.startswith("GET")] == [
        "POST issues/7/comments",
        "PATCH issues/comments/1201",
        "PATCH issues/comments/1201",
    ]


@pytest.mark.parametrize(
    ("author", "body"),
    [
        (SOMEBODY, preview("prod", "spoofed")),
        (AUTHOR, preview("staging", "another environment")),
        (AUTHOR, f"quoted:\n{preview('prod', 'not the first line')}"),
        (AUTHOR, None),
    ],
)
def test_what_is_not_its_comment_is_left_alone(hub: Hub, author: str, body: str | None) -> None:
    hub.add(hub.comments, author, body=body)
    hub.repository.comment(7, preview("prod", "ours"))
    assert [each["body"] for each in hub.comments] == [body, preview("prod", "ours")]


def test_one_issue_is_opened_updated_closed_and_opened_anew(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "drift.md"
    hub.add(hub.issues, SOMEBODY, title="not ours", body="")

    def drifted(line: str) -> None:
        file.write_text(text.render("drift", "prod", [text.Section(line)]))
        assert main(["issue", "prod", str(file)]) == 0

    drifted("one grant")
    drifted("two grants")
    assert [(each["title"], each["state"]) for each in hub.issues] == [
        ("not ours", "open"),
        ("prod is not as main says", "open"),
    ]
    assert "two grants" in hub.issues[1]["body"]

    assert main(["issue", "staging"]) == 0
    assert "there is no open issue" in capsys.readouterr().out
    assert main(["issue", "prod"]) == 0
    assert f"closed {hub.address}/2" in capsys.readouterr().out
    assert [each["state"] for each in hub.issues] == ["open", "closed"]

    drifted("a grant again")
    assert [each["state"] for each in hub.issues] == ["open", "closed", "open"]
    assert "two grants" in hub.issues[1]["body"]


def test_refusal_is_told_without_the_token(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token = "another"
    file = tmp_path / "comment.md"
    file.write_text(preview("prod", "text"))
    assert main(["comment", "7", str(file)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: GET {hub.address}/repos/mindroom/platform/issues/7/comments?")
    assert "403" in told
    assert "Resource not accessible by integration" in told
    assert TOKEN not in told


def test_nobody_there_is_told() -> None:
    with pytest.raises(UserError, match=r"^GET http://127\.0\.0\.1:1/.+refused"):
        GitHub("http://127.0.0.1:1", "mindroom/platform", TOKEN).comment(7, "text")


@pytest.mark.parametrize("name", ["GITHUB_API_URL", "GITHUB_REPOSITORY", "GITHUB_TOKEN"])
def test_missing_variable_is_told(
    hub: Hub,  # noqa: ARG001
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(name)
    assert main(["issue", "prod"]) == 1
    assert f"'{name}' is not set" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["comment", "7"], ["issue", "prod"]])
def test_text_that_is_not_ours_is_not_written(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    file = tmp_path / "comment.md"
    file.touch()
    assert main([*command, str(file)]) == 1
    assert f"error: {file} holds neither " in capsys.readouterr().err
    assert hub.requests == []


def test_missing_file_is_told(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comment", "7", "nowhere.md"]) == 1
    assert capsys.readouterr().err == "error: nowhere.md: No such file or directory\n"
    assert hub.requests == []
