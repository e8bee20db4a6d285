import pytest


@pytest.fixture(autouse=True)
def no_pictures_in_cards(monkeypatch):
    """Runs in this process write their card without pictures, which take as long as a training; see test_plots.py."""
    monkeypatch.setattr("modeling_layerpool.publishing.model_card.draw", lambda path, *args: None)
