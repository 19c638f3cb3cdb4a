"""Download a photo from a chat platform, without redirects and up to a size limit."""

from __future__ import annotations

import httpx2

from refdiff.model.errors import InputError

_TIMEOUT_S = 30.0


def download(url: str, name: str, platform: str, headers: dict[str, str], max_bytes: int) -> bytes:
    """The bytes of a file. The caller has checked that the URL belongs to the platform; redirects are not followed.

    Raises InputError with advice for the person who sent the photo.
    """
    data = bytearray()
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=False) as response:
            if response.status_code != 200:
                raise InputError(
                    f"{platform} refuses the download of {name} (HTTP {response.status_code}); check that the bot is in the "
                    "channel and may read files, then send the photo again"
                )
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise InputError(f"the photo {name} exceeds {max_bytes:,} bytes; send a smaller one")
    except httpx2.HTTPError as e:
        raise InputError(
            f"the photo {name} could not be downloaded from {platform} ({type(e).__name__}); send it again"
        ) from e
    return bytes(data)
