"""`prismoe convert`: turns a checkpoint as its authors ship it into a self-contained folder."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.tools.captured_output import captured_output


def convert(
    source: str,
    destination: Path,
    routing: Mapping[str, Any] | None,
    dtype: str | None,
    max_shard_size: int,
) -> int:
    """Write `destination` and return 0.

    Raises ValueError or OSError where that fails; nothing is left behind then.
    """
    folder_of_source = checkpoint_folder(source)
    with written_whole(destination) as folder:
        with captured_output(verbose=False):
            from prismoe.model_plugins.tools.convert.self_contained import write_self_contained
        write_self_contained(folder_of_source, folder, routing, dtype, max_shard_size)
    print(f"Wrote {destination}. To serve it: prismoe serve {destination}")
    return 0


@contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes `destination` at the end of the block, unless that raises."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder: name another.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(destination)
    except BaseException:
        shutil.rmtree(folder)
        raise
