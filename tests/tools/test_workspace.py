"""A workspace that threads share, and its copies."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_workspace_is_copied_while_another_thread_uses_it(tmp_path: Path, switching: None) -> None:
    done = threading.Event()
    memory, model = MemorySettings(home=tmp_path / "home"), ModelSettings(cache=tmp_path / "cache")

    def use() -> None:
        while not done.is_set():
            _ = workspace.file_poses  # kept in the instance when it is first asked for
            time.sleep(0)
            del workspace.file_poses
            time.sleep(0)

    with Workspace.open(memory, model, ToolsSettings()) as workspace, ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        try:
            copies = [copy.copy(workspace) for _ in range(300)]
        finally:
            done.set()
        using.result()
        assert all(one.stores is workspace.stores for one in copies)
