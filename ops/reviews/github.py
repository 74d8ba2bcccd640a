"""One comment of a pull request, and one issue, updated in place through GitHub's REST API.

Each is found again by the first line of its text (see `text.marker`), which counts only in those
that our own workflows wrote.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2

from embedded.errors import UserError

AUTHOR = "github-actions[bot]"
PAGE_SIZE = 100
TIMEOUT = 30.0


class GitHub:
    """A repository.

    Args:
        api: the API's URL.
        repository: OWNER/NAME.
        token: a workflow's token.
    """

    def __init__(self, api: str, repository: str, token: str) -> None:
        self._client = httpx2.Client(
            base_url=f"{api}/repos/{repository}",
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {token}",
                "X-GitHub-Api-Version": "2022-11-28",
            },
            timeout=TIMEOUT,
        )

    def comment(self, number: int, text: str) -> str:
        """Write or update a pull request's comment; returns its address.

        Raises:
            UserError: GitHub refuses.
        """
        if found := self._find(f"issues/{number}/comments?", _first_line(text)):
            written = self._call("PATCH", f"issues/comments/{found['id']}", {"body": text})
        else:
            written = self._call("POST", f"issues/{number}/comments", {"body": text})
        return str(written["html_url"])

    def open_issue(self, title: str, text: str) -> str:
        """Open an issue, or update the open one; returns its address.

        Raises:
            UserError: GitHub refuses.
        """
        if found := self._issue(_first_line(text)):
            written = self._call("PATCH", f"issues/{found['number']}", {"body": text})
        else:
            written = self._call("POST", "issues", {"title": title, "body": text})
        return str(written["html_url"])

    def close_issue(self, first_line: str) -> str | None:
        """Close the open issue, if there is one; returns its address.

        Raises:
            UserError: GitHub refuses.
        """
        found = self._issue(first_line)
        if not found:
            return None
        self._call("PATCH", f"issues/{found['number']}", {"state": "closed"})
        return str(found["html_url"])

    def _issue(self, first_line: str) -> dict[str, Any] | None:
        return self._find("issues?state=open&", first_line)

    def _find(self, listed: str, first_line: str) -> dict[str, Any] | None:
        return next(
            (
                item
                for item in self._pages(listed)
                if item["user"]["login"] == AUTHOR and _first_line(item["body"] or "") == first_line
            ),
            None,
        )

    def _pages(self, listed: str) -> Iterator[dict[str, Any]]:
        for number in count(1):
            page = self._call("GET", f"{listed}per_page={PAGE_SIZE}&page={number}")
            yield from page
            if len(page) < PAGE_SIZE:
                return

    def _call(self, method: str, path: str, document: Any = None) -> Any:
        try:
            answer = self._client.request(method, path, json=document)
        except httpx2.RequestError as error:
            raise UserError(
                f"{method} {error.request.url}: {error}", "run again when GitHub can be reached"
            ) from None
        if not answer.is_success:
            raise UserError(
                f"{method} {answer.url}: {answer.status_code} {answer.reason_phrase}: "
                f"{answer.text}",
                "see that the workflow's token has the permission that this needs",
            )
        return answer.json()


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].rstrip()
