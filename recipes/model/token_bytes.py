"""The bytes of a single token, which may be part of a character."""

import re

import tokenizers

HALF = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of_token(backend: tokenizers.Tokenizer, token_id: int) -> bytes:
    """The bytes a token adds to a text; joined over a text's tokens they are its UTF-8.

    Tokens of whole characters are their text inside a text: decoders may drop the space that a
    text begins with. A part of a character is looked up as the piece that byte-level vocabularies
    and byte pieces (``<0xE2>``) write it as.
    """
    piece = backend.id_to_token(token_id) or ""
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(found[1])
    text = backend.decode([token_id], skip_special_tokens=False)
    if HALF not in text:
        twice = backend.decode([token_id, token_id], skip_special_tokens=False)
        return twice[len(text) :].encode()
    if all(sign in _BYTE_OF for sign in piece):
        return bytes(_BYTE_OF[sign] for sign in piece)
    return text.encode()


def _byte_signs() -> dict[str, int]:
    """Byte by the sign that byte-level vocabularies show it as: printable Latin-1 as itself."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    signs = {chr(byte): byte for byte in shown}
    return signs | {chr(0x100 + rank): byte for rank, byte in enumerate(hidden)}


_BYTE_OF = _byte_signs()
