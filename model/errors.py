"""The error tree of the product. Every message names the thing, the value and the way out.

RefDiffError                    exit 70
├── InputError                  exit 65   something the user gave is wrong
│   ├── ImageError                        unreadable, too small, too large, wrong kind of image
│   ├── UnknownPartError                  no capture of that part
│   ├── UnknownProductError               product has no goldens / is not known
│   ├── UnknownRecordError                no inspection, golden, evidence of that id
│   │   └── RemovedError                  `refdiff prune` removed it
│   ├── DuplicateError                    already there (golden, disposition)
│   ├── SpecError                         product specification does not parse
│   ├── DamagedError                      a stored photo is not what was kept; trying again does not help
│   └── TamperedError                     an audit record is not what was recorded
├── UnavailableError            exit 69   a service or resource is unavailable
│   ├── BankBusyError                     another process holds the embedded bank
│   ├── BusyError                         too much is waiting already
│   ├── StorageError                      disk full, not writable, corrupt file
│   └── LLMError                          endpoint down, slow or talking nonsense past its retries
└── ToolOrderError              (to the LLM) a tool was called before what it needs
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterable
from typing import Any


class RefDiffError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 70


class InputError(RefDiffError):
    exit_code = 65


class ImageError(InputError):
    pass


class UnknownPartError(InputError):
    pass


class UnknownProductError(InputError):
    pass


class UnknownRecordError(InputError):
    pass


class RemovedError(UnknownRecordError):
    pass


class DuplicateError(InputError):
    """earlier: what was there first, where the caller may want to know (a dataclass)."""

    def __init__(self, message: str, earlier: Any = None) -> None:
        super().__init__(message)
        self.earlier = earlier


class ChangedError(InputError):
    """Somebody else changed meanwhile what this change begins from."""


class SpecError(InputError):
    pass


class DamagedError(InputError):
    pass


class TamperedError(InputError):
    pass


class UnavailableError(RefDiffError):
    exit_code = 69


class BankBusyError(UnavailableError):
    pass


class BusyError(UnavailableError):
    """retry_after_s: when to try again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ElsewhereError(UnavailableError):
    """Another process does it at this moment."""


class StorageError(UnavailableError):
    pass


class LLMError(UnavailableError):
    pass


class ToolOrderError(RefDiffError):
    pass


def unknown_product(product: str, known: Iterable[str]) -> UnknownProductError:
    """The error for a product that does not exist: lists those that do."""
    names = ", ".join(known)
    have = f"products: {names}" if names else "there are none yet"
    return UnknownProductError(
        f"no product {product!r} ({have}); create it: refdiff enroll --product {shlex.quote(product)} FOLDER"
    )


def other_encoder_note(count: int) -> str:
    """What to tell people about goldens that were enrolled with another encoder, and the way out."""
    return (
        f"{count} golden {'sample was' if count == 1 else 'samples were'} enrolled with other weights or another "
        "REFDIFF_WORKING_PX and cannot be compared; enrol them again from their stored photos: refdiff goldens reenroll"
    )


def no_goldens(
    product: str, known: Iterable[str], part_id: str | None = None, elsewhere: int = 0
) -> UnknownProductError:
    """The error for a product without golden samples in use.

    known: the products that have some. elsewhere: how many goldens of the product another encoder has.
    """
    of_part = f" (part {part_id})" if part_id else ""
    if elsewhere:
        return UnknownProductError(f"product {product!r}{of_part}: {other_encoder_note(elsewhere)}")
    names = ", ".join(known)
    others = f" (products that have some: {names})" if names else ""
    return UnknownProductError(
        f"product {product!r}{of_part} has no golden samples; "
        f"add some: refdiff enroll --product {shlex.quote(product)} FOLDER{others}"
    )


NO_MEMORY = "not enough memory; close other programs or give it more"
_SAY_NO_MEMORY = (
    "bad_alloc",
    "can't alloc",  # also "can't allocate memory"
    "can't start new thread",
    "could not allocate memory",
    "failed to allocate memory",
    "failed to map segment from shared object",
    "insufficient memory",
    "not enough memory",
    "out of memory",
    "resource temporarily unavailable",  # of a thread that cannot be started
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or of a library says that memory is short: nothing is wrong with the input then."""
    if isinstance(error, RefDiffError):
        return False
    if isinstance(error, OSError):  # without a number, what Pillow says of a damaged photo
        return error.errno == errno.ENOMEM
    # NumPy raises MemoryError; libraries written in C++ have no type for it
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SAY_NO_MEMORY)
