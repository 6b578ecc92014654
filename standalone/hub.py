"""One file from the Hugging Face hub, resumed where an earlier attempt ended.

huggingface_hub makes addresses, headers, short retries and the progress bar, and honours
`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_DOWNLOAD_TIMEOUT`. Its `hf_hub_download` is not used: from
version 1.18 on it deletes an interrupted download, and it replaces an existing file of that name.
Its `http_get` resumes; the part is kept here, in `NAME.part`.
"""

from __future__ import annotations

import errno
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from ..multitalk_core.errors import MultiTalkError
from .manifest import ModelFile

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILURES = (OSError, HTTPError)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20


class Remote(NamedTuple):
    """What the hub states of a file.

    Attributes:
        url: Where the bytes are, at a fixed commit.
        size: In bytes.
        sha256: Sum of the content; `None` if the hub states none.
    """

    url: str
    size: int
    sha256: str | None


class Hub:
    """The hub, or a mirror of it.

    Attributes:
        endpoint: Its address; by default that of `HF_ENDPOINT`.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        self._headers: dict[str, str] = build_hf_headers(library_name="multitalk")

    def ask(self, file: ModelFile) -> Remote:
        """Ask for size and sum of a file.

        Raises:
            MultiTalkError: If the hub does not answer, or the file is not the one of the manifest.
        """
        try:
            found = get_hf_file_metadata(self._url(file, file.revision))
        except _FAILURES as reason:
            raise MultiTalkError(
                f"{self.endpoint} does not give {file.repository}/{file.path}: {_line(reason)}. "
                "Check the connection, or set HF_ENDPOINT to a mirror of the hub."
            ) from reason
        if found.size is None or found.commit_hash is None:
            raise MultiTalkError(
                f"{self.endpoint} says neither size nor commit of {file.repository}/{file.path}, "
                "so it is no Hugging Face hub. Correct HF_ENDPOINT."
            )
        stated = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
        for what, ours, theirs in (
            ("size", file.bytes, found.size),
            ("sha256", file.sha256, stated),
        ):
            if ours and theirs and ours != theirs:
                raise MultiTalkError(
                    f"{file.name} has the {what} {theirs} at {self.endpoint}, but {ours} is "
                    "expected: the file was replaced there. Nothing was downloaded; get a newer "
                    "version of this package, or use another mirror."
                )
        url = self._url(file, found.commit_hash)
        return Remote(url, found.size, file.sha256 or stated)

    def fetch(self, remote: Remote, path: Path) -> str:
        """Download a file to `path`, where none may be; give its sum.

        Until size and sum are right the bytes are in `part_of(path)`. They stay there if the
        connection breaks, and are removed if the disk is full or the sum is wrong.

        Raises:
            MultiTalkError: If the connection breaks, the disk is full or the sum is wrong.
        """
        part = part_of(path)
        self._receive(remote, part, name=path.name)
        found = sha256_of(part)
        if size_of(part) != remote.size or found != (remote.sha256 or found):
            size = size_of(part)
            part.unlink()
            raise MultiTalkError(
                f"{path.name}: {self.endpoint} sent {size:,} bytes with the sha256 {found}, but "
                f"{remote.size:,} bytes with {remote.sha256 or 'any'} are right. They were "
                "removed; run the command again, or use another mirror (HF_ENDPOINT)."
            )
        part.rename(path)
        return found

    def _receive(self, remote: Remote, part: Path, *, name: str) -> None:
        """Fill the part; try again for as long as every attempt brings something."""
        if size_of(part) > remote.size:
            part.unlink()  # of another version of the file
        while (have := size_of(part)) < remote.size:
            try:
                with part.open("ab") as out:
                    http_get(
                        remote.url,
                        out,
                        resume_size=have,
                        headers=self._headers,
                        expected_size=remote.size,
                        displayed_filename=name,
                    )
            except _FAILURES as reason:
                if getattr(reason, "errno", None) in _FULL:
                    part.unlink()
                    raise MultiTalkError(
                        f"The disk became full while {name} was written; its bytes were removed. "
                        f"Free {gigabytes(remote.size)} in {part.parent} and run the command again."
                    ) from reason
                if size_of(part) <= have:
                    raise MultiTalkError(
                        f"{name}: the connection to {self.endpoint} ended after {gigabytes(have)} "
                        f"of {gigabytes(remote.size)} ({_line(reason)}). They are kept in "
                        f"{part.name}; run the command again, and it goes on from there."
                    ) from reason

    def _url(self, file: ModelFile, revision: str) -> str:
        return hf_hub_url(file.repository, file.path, revision=revision, endpoint=self.endpoint)


def part_of(path: Path) -> Path:
    """Give where the bytes of an unfinished download are."""
    return path.with_name(f"{path.name}.part")


def size_of(path: Path) -> int:
    """Give the size of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def sha256_of(path: Path) -> str:
    """Compute the sum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def gigabytes(size: int) -> str:
    """Write a size in GB, a small one in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _line(reason: Exception) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
