"""The pytest fixture `sigstore`: one instance for the whole run."""

from __future__ import annotations

from typing import Iterator

import pytest

import attestrytest


@pytest.fixture(scope="session")
def sigstore() -> Iterator[attestrytest.Sigstore]:
    with attestrytest.start() as running:
        yield running
