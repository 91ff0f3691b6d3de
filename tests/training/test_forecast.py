"""The forecast of memory by groups at once."""
import pytest
from builders import build, make_batch
from family_builders import family_config

from groupdetr_mmdet.training.dry_run import (GIB, bytes_of_a_group, describe_groups,
                                              kept_bytes)


@pytest.mark.parametrize('family', ['conditional', 'two_stage', 'dino'])
def test_a_group_adds_what_each_group_adds(family):
    """What all K groups keep is what one keeps and K - 1 times what the forecast counts."""
    inputs, samples = make_batch()
    config = dict(family_config(family, 5), data_preprocessor=dict(
        type='DetDataPreprocessor', pad_size_divisor=1))
    model, alone = build(config), build(dict(config, num_query_groups=1))
    one, all_groups = (kept_bytes(lambda x=x: x.loss(inputs, samples)) for x in (alone, model))
    sizes = [sample.img_shape for sample in samples]
    group = bytes_of_a_group(model, dict(
        inputs=[x[:, :h, :w] for x, (h, w) in zip(inputs, sizes)], data_samples=samples))
    assert one + 4 * group == pytest.approx(all_groups, rel=.05)
    assert model.groups_at_once is None and len(model.decoded_groups) == 5
    assert bytes_of_a_group(alone, {}) == 0


def test_what_fits():
    """Here 9 GiB, and 1 GiB for each of 11 groups."""
    all_sizes = describe_groups(20 * GIB, GIB, 11, None)
    assert '20.0 GiB with all 11' in all_sizes and '10.0 GiB with groups_at_once=1' in all_sizes
    assert all_sizes.endswith('fitting: 3 in 12 GiB, 7 in 16 GiB, 11 in 24 GiB')
    for memory, found in ((9, 'none'), (10, '1 in 10 GiB'), (100, '11 in 100 GiB')):
        assert describe_groups(20 * GIB, GIB, 11, memory * GIB).endswith(f'fitting: {found}')


def test_no_forecast_where_groups_need_each_other():
    config = dict(family_config('dab'), separate_self_attn=False)
    assert bytes_of_a_group(build(config), {}) == 0
