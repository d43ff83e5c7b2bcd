"""Tiny models of families, and pictures to ask about."""

import pytest
from PIL import Image

import family_directory


@pytest.fixture
def tiny_family(tmp_path, monkeypatch):
    return family_directory.maker(tmp_path, monkeypatch)


@pytest.fixture
def pictures():
    return [Image.linear_gradient("L").resize((101, 67)).convert("RGB"), Image.new("RGB", (90, 140), "red")]
