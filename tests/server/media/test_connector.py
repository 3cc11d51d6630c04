"""Data URLs and local files, through vLLM's interface."""

import asyncio
import base64
import os
import threading
from pathlib import Path

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from prismoe.server.environment import MEDIA_CONNECTOR
from prismoe.server.media.connector import RequestMedia, use_media
from prismoe.server.media.settings import MediaSettings
from tests.server.media.pictures import RED, encoded, two_colours

PICTURE = encoded(two_colours(size=(64, 64)))


def data_url(data: bytes, header: str = "data:image/png;base64,") -> str:
    return header + base64.b64encode(data).decode()


def refusal(url: str, connector: RequestMedia | None = None) -> str:
    with pytest.raises(VLLMValidationError) as refused:
        (connector or RequestMedia()).fetch_image(url)
    return str(refused.value).removeprefix("An image of the request can't be read: ")


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64,",
        "DATA:image/jpeg;charset=x;BASE64,",
        "data:;base64,",
        "data:text/html;base64,",
    ],
)
def test_a_data_url(header: str) -> None:
    image = RequestMedia().fetch_image(data_url(PICTURE, header))
    assert image.size == (64, 64) and image.mode == "RGB"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,", "its data URL is empty."),
        ("data:image/png;base64,!!!!", "the text of its data URL is not base64."),
        ("data:image/png;base64,AAAAA", "the text of its data URL is not base64."),
        ("data:image/png;base64,ÄÖÜ=", "the text of its data URL is not base64."),
        ("data:image/png,raw", "its data URL must have the form data:TYPE;base64,TEXT."),
        ("data:", "its data URL must have the form data:TYPE;base64,TEXT."),
        (data_url(b"no picture"), "it is not a PNG, JPEG, WebP or GIF."),
        (data_url(PICTURE[:60]), "it is damaged or cut short."),
        ("blob:https://example.com/1", "its URL must begin with data:, https:, http: or file:."),
    ],
)
def test_data_urls_that_are_refused(url: str, reason: str) -> None:
    assert refusal(url) == reason


def test_the_operators_limits() -> None:
    connector = RequestMedia()
    connector.settings = MediaSettings.model_validate({"max_image_mib": "0.001", "max_image_pixels": 100})
    assert refusal(data_url(bytes(1049)), connector) == "it has more than 1,048 bytes."
    assert "may have at most 100" in refusal(data_url(encoded(Image.new("L", (11, 10)))), connector)
    assert connector.fetch_image(data_url(encoded(Image.new("L", (10, 10))))).size == (10, 10)


def test_no_file_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert "this server reads no files" in refusal((tmp_path / "a.png").as_uri())


def test_only_files_in_the_folder_are_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "pictures", tmp_path / "secret.png"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "a b.png", folder / "deep" / "c.png", outside, tmp_path / "pictures.png"):
        path.write_bytes(PICTURE)
    (folder / "link.png").symlink_to(outside)
    (folder / "inner.png").symlink_to(folder / "a b.png")
    (folder / "way").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "entry").symlink_to(folder)
    for allowed in (folder, tmp_path / "entry"):
        connector = RequestMedia(allowed_local_media_path=str(allowed))
        for name in ("a b.png", "deep/c.png", "deep/../a b.png", "inner.png"):
            url = f"file://{folder}/{name}".replace(" ", "%20")
            assert connector.fetch_image(url).size == (64, 64)
            assert connector.fetch_image(url.replace("file://", "file://localhost")).size == (64, 64)
        for name in (
            "link.png",
            "way/secret.png",
            "../secret.png",
            "%2e%2e/secret.png",
            "..%2fsecret.png",
            "",
        ):
            assert "outside the folder" in refusal(f"file://{folder}/{name}", connector)
        for url in (f"file://{outside}", f"file://{tmp_path}/pictures.png", "file:///etc/passwd", "file:"):
            assert "outside the folder" in refusal(url, connector)
        assert "outside the folder" in refusal(f"file://elsewhere{folder}/deep/c.png", connector)
        for name in ("missing.png", "loop", "deep", "pipe", "a%00.png"):
            message = refusal(f"file://{folder}/{name}", connector)
            assert str(folder) not in message


def test_decoding_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def decode(*_: object) -> Image.Image:
        threads.add(threading.current_thread())
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("prismoe.server.media.connector.decode", decode)
    asyncio.run(RequestMedia().fetch_image_async(data_url(PICTURE)))
    assert threads and threading.main_thread() not in threads


def test_the_operator_sets_the_background() -> None:
    clear = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    connector = RequestMedia({"image": {"rgba_background_color": list(RED)}})
    assert connector.fetch_image(data_url(clear)).getpixel((0, 0)) == RED
    assert RequestMedia().fetch_image(data_url(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_vllm_gets_the_settings() -> None:
    use_media(MediaSettings(max_image_pixels=7))
    try:
        connector = MEDIA_CONNECTOR_REGISTRY.load(
            MEDIA_CONNECTOR, media_io_kwargs=None, allowed_local_media_path="", allowed_media_domains=None
        )
        assert "may have at most 7" in refusal(data_url(PICTURE), connector)
        assert connector.load_from_url.__func__ is RequestMedia.load_from_url
    finally:
        use_media(MediaSettings())
