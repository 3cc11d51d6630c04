"""No URL in a request makes the server connect to a forbidden address: the count of connections stays 0.

The forbidden servers listen on 127.0.0.1 and ::1, an allowed one on 127.0.0.2, which is in the tests'
settings. The controls fetch images from it, so that the tests can fail.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import ImageMediaIO

from prismoe.server.media.addresses import may_fetch_from
from prismoe.server.media.connector import RequestMedia
from prismoe.server.media.origins import AllowedOrigins
from prismoe.server.media.refusal import MediaRefused
from prismoe.server.media.settings import MediaSettings
from tests.server.media.certificate import certificate
from tests.server.media.clips import clip
from tests.server.media.pictures import encoded, two_colours
from tests.server.media.web import Counted, Names, answer, drip, endless, running

PICTURE = encoded(two_colours(size=(64, 64)))
HOST = "images.example"
GOOD, FORBIDDEN = "127.0.0.2", "127.0.0.1"
REDIRECTS = (300, 301, 302, 303, 307, 308)
SETTINGS = MediaSettings(
    fetch_networks=(IPv4Network(f"{GOOD}/32"),), fetch_seconds=1, max_image_mib=100_000 / 2**20
)


class Targets:
    """The forbidden servers, on one port."""

    def __init__(self) -> None:
        behaviours = {"/a.png": answer(PICTURE)}
        first = Counted(FORBIDDEN, behaviours=behaviours)
        self.port = first.server_port
        self.servers = [first, Counted("::1", self.port, behaviours)]

    @property
    def hits(self) -> int:
        return sum(server.hits for server in self.servers)


@pytest.fixture(scope="module")
def shared_targets() -> Iterator[Targets]:
    targets = Targets()
    with running(*targets.servers):
        yield targets


@pytest.fixture
def targets(shared_targets: Targets) -> Iterator[Targets]:
    before = shared_targets.hits
    yield shared_targets
    assert shared_targets.hits == before


@pytest.fixture(scope="module")
def good(shared_targets: Targets) -> Iterator[Counted]:
    """The allowed server, on the same port as the forbidden ones."""
    elsewhere = f"http://{FORBIDDEN}:{shared_targets.port}/a.png"
    server = Counted(
        GOOD,
        shared_targets.port,
        {
            "/a.png": answer(PICTURE, Content_Type="text/html"),
            **{f"/{status}/away": answer(b"", status, Location=elsewhere) for status in REDIRECTS},
            **{f"/{status}/here": answer(b"", status, Location="/a.png") for status in REDIRECTS},
            "/refresh": answer(PICTURE, Refresh=f"0; url={elsewhere}", Link=f"<{elsewhere}>; rel=preload"),
            "/clip": answer(clip(3), Content_Type="image/png"),
            "/missing": answer(b"a secret", 404),
            "/gzip": answer(b"\x1f\x8b" + bytes(1000), Content_Encoding="gzip"),
            "/large": answer(bytes(200_000)),
            "/drip": drip,
            "/endless": endless,
        },
    )
    with running(server):
        yield server


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return resolve(monkeypatch, **{HOST: [[GOOD]]})


def resolve(monkeypatch: pytest.MonkeyPatch, **answers: Sequence[Sequence[str]]) -> Names:
    names = Names(**answers)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names


def media(*allowed: str, settings: MediaSettings = SETTINGS) -> RequestMedia:
    connector = RequestMedia(allowed_media_domains=list(allowed) or None)
    connector.settings = settings
    return connector


def fetched(url: str, *allowed: str, settings: MediaSettings = SETTINGS) -> tuple[int, int]:
    """The size of the fetched image."""
    image = media(*allowed, settings=settings).load_from_url(url, ImageMediaIO())
    size: tuple[int, int] = image.media.size
    return size


def refusal(url: str, *allowed: str, settings: MediaSettings = SETTINGS) -> str:
    """The message of a refused fetch, after a check that it names no address."""
    with pytest.raises(VLLMValidationError) as refused:
        fetched(url, *allowed, settings=settings)
    message = str(refused.value)
    assert message.startswith("An image of the request can't be read: ") and message.endswith(".")
    assert "127.0" not in message and "secret" not in message
    return message


def test_an_allowed_server_is_used(targets: Targets, good: Counted) -> None:
    """This is a control: by name, by address, and with any content type."""
    url, hits = f"http://{HOST}:{targets.port}/a.png?size=big", good.hits
    assert fetched(url, f"http://{HOST}:{targets.port}") == (64, 64)
    assert fetched(url.upper().replace("/A.PNG", "/a.png"), f"http://{HOST}:{targets.port}") == (64, 64)
    assert fetched(url, f"http://*:{targets.port}") == (64, 64)
    assert fetched(f"http://{GOOD}:{targets.port}/a.png", f"http://{GOOD}:{targets.port}") == (64, 64)
    assert good.hits == hits + 4
    assert good.headers[-4]["host"] == f"{HOST}:{targets.port}"
    assert not {"cookie", "authorization", "referer"} & set(good.headers[-4])


def test_videos_are_fetched_by_the_same_rules(targets: Targets, good: Counted) -> None:
    here, hits = f"http://{HOST}:{targets.port}", good.hits
    connector = media(here)
    assert connector.fetch_video(f"{here}/clip").media[0].shape == (3, 48, 64, 3)
    assert good.headers[-1]["accept"] == "video/*"
    for path, reason in (
        ("/large", "it is not an MP4"),
        (f"/{REDIRECTS[0]}/away", "its URL redirects"),
        ("/missing", "answered with status 404"),
    ):
        with pytest.raises(VLLMValidationError, match=reason):
            connector.fetch_video(here + path)
    assert good.hits == hits + 4
    small = media(here, settings=SETTINGS.model_copy(update={"max_video_mib": 0.001}))
    with pytest.raises(VLLMValidationError, match="A video of the request can't be read: it has more than"):
        small.fetch_video(f"{here}/clip")


def test_the_forbidden_server_answers_with_a_relaxed_rule(shared_targets: Targets) -> None:
    """This is the other control: only the rule prevents a fetch from there."""
    relaxed = MediaSettings(fetch_networks=(IPv4Network("127.0.0.0/8"),))
    url = f"http://{FORBIDDEN}:{shared_targets.port}"
    before = shared_targets.hits
    assert fetched(f"{url}/a.png", url, settings=relaxed) == (64, 64)
    assert shared_targets.hits == before + 1


def test_nothing_is_fetched_by_default(targets: Targets) -> None:
    for url in (f"http://{HOST}:{targets.port}/a.png", "https://example.com/a.png"):
        assert "this server fetches nothing" in refusal(url)


ALL_FORMS = [
    "127.0.0.1",
    "127.0.0.1.",
    "localhost",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "127.000.000.001",
    "0",
    "0.0.0.0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "[::1%25lo]",
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "user@127.0.0.1",
    "user:password@127.0.0.1",
    "images.example@127.0.0.1",
    "images.example%40127.0.0.1",
]


@pytest.mark.parametrize("form", ALL_FORMS)
def test_forms_of_a_loopback_address(targets: Targets, form: str) -> None:
    """Any host and this port are allowed, so only the address can be refused."""
    refusal(f"http://{form}:{targets.port}/a.png", f"http://*:{targets.port}")
    refusal(f"http://{form}:{targets.port}/a.png", f"http://{HOST}:{targets.port}")


TRICKS = [
    "http://{host}:{port}@{bad}:{port}/a.png",
    "http://{host}@{bad}:{port}/a.png",
    "http://{host}\\@{bad}:{port}/a.png",
    "http://{bad}:{port}\\@{host}/a.png",
    "http://{bad}:{port}\\.{host}/a.png",
    "http://{bad}:{port}#@{host}:{port}/a.png",
    "http://{bad}:{port}?@{host}:{port}/a.png",
    "http://{bad}:{port}/@{host}:{port}/a.png",
    "http://{bad}:{port};{host}:{port}/a.png",
    "http://{bad}:{port},{host}:{port}/a.png",
    "http://{bad}:{port} {host}/a.png",
    "http://{bad}:{port}\t.{host}/a.png",
    "http://{bad}:{port}\r\nHost: {host}/a.png",
    "http://{bad}:{port}\n@{host}:{port}/a.png",
    "http://{bad}%00.{host}:{port}/a.png",
    "http://{bad}\0.{host}:{port}/a.png",
    "http://{bad}%09{host}:{port}/a.png",
    "http:{bad}:{port}/a.png",
    "http:/{bad}:{port}/a.png",
    "http:///{bad}:{port}/a.png",
    "http:\\\\{bad}:{port}\\a.png",
    "http:////{bad}:{port}/a.png",
    "HTTP://{bad}:{port}/a.png",
    " http://{bad}:{port}/a.png",
    "\x0bhttp://{bad}:{port}/a.png",
    "//{bad}:{port}/a.png",
    "{bad}:{port}/a.png",
    "url:http://{bad}:{port}/a.png",
    "gopher://{bad}:{port}/a.png",
    "ftp://{bad}:{port}/a.png",
    "ws://{bad}:{port}/a.png",
    "dict://{bad}:{port}/a.png",
    "jar:http://{bad}:{port}/a.png!/",
    "file://{bad}:{port}/a.png",
    "http://[{host}]:{port}/a.png",
    "http://[::1]{host}:{port}/a.png",
    "http://{host}.:{port}/a.png",
    "http://evil.{host}:{port}/a.png",
    "http://{host}.evil.example:{port}/a.png",
    "http://{host}:{port}:80/a.png",
    "http://{host}:99999/a.png",
    "http://{host}:-1/a.png",
    "http://{host}:1{port}/a.png",
    "https://{host}:{port}/a.png",
    "http://{host}/a.png",
    "http://:{port}/a.png",
    "http://",
    "http:",
    "",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_of_url_parsers(targets: Targets, good: Counted, trick: str) -> None:
    """One is CVE-2026-24779. No interpretation of these URLs is the allowed server's."""
    hits = good.hits
    refusal(trick.format(host=HOST, bad=FORBIDDEN, port=targets.port), f"http://{HOST}:{targets.port}")
    assert good.hits == hits


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("to", ["away", "here"])
def test_a_redirect_is_not_followed(targets: Targets, good: Counted, status: int, to: str) -> None:
    hits = good.hits
    said = refusal(f"http://{HOST}:{targets.port}/{status}/{to}", f"http://*:{targets.port}")
    assert "its URL redirects to another: give the URL that it redirects to" in said
    assert good.hits == hits + 1


