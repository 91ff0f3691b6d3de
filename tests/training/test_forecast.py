"""The forecast of memory by groups at once."""
import pytest
from builders import build, make_batch
from family_builders import family_config

from groupdetr_mmdet.training.dry_run import Forecast, kept_bytes, make_forecast

GIB = 2**30


@pytest.mark.parametrize('family', ['conditional', 'two_stage', 'dino'])
def test_a_group_adds_what_each_group_adds(family):
    """What all K groups keep is what one keeps and K - 1 times what the forecast says."""
    inputs, samples = make_batch()
    config = dict(family_config(family, 5), data_preprocessor=dict(
        type='DetDataPreprocessor', pad_size_divisor=1))
    model, alone = build(config), build(dict(config, num_query_groups=1))
    one, all_groups = (kept_bytes(lambda x=x: x.loss(inputs, samples)) for x in (alone, model))
    sizes = [sample.img_shape for sample in samples]
    forecast = make_forecast(model, dict(
        inputs=[x[:, :h, :w] for x, (h, w) in zip(inputs, sizes)], data_samples=samples), 0)
    assert forecast[1:2] + forecast[3:] == (5, 5)
    assert one + 4 * forecast.group == pytest.approx(all_groups, rel=.05)
    assert model.groups_at_once is None and len(model.decoded_groups) == 5


def test_what_fits():
    forecast = Forecast(peak=20 * GIB, measured_groups=11, group=GIB, num_query_groups=11)
    assert (forecast.peak_of(1), forecast.peak_of(4)) == (10 * GIB, 13 * GIB)
    assert [forecast.fitting(x * GIB) for x in (9, 10, 13, 100)] == [None, 1, 4, 11]
    assert forecast.describe() == (
        '20.0 GiB with all 11 groups at once, 10.0 GiB with groups_at_once=1; '
        'fitting: 3 in 12 GiB, 7 in 16 GiB, 11 in 24 GiB')
    assert forecast.describe(9 * GIB).endswith('fitting: none')
    assert forecast.describe(12 * GIB).endswith('fitting: 3 in 12 GiB')


def test_no_forecast_without_groups():
    assert make_forecast(build(family_config('dab', None)), {}, 0) is None
    assert make_forecast(build(family_config('dab', 1)), {}, 0) is None


def test_no_forecast_where_groups_need_each_other():
    config = family_config('dab')
    config['train_cfg']['assigner']['type'] = 'OneToManyHungarianAssigner'
    assert make_forecast(build(config), {}, 0) is None
