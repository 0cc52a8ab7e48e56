"""A delivery goes to the address that was checked, whatever its name says a moment later."""

import socket
import ssl
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import certifi
import pytest

from tests.webapp.cast import make_actor
from tests.webhook_server import Server, run_server
from webapp.accounts.models import Actor, Delivery
from webapp.accounts.webhooks import create_webhook, tell
from workers.webhooks import check_address, deliver

pytestmark = pytest.mark.django_db

CERTIFICATE = Path(__file__).parent.parent / "assets" / "hooks.example.pem"  # until 2120


@pytest.fixture
def server() -> Iterator[Server]:
    with run_server() as running:
        yield running


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def tls_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """It is hooks.example, and says so with a certificate that the worker trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.set_servername_callback(lambda _, name, __: server.names.append(name or ""))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(certifi, "where", lambda: str(CERTIFICATE))
    return server


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A resolver that says each of these in turn, and the last one again and again. Returns the
    names that it was asked for."""
    coming = chain(answers, repeat(answers[-1]))
    asked: list[str] = []
    ask_really = socket.getaddrinfo

    def ask(host: str | bytes, port: int, *args: int, **kwargs: int) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name.replace(".", "").isdigit():
            return ask_really(host, port, *args, **kwargs)
        asked.append(name)
        return [
            found
            for address in next(coming).split()
            for found in ask_really(address, port, *args, **kwargs)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return asked


def send_to(actor: Actor, url: str) -> Delivery:
    create_webhook(actor=actor, url=url, events=())
    tell(actor.project, "run.failed", "run-1", {"text": "It failed."})
    deliver()
    return Delivery.objects.get()


def test_a_name_that_changes_after_it_was_checked_is_not_followed(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve(monkeypatch, "127.0.0.2", "127.0.0.1")  # nothing listens at the first
    delivery = send_to(alice, f"http://hooks.example:{server.server_port}/")
    assert (delivery.status, server.got) == ("waiting", [])
    assert delivery.error.startswith("It could not be reached: ")
    assert asked == ["hooks.example"]


def test_a_name_is_in_the_host_header_of_what_goes_to_its_address(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.1", "169.254.169.254")
    assert send_to(alice, f"http://hooks.example:{server.server_port}/a?b=c").status == "taken"
    ((headers, _),) = server.got
    assert headers["Host"] == f"hooks.example:{server.server_port}"


def test_a_name_with_several_addresses_is_reached_at_one_that_answers(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.2 127.0.0.1")
    assert send_to(alice, f"http://hooks.example:{server.server_port}/").status == "taken"
    assert len(server.got) == 1


def test_one_refused_address_among_several_refuses_the_name(
    alice: Actor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.1 169.254.169.254")
    delivery = send_to(alice, f"http://hooks.example:{server.server_port}/")
    assert "no address for a webhook" in delivery.error
    assert server.got == []


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(
    alice: Actor, tls_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.1")
    delivery = send_to(alice, f"https://hooks.example:{tls_server.server_port}/")
    assert (delivery.status, delivery.error) == ("taken", "")
    assert tls_server.names == ["hooks.example"]


def test_a_certificate_of_another_name_is_refused(
    alice: Actor, tls_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.1")
    delivery = send_to(alice, f"https://other.example:{tls_server.server_port}/")
    assert "certificate is not valid for 'other.example'" in delivery.error
    assert tls_server.got == []


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1%eth0",
        "0.0.0.0",
        "fd00:ec2::254",
        "100.100.100.200",
    ],
)
def test_where_clouds_keep_credentials_is_no_address(address: str) -> None:
    with pytest.raises(OSError, match="no address for a webhook"):
        check_address(address)


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://[fe80::1]/"],
)
def test_where_clouds_keep_credentials_nothing_is_sent(alice: Actor, url: str) -> None:
    assert "no address for a webhook" in send_to(alice, url).error
