"""The verifier of a password is what libpq makes of it."""

from base64 import b64decode

import psycopg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.scram import verifier
from embedded.postgres import Server

PRINTABLE = "".join(map(chr, range(32, 127)))


def test_verifier_is_that_of_libpq(server: Server) -> None:
    with psycopg.connect(server.url()) as connection:

        @settings(max_examples=200)
        @example(PRINTABLE)
        @example("pa\u00adss\u00a0w\u00f6rd \u2168")  # mapped to nothing, to a space, NFKC
        @example("\u05d0 1 \u05d1")
        @example("\u05d0 a \u05d1")
        @given(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
        )
        def same(password: str) -> None:
            theirs = connection.pgconn.encrypt_password(
                password.encode(), b"role", b"scram-sha-256"
            ).decode()
            salt = b64decode(theirs.split("$")[1].partition(":")[2])
            assert verifier(password, salt) == theirs

        same()
