"""docs/cuda.md says what `make test-cuda-config` holds."""

from tests.cuda_config.page import page
from tests.paths import REPOSITORY


def test_the_page_says_what_is_held() -> None:
    assert (REPOSITORY / "docs" / "cuda.md").read_text() == page()
