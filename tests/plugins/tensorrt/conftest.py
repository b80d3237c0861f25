"""TensorRT-RTX with the plugin loaded."""

from __future__ import annotations

import pytest
from tensorrt_plugin import Rtx


@pytest.fixture(scope="session")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Rtx:
    return Rtx(tmp_path_factory.mktemp("rtx"))
