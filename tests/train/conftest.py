"""The bundled vocabulary, for the trainer's tests."""

from pathlib import Path

import pytest

import ossia.demo
from ossia.harmony import Tokenizer


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    return Path(ossia.demo.__file__).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary)
