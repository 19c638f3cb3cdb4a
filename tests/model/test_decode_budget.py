"""Large photos that arrive together are decoded within one budget; too little memory is never told as a bad photo."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from refdiff.model.decode_budget import PixelBudget
from refdiff.model.errors import BusyError, out_of_memory
from refdiff.model.images import decode_image


def test_budget_is_never_exceeded_and_everybody_gets_a_turn() -> None:
    budget, lock, in_use, most, served = PixelBudget(), threading.Lock(), 0, 0, 0

    def use(pixels: int) -> None:
        nonlocal in_use, most, served
        with budget.take(pixels, 10, "photo", 30):
            with lock:
                in_use += pixels
                most = max(most, in_use)
            time.sleep(0.002)
            with lock:
                in_use -= pixels
                served += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, [1, 9, 3, 10, 2, 7] * 20))
    assert served == 120
    assert 7 <= most <= 10


def test_image_over_the_budget_is_decoded_alone() -> None:
    budget = PixelBudget()
    small = budget.take(1, 10, "small", 0.01)
    with budget.take(11, 10, "large"), pytest.raises(BusyError, match=r"^small: .*try again"), small:
        pass
    with budget.take(1, 10, "small", 0.01):
        pass


def test_failed_decoding_frees_its_pixels() -> None:
    budget = PixelBudget()
    with pytest.raises(ZeroDivisionError), budget.take(10, 10, "photo"):
        _ = 1 / 0
    with budget.take(10, 10, "photo", 0.01):
        pass


SHORT_OF_MEMORY = """
import io, resource
from PIL import Image
from refdiff.model.errors import UnavailableError
from refdiff.model.images import decode_image, measure_window
buffer = io.BytesIO()
Image.new("{mode}", (4000, 4000)).save(buffer, "{format}")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for more in (10, 60):
    resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), -1))
    for read in (decode_image, measure_window):
        try:
            read(buffer.getvalue(), name="photo")
        except UnavailableError as e:
            print(e)
        except Exception as e:
            print(f"{{type(e).__name__}}: {{e}}" if "intensity window" not in str(e) else "")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("I;16", "PNG")])
def test_too_little_memory_is_unavailable_not_a_bad_photo(mode: str, format: str) -> None:
    script = SHORT_OF_MEMORY.format(mode=mode, format=format)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    said = set(done.stdout.splitlines())
    assert "photo: too little memory is free to read it; try again later" in said
    assert said <= {"photo: too little memory is free to read it; try again later", ""}


SHORTAGES: dict[str, Callable[[], object]] = {
    "Python": lambda: bytes(1 << 60),
    "NumPy": lambda: np.empty(1 << 60, np.uint8),
    "OpenCV": lambda: cv2.resize(np.zeros((1, 1), np.uint8), (2**31 - 2, 2**30)),
    "torch": lambda: torch.empty(1 << 58),
}


@pytest.mark.parametrize("who", SHORTAGES)
def test_shortage_of_memory_is_told_from_other_errors(who: str) -> None:
    with pytest.raises((MemoryError, RuntimeError, cv2.error)) as caught:
        SHORTAGES[who]()
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def _file(format_: str, mode: str) -> bytes:
    small = np.random.default_rng(1).integers(0, 255, (300, 400, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((1600, 1200)).convert(mode).save(file, format_)
    return file.getvalue()


@pytest.mark.parametrize(("format_", "mode"), [("JPEG2000", "RGB"), ("WEBP", "RGB")])
def test_other_threads_run_while_an_image_is_decoded(format_: str, mode: str) -> None:
    data, done, gaps = _file(format_, mode), threading.Event(), [0.0]

    def tick() -> None:
        while not done.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            gaps.append(time.perf_counter() - began)

    ticking = threading.Thread(target=tick)
    ticking.start()
    began = time.perf_counter()
    decode_image(data)
    took = time.perf_counter() - began
    done.set()
    ticking.join()
    assert max(gaps) < took / 2, f"{max(gaps):.2f} of {took:.2f} s"
