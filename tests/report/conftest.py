"""What several tests of the report share."""

import pytest

from evit_mm.report import charts


@pytest.fixture
def drawn(monkeypatch):
    """The figures in the order in which they are drawn."""
    figures, svg = [], charts._svg
    monkeypatch.setattr(charts, '_svg', lambda figure: figures.append(figure) or svg(figure))
    return figures
