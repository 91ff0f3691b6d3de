"""One detector that several threads share, as in a web server, detects as in one thread."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import build, perturbed
from family_builders import ALL, batch_of, config_of

THREADS, CALLS = 4, 12


@torch.no_grad()
@pytest.mark.parametrize('family, each_group', [
    *((family, False) for family in ALL), ('conditional', True), ('dino', True)])
def test_threads_detect_what_one_thread_detects(family, each_group):
    config = config_of(family)
    config.test_cfg.update(each_group=each_group, query_group=1)
    model = perturbed(build(config)).eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}

    @torch.no_grad()
    def detect():
        found = [sample.pred_instances for sample in model.predict(*batch_of(family))]
        return [y for x in found for y in (x.scores, x.masks if 'masks' in x else x.bboxes)]

    expected = detect()
    with ThreadPoolExecutor(THREADS) as pool:
        for result in pool.map(lambda _: detect(), range(CALLS)):
            assert all(map(torch.equal, result, expected))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
