from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from serve_fakes import chat_tokenizer

from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    """A model of random weights, whose greedy texts are all different, with a chat template."""
    tokenizer = chat_tokenizer("chatml")
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, max_positions=512)
    model = Decoder(traits).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return save_model(tmp_path_factory.mktemp("models") / "tiny", model, tokenizer)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests of pages; skipped where it or playwright is not there."""
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page that notes what it asks for and what goes wrong in it."""
    found = browser.new_page(locale="en-GB")
    found.asked, found.wrong = [], []
    found.on("request", lambda request: found.asked.append(request.url))
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on("console", lambda message: message.type == "error" and found.wrong.append(message.text))
    yield found
    found.close()
