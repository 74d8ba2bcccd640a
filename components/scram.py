"""The form in which PostgreSQL keeps a password, for who sets one without showing it."""

import base64
import hashlib
import hmac
import stringprep
import unicodedata

ITERATIONS = 4096
"""PostgreSQL's default, which costs each login a few milliseconds."""


def verifier(password: str, salt: bytes) -> str:
    """The SCRAM-SHA-256 verifier of a password, which PostgreSQL takes in its place.

    It is as secret as a password's hash, and the same each time for the same salt.
    """
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password).encode(), salt, ITERATIONS)

    def key(name: bytes) -> bytes:
        return hmac.digest(salted, name, "sha256")

    stored = hashlib.sha256(key(b"Client Key")).digest()
    salt_64, stored_64, server_64 = (
        base64.b64encode(each).decode() for each in (salt, stored, key(b"Server Key"))
    )
    return f"SCRAM-SHA-256${ITERATIONS}:{salt_64}${stored_64}:{server_64}"


def _prepared(password: str) -> str:
    """By SASLprep (RFC 4013), as who logs in prepares it; where that refuses it, as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    text = unicodedata.normalize("NFKC", mapped)
    refused = not text or any(forbidden(each) for forbidden in _FORBIDDEN for each in text)
    if any(map(stringprep.in_table_d1, text)):  # written from right to left
        ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
        refused = refused or not ends or any(map(stringprep.in_table_d2, text))
    return password if refused else text


_FORBIDDEN = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
