"""The fold of the groups into the batch; test_families.py has what follows for every detector."""
import pytest
import torch

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.groups import count_groups, fold_groups, unfold_groups

K, N = 3, 10


def test_fold_keeps_images_and_groups_apart():
    bs, width = 2, 4
    image, group, query = torch.meshgrid(
        torch.arange(bs), torch.arange(K), torch.arange(N), indexing='ij')
    x = torch.stack([image, group, query, query], -1).reshape(bs, K * N, width)
    folded = fold_groups(x, N)
    assert folded.shape == (bs * K, N, width)
    for entry, rows in enumerate(folded):
        assert (rows[:, 0] == entry // K).all() and (rows[:, 1] == entry % K).all()
        assert rows[:, 2].tolist() == list(range(N))
    assert torch.equal(unfold_groups(folded, bs), x)
    assert folded.data_ptr() == x.data_ptr(), 'the fold is a view'


def test_rows_that_do_not_divide_are_refused():
    assert count_groups(K * N, N) == K
    with pytest.raises(ConfigError, match='31 predictions .* num_queries=10'):
        count_groups(K * N + 1, N)
