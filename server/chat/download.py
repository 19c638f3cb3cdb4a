"""Fetching a photo from a chat platform: no further than it says, no larger than the limits."""

from __future__ import annotations

import httpx2

from refdiff.model.errors import InputError

_TIMEOUT_S = 30.0


def download(url: str, name: str, platform: str, headers: dict[str, str], max_bytes: int) -> bytes:
    """The bytes of a file. The caller has checked that the address is the platform's; redirects are not followed.

    Raises InputError, with what the person who sent the photo can do.
    """
    data = bytearray()
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=False) as response:
            if response.status_code != 200:
                raise InputError(
                    f"{platform} does not give the photo {name} away (HTTP {response.status_code}); send it again, and "
                    "see that the bot is in the channel and may read files"
                )
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise InputError(f"the photo {name} has more than {max_bytes:,} bytes; send a smaller one")
    except httpx2.HTTPError as e:
        raise InputError(
            f"the photo {name} could not be fetched from {platform} ({type(e).__name__}); send it again"
        ) from e
    return bytes(data)
