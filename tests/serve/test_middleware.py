"""The door: default deny with a key, no foreign web pages, a request id on every answer."""

import pytest
from starlette.testclient import TestClient

from recipes.serve.app import build_app
from recipes.serve.config import ServerConfig
from recipes.serve.server import build_service
from tests.serve.models import tiny_loaded

KEY = "correct-horse"
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/cluster"),
    ("GET", "/nothing"),
]
TRICKS = ["{}", "{}/", "/{}", "/.{}", "{};x=1", "{}?key=1", "//v1/../{}", "/%2e{}"]
WRONG = ["", "x", KEY[:-1], KEY + "x", KEY.upper(), " ", "\N{FULLWIDTH LATIN SMALL LETTER C}"]


def client(**settings) -> TestClient:
    config = ServerConfig(model_name="tiny", **settings)
    return TestClient(build_app(build_service(tiny_loaded(), config)), base_url="http://localhost")


@pytest.fixture(scope="module")
def locked():
    with client(api_key=KEY) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("trick", TRICKS)
def test_no_route_opens_without_the_key(locked, method, path, trick):
    for verb in (method, "HEAD", "OPTIONS", "PUT"):
        response = locked.request(verb, trick.format(path))
        if response.request.url.path != "/":  # where "//x" names a host; the page holds no data
            assert response.status_code == 401


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("scheme", ["Bearer ", "Basic ", "bearer  ", ""])
def test_wrong_keys_do_not_open(locked, wrong, scheme):
    header = {"authorization": (scheme + wrong).encode()}
    response = locked.get("/v1/models", headers=header)
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


def test_a_key_sent_twice_does_not_open(locked):
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    assert locked.get("/v1/models", headers=headers).status_code == 401


def test_the_key_opens_and_health_needs_none(locked):
    header = {"authorization": f"Bearer {KEY}"}
    assert locked.get("/v1/models", headers=header).status_code == 200
    assert locked.get("/health").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.evil.example", "127.0.0.1.nip.example"),
        *("10.0.0.1", ""),
    ],
)
def test_on_loopback_other_host_names_are_refused(host):
    with client() as made:
        assert made.get("/health", headers={"host": host}).status_code == 403
        assert made.get("/health", headers={"host": "localhost:8000"}).status_code == 200
        assert made.get("/health", headers={"host": "[::1]:8000"}).status_code == 200
        assert made.get("/health", headers={"host": "127.0.0.2:8000"}).status_code == 200


def test_other_web_pages_are_refused():
    with client(allowed_hosts=("friend.example",)) as made:
        for origin, status in (
            ("http://evil.example", 403),
            ("null", 403),
            ("http://localhost:3000", 200),
            ("https://friend.example", 200),
        ):
            assert made.get("/v1/models", headers={"origin": origin}).status_code == status


def test_every_answer_has_a_request_id(locked):
    own = locked.get("/health", headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    for bad in ("", "a b", "x" * 65, "a\tb"):
        found = locked.get("/nothing", headers={"x-request-id": bad}).headers["x-request-id"]
        assert found.startswith("req-")


def test_an_unforeseen_exception_is_one_clean_500(monkeypatch):
    from recipes.serve import app

    def broken(service):
        raise RuntimeError("secret path /etc/shadow")

    monkeypatch.setattr(app, "_model", broken)
    with client() as made:
        response = made.get("/v1/models")
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "secret" not in response.text
        assert made.get("/health").status_code == 200
