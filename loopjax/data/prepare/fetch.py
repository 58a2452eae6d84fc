"""Texts of a dataset that has only their names: each is fetched from PREFIX + name, gzipped.

python-edu of the SmolLM corpus names files of Software Heritage's public bucket.
"""

import collections
import concurrent.futures
import gzip
import http.client
import itertools
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

from loopjax.data.prepare import readers
from loopjax.errors import UserError, first_line

THREADS = 64  # many, because they only wait for the network
TRIES = 6
TIMEOUT = 30.0  # seconds
# S3 answers 403 for a missing file if listing is not allowed.
MISSING = (403, 404, 410)
SURE = 100  # missing texts at the start after which the prefix is taken to be wrong


def documents(named, prefix: str, limit: int = readers.MAX_DOCUMENT, pause: float = 1.0):
    """Yields (text or None if it does not exist, position) for (name, position), in order.

    `limit` is the largest text in bytes, `pause` the wait after a first failure in seconds; it
    doubles. Raises UserError if a text cannot be fetched, or if none of the first 100 exists.
    """
    fetched = 0
    missing = 0
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        waiting = collections.deque()

        def start(items):
            for name, position in items:
                waiting.append((threads.submit(_fetch, prefix + name, limit, pause), position))

        named = iter(named)
        try:
            start(itertools.islice(named, 4 * THREADS))
            while waiting:
                future, position = waiting.popleft()
                text = future.result()
                fetched += text is not None
                missing += text is None
                if not fetched and missing == SURE:
                    raise UserError(f"none of the first {SURE} texts exists at {prefix}")
                yield text, position
                start(itertools.islice(named, 1))
        finally:
            for future, _ in waiting:
                future.cancel()


def _fetch(url: str, limit: int, pause: float) -> str | None:
    url = urllib.parse.quote(url, safe=":/?&=%")
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                data = gzip.GzipFile(fileobj=response).read(limit + 1)
                if len(data) > limit:
                    raise readers.too_long(url, "the text", limit)
                return data.decode("utf-8", errors="ignore")
        except UserError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in MISSING:
                return None
            last = error
        except (OSError, EOFError, http.client.HTTPException, zlib.error, ValueError) as error:
            last = error
    raise UserError(f"{url} cannot be fetched: {first_line(last)}")
