"""What a failing tool does to a run."""

from __future__ import annotations

import errno

import cv2
import pytest
from langchain_core.tools import ToolException

from refdiff.agent.nodes import tool_error
from refdiff.model.errors import StorageError, ToolOrderError, UnavailableError, UnknownPartError


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (ToolOrderError("no photo yet: call find_part first"), "Error: no photo yet: call find_part first", False),
        (ToolException("part_id: field required"), "part_id: field required", False),
        (KeyError("oops"), "KeyError", True),
        (UnknownPartError("no part 7"), UnknownPartError, False),
        (StorageError("the disk is full"), StorageError, False),
        (MemoryError(), UnavailableError, False),
        (cv2.error("OpenCV(4.12.0): (-4:Insufficient memory) Failed to allocate"), UnavailableError, False),
        (OSError(errno.ENOSPC, "No space left on device"), UnavailableError, False),
    ],
)
def test_failing_tool_ends_the_run_where_no_other_call_could_help(
    error: Exception, said: str | type[Exception], logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(said, str):
        assert said in tool_error(error)
    else:
        with pytest.raises(said):
            tool_error(error)
    assert bool(caplog.records) == logged
