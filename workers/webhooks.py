"""Carries deliveries to their webhooks: one signed POST each, no redirects, short timeouts."""

import asyncio
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import httpx

from webapp.accounts.models import Delivery
from webapp.accounts.webhooks import (
    claim_delivery,
    list_due,
    note_refused,
    note_taken,
    postpone,
)

LIMITS = httpx.Timeout(5.0, connect=3.0)
WHOLE_SECONDS = 10.0  # of one delivery
MOST_AT_ONCE = 100
SPENT_SECONDS = 40.0  # of one task: what is left is the next one's
SIGNATURE = "Hone-Signature"
# Where clouds tell a machine its credentials at an address that is not link-local.
CREDENTIALS = ("100.100.100.200", "fd00:ec2::254")


def deliver() -> None:
    """What is due now. An address that does not answer holds nobody else's up."""
    until = time.monotonic() + SPENT_SECONDS
    while time.monotonic() < until and (due := list_due(MOST_AT_ONCE)):
        deliver_each(due, until)


def deliver_each(due: Sequence[Delivery], until: float) -> None:
    silent: set[str] = set()
    for delivery in due:
        webhook_id = delivery.webhook_id
        if webhook_id in silent or time.monotonic() > until or not claim_delivery(delivery):
            continue
        if why := send(delivery):
            silent.add(webhook_id)
            note_refused(delivery, why)
            postpone(delivery)
        else:
            note_taken(delivery)


def send(delivery: Delivery) -> str:
    """Why it was not taken, in a sentence; empty: it was."""
    try:
        url = httpx.URL(delivery.webhook.url)
        addresses = find_addresses(url)
        body = json.dumps({**delivery.body, "id": delivery.key}).encode()
        headers = make_headers(delivery.event, delivery.webhook.secret, body, int(time.time()))
        return explain(asyncio.run(post(url, addresses, body, headers)))
    except httpx.TimeoutException:
        return "It did not answer within 5 s."
    except TimeoutError:
        return f"Its answer did not come to an end within {WHOLE_SECONDS:g} s."
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        said = str(error).rstrip(".") or type(error).__name__
        return f"It could not be reached: {said}."


async def post(
    url: httpx.URL, addresses: Sequence[str], body: bytes, headers: Mapping[str, str]
) -> int:
    """The status of its answer. Limits on each read alone would let it say a letter at a time."""
    client = httpx.AsyncClient(timeout=LIMITS, follow_redirects=False, trust_env=False)
    async with asyncio.timeout(WHOLE_SECONDS), client:
        for address in addresses[:-1]:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await post_to(client, address, url, body, headers)
        return await post_to(client, addresses[-1], url, body, headers)


async def post_to(
    client: httpx.AsyncClient, address: str, url: httpx.URL, body: bytes, headers: Mapping[str, str]
) -> int:
    """The name is not looked up again, where it might be another's: it is in the Host header, and
    what the certificate must be for."""
    named = {"Host": url.netloc.decode(), **headers}
    extensions = {"sni_hostname": url.raw_host.decode()}
    there = url.copy_with(host=address)
    asked = client.stream("POST", there, content=body, headers=named, extensions=extensions)
    async with asked as answer:
        return answer.status_code  # its body is nobody's business here


def find_addresses(url: httpx.URL) -> list[str]:
    """Private networks are the owner's own. Link-local addresses are where machines of a cloud
    keep their credentials, and no webhook listens there."""
    found = socket.getaddrinfo(url.raw_host.decode(), url.port or 80, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for address in addresses:
        check_address(address)
    return addresses


def check_address(address: str) -> None:
    number: Any = ipaddress.ip_address(address.partition("%")[0])
    number = getattr(number, "ipv4_mapped", None) or number
    is_odd = number.is_link_local or number.is_multicast or number.is_unspecified
    if is_odd or str(number) in CREDENTIALS:
        raise OSError(f"{address} is no address for a webhook")


def make_headers(event: str, secret: str, body: bytes, moment: int) -> Mapping[str, str]:
    """Who knows the secret finds out that the body is ours, whole, and how old it is."""
    return {
        "Content-Type": "application/json",
        "User-Agent": "Hone",
        "Hone-Event": event,
        SIGNATURE: f"t={moment},v1={sign(secret, body, moment)}",
    }


def sign(secret: str, body: bytes, moment: int) -> str:
    return hmac.new(secret.encode(), f"{moment}.".encode() + body, sha256).hexdigest()


def explain(status: int) -> str:
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"It answered {status}: redirects are not followed. Enter the address they lead to."
    return f"It answered {status}."