def test_headers_do_not_redirect(targets: Targets, good: Counted) -> None:
    url = f"http://{HOST}:{targets.port}/refresh"
    assert fetched(url, f"http://*:{targets.port}") == (64, 64)


def test_a_name_with_a_forbidden_address(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    url, allowed = f"http://{HOST}:{targets.port}/a.png", f"http://{HOST}:{targets.port}"
    for addresses in ([FORBIDDEN], ["::1"], ["::ffff:127.0.0.1"], ["169.254.169.254"], [FORBIDDEN, GOOD], []):
        resolve(monkeypatch, **{HOST: [addresses]})
        refusal(url, allowed)


def test_a_name_that_changes_its_answer(
    targets: Targets, good: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is resolved once for a connection, and a second answer would never be used."""
    url, allowed, hits = f"http://{HOST}:{targets.port}/a.png", f"http://{HOST}:{targets.port}", good.hits
    names = resolve(monkeypatch, **{HOST: [[GOOD], [FORBIDDEN], [GOOD], [FORBIDDEN]]})
    assert fetched(url, allowed) == (64, 64)
    assert names.questions == 1
    refusal(url, allowed)
    assert fetched(url, allowed) == (64, 64)
    refusal(url, allowed)
    assert names.questions == 4 and good.hits == hits + 2


def test_a_proxy_of_the_environment_is_not_used(
    targets: Targets, good: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{FORBIDDEN}:{targets.port}")
    assert fetched(f"http://{HOST}:{targets.port}/a.png", f"http://*:{targets.port}") == (64, 64)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "status 404"),
        ("/gzip", "not a PNG"),
        ("/large", "more than 100,000 bytes"),
        ("/endless", "more than 100,000 bytes"),
        ("/drip", "longer than 1 s"),
    ],
)
def test_answers_that_are_refused(targets: Targets, good: Counted, path: str, reason: str) -> None:
    assert reason in refusal(f"http://{HOST}:{targets.port}{path}", f"http://*:{targets.port}")


def test_tls_checks_the_requested_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the checked address, and the certificate has to be the name's."""
    server = Counted(GOOD, behaviours={"/a.png": answer(PICTURE)})
    authority, chain = certificate(HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    trusting = ssl.create_default_context(cadata=authority)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    resolve(monkeypatch, **{HOST: [[GOOD]], "other_example": [[GOOD]]})
    port = server.server_port
    with running(server):
        assert fetched(f"https://{HOST}:{port}/a.png", f"{HOST}:{port}") == (64, 64)
        refusal(f"https://other.example:{port}/a.png", f"other.example:{port}")
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context())
        refusal(f"https://{HOST}:{port}/a.png", f"{HOST}:{port}")
    assert asked == [HOST, "other.example", HOST]


@pytest.mark.parametrize(
    "address",
    [
        *[
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.1.1",
        ],
        *["169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1"],
        *["192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"],
        *["255.255.255.255", "168.63.129.16", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"],
        *["64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1"],
        *["5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1"],
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not may_fetch_from(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::8a"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert may_fetch_from(address)


def test_networks_that_the_operator_names() -> None:
    settings = MediaSettings.model_validate({"fetch_networks": "10.1.0.0/16,fd00::/8"})
    assert may_fetch_from("10.1.2.3", settings.fetch_networks)
    assert may_fetch_from("fd00::1", settings.fetch_networks)
    assert not may_fetch_from("10.2.0.1", settings.fetch_networks)
    assert not may_fetch_from("::ffff:10.1.2.3", settings.fetch_networks)


def test_http_is_only_for_servers_that_are_listed_with_it() -> None:
    origins = AllowedOrigins([HOST, "http://plain.example", "deep.example:8443"])
    assert origins.checked(f"https://{HOST}/a.png").host == HOST
    assert origins.checked("http://plain.example/a.png").scheme == "http"
    assert origins.checked("https://deep.example:8443/a.png").port == 8443
    for url in (
        f"http://{HOST}/a",
        "https://plain.example/a",
        "https://deep.example/a",
        f"https://{HOST}:22/a",
    ):
        with pytest.raises(MediaRefused):
            origins.checked(url)


@pytest.mark.parametrize(
    "entry", ["", "https://a/b", "a b", "ftp://a", "*.example.com", "a@b", "a\\b", "a:b"]
)
def test_entries_that_are_not_a_server(entry: str) -> None:
    with pytest.raises(ValueError, match=r"--allowed-media-domains: .* is not a host"):
        AllowedOrigins([entry])


def test_a_caller_without_an_event_loop_gets_the_same(targets: Targets) -> None:
    url = f"http://{FORBIDDEN}:{targets.port}/a.png"
    connector = media(f"http://*:{targets.port}")
    with pytest.raises(VLLMValidationError):
        asyncio.run(connector.fetch_image_async(url))
    with pytest.raises(VLLMValidationError):
        connector.fetch_image(url)
    with pytest.raises(VLLMValidationError, match="its server's address is not public"):
        connector.fetch_video(url)
    with pytest.raises(VLLMValidationError, match="takes only images and videos"):
        connector.fetch_audio(url)
