"""Bundles with a model repository; the encoder is small and random, and so is the tokenizer's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_support import make_bundle, save_bert_tokenizer

from mra_export.bundle.manifest import Bundle


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")


@pytest.fixture(scope="session")
def bundle(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tokenizer_files, tmp_path_factory.getbasetemp(), pooled=True)


@pytest.fixture(scope="session")
def bare_bundle(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tokenizer_files, tmp_path_factory.getbasetemp(), pooled=False)
