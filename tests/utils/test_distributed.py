import pytest

from evit_mm.utils.distributed import is_first_process


@pytest.mark.parametrize(
    ('rank', 'slurm', 'first'),
    [
        (None, None, True),
        ('0', None, True),
        ('1', None, False),
        (None, '0', True),
        (None, '2', False),
        ('0', '2', True),  # torchrun inside a job of Slurm
        ('1', '0', False),
        ('10', '0', False),
    ],
)
def test_the_launchers_rank_is_asked_before_slurms(rank, slurm, first, monkeypatch):
    for name, value in (('RANK', rank), ('SLURM_PROCID', slurm)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert is_first_process() is first
