"""How a group and the front door prove to each other that they know the group's key.

The front door asks with random bytes; the group answers with its name, random bytes of its own, and
a keyed hash of all of them; the front door answers with another. The key itself never travels, and
no answer can be used a second time or for the other side.

Reference: M. Bellare and P. Rogaway (1993), Entity Authentication and Key Distribution, section 4.
"""

import hmac
import os

import msgspec

NONCE_BYTES = 32
MAX_PROOF_BYTES = 4096
"""Longest frame that is read of somebody who has proved nothing yet."""
HANDSHAKE_S = 5.0
"""Longest the other side may take for it."""


class NotProven(Exception):
    """The other side does not know the key."""


class Question(msgspec.Struct, frozen=True):
    """Of the front door. nonce: random bytes."""

    nonce: bytes


class Answer(msgspec.Struct, frozen=True):
    """Of the group. nonce: random bytes of its own."""

    group: str
    nonce: bytes
    proof: bytes


class Welcome(msgspec.Struct, frozen=True):
    """Of the front door, which has checked the answer."""

    proof: bytes


def ask() -> Question:
    return Question(os.urandom(NONCE_BYTES))


def answer(question: Question, group: str, key: bytes) -> Answer:
    nonce = os.urandom(NONCE_BYTES)
    return Answer(group, nonce, _proof(key, b"group", group, question.nonce, nonce))


def welcome(question: Question, given: Answer, key: bytes) -> Welcome:
    """
    Raises:
        NotProven: the answer is not of one who knows the key.
    """
    expected = _proof(key, b"group", given.group, question.nonce, given.nonce)
    if len(given.nonce) != NONCE_BYTES or not hmac.compare_digest(expected, given.proof):
        raise NotProven(f"somebody who calls himself group {given.group[:200]!r}")
    return Welcome(_proof(key, b"front door", given.group, given.nonce, question.nonce))


def check_welcome(question: Question, given: Answer, got: Welcome, key: bytes) -> None:
    """
    Raises:
        NotProven: the welcome is not of one who knows the key.
    """
    expected = _proof(key, b"front door", given.group, given.nonce, question.nonce)
    if not hmac.compare_digest(expected, got.proof):
        raise NotProven("whoever listens at the front door's address")


def _proof(key: bytes, who: bytes, group: str, first: bytes, second: bytes) -> bytes:
    """Of parts of unequal length, each behind its length: no two lists are hashed alike."""
    parts = (who, group.encode(), first, second)
    text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(key, text, "sha256")
