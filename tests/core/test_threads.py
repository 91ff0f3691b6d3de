"""One detector that several threads share, as in a web server, detects as in one thread."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import FAMILIES, family_config
from mask_builders import make_mask_batch, mask2former_config

THREADS, CALLS = 4, 12


def assert_threads_detect_as_one(model: torch.nn.Module, detect) -> None:
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        expected = detect()
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda _: detect(), range(CALLS)))
    for result in found:
        for a, b in zip(result, expected):
            assert torch.equal(a, b)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize('each_group', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_threads_detect_what_one_thread_detects(family, each_group):
    config = family_config(family)
    config['test_cfg'].update(each_group=each_group, query_group=1)
    model = perturbed(build(config)).eval()

    def detect():
        inputs, samples = make_batch()
        return [x for sample in model.predict(inputs, samples, rescale=False)
                for x in (sample.pred_instances.scores, sample.pred_instances.bboxes)]

    assert_threads_detect_as_one(model, detect)


def test_threads_segment_what_one_thread_segments():
    model = perturbed(build(mask2former_config())).eval()

    def segment():
        samples = model.predict(*make_mask_batch())
        return [x for sample in samples for x in (sample.pred_instances.scores,
                                                  sample.pred_instances.masks)]

    assert_threads_detect_as_one(model, segment)
