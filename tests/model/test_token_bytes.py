import pytest
from tokenizers import pre_tokenizers

from recipes.model.token_bytes import _BYTE_OF, bytes_of_token
from tests.model.words import byte_fallback, byte_level


@pytest.mark.parametrize("text", ["hello wörld", "日本 😀\U0001f9d1", "\ufffd", ""])
def test_bytes_of_tokens_join_to_the_text(text):
    backend = byte_level()
    ids = backend.encode(text, add_special_tokens=False).ids
    assert b"".join(bytes_of_token(backend, i) for i in ids) == text.encode()


def test_byte_pieces_are_their_byte():
    backend = byte_fallback()
    for byte in range(256):
        token_id = backend.token_to_id(f"<0x{byte:02X}>")
        assert token_id is not None
        assert bytes_of_token(backend, token_id) == bytes([byte])


def test_a_space_that_only_the_first_token_loses_is_kept():
    backend = byte_fallback()
    ids = backend.encode("the quick brown fox", add_special_tokens=False).ids
    assert b"".join(bytes_of_token(backend, i) for i in ids) == b" the quick brown fox"


def test_the_signs_are_those_of_the_tokenizers_library():
    assert set(_BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_BYTE_OF.values()) == list(range(256))
