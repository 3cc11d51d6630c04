"""Reads images and videos from the folder that the operator allows (`--allowed-local-media-path`)."""

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prismoe.server.media.refusal import MediaRefused


def read_local(url: str, folder: Path | None, max_bytes: int) -> bytes:
    """Return the bytes of the file at a `file://` URL. After its links are followed, it must be in `folder`.

    `folder` is a resolved path, or None if no file may be read. Raises MediaRefused, with a reason that does
    not name the server's paths.
    """
    if folder is None:
        raise MediaRefused("this server reads no files, because --allowed-local-media-path is not set")
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path)).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        raise MediaRefused("its URL is not valid") from error
    if parts.netloc not in ("", "localhost") or folder not in path.parents:
        raise MediaRefused("its file is outside the folder of --allowed-local-media-path")
    try:
        # Opening a pipe would wait for a writer for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise MediaRefused("its URL is not that of a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise MediaRefused(f"its file can't be read ({error.strerror})") from error
    if len(data) > max_bytes:
        raise MediaRefused(f"it has more than {max_bytes:,} bytes")
    return data
