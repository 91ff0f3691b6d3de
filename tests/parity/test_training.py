"""200 optimizer steps of the official code are met by the shipped recipe and our runner.

In float64, where neither machine nor order of the sums matters.
"""
from pathlib import Path
from typing import List

import pytest
import torch
from parity import golden
from parity.case import PARITY, from_official
from parity.training import Trained, draw_scenes, train
from running import fork_ranks, free_port

LONG, SHORT = PARITY / 'train_A', PARITY / 'train_C'


def assert_steps(found: List[dict], stem: Path) -> None:
    """Loss, gradient norm and learning rate of the steps that were taken."""
    recorded = golden.load(stem)[0]['trajectory']
    for step in found:
        expected = recorded[step['iteration']]
        for name in ('loss', 'grad_norm', 'lr'):
            assert step[name] == pytest.approx(expected[name], rel=1e-9), (step, name)


def assert_weights(trained: Trained, stem: Path) -> None:
    """Norm of every trained parameter, how far it went, and what the detector then predicts."""
    spec, arrays = golden.load(stem)
    weights, start = trained.model.state_dict(), trained.start
    for official, norm in spec['norms'].items():
        name = next(iter(from_official({official: None})))
        moved = (weights[name] - start[name].double()).norm().item()
        assert weights[name].norm().item() == pytest.approx(norm, rel=1e-9), name
        assert moved == pytest.approx(spec['moved'][official], rel=1e-9), name
    model = trained.model.eval()
    scenes = draw_scenes(stem)[:2]
    with golden.float64(), torch.no_grad():
        batch = model.data_preprocessor(dict(inputs=[x for x, _ in scenes],
                                             data_samples=[x for _, x in scenes]))
        logits, boxes = model(batch['inputs'], batch['data_samples'], mode='tensor')
    for found, name in ((logits, 'eval_logits'), (boxes, 'eval_boxes')):
        torch.testing.assert_close(found[-1], torch.as_tensor(arrays[name]), atol=1e-7, rtol=0)


@pytest.mark.parametrize('stem, groups_at_once', [
    (SHORT, None), (SHORT, 1), pytest.param(LONG, None, marks=pytest.mark.slow)],
    ids=['48 steps', '48 steps in turns', '200 steps'])
def test_every_step_is_the_official_one(stem, groups_at_once, tmp_path):
    trained = train(stem, tmp_path, groups_at_once)
    assert len(trained.steps) == len(golden.load(stem)[0]['trajectory'])
    assert_steps(trained.steps, stem)
    assert_weights(trained, stem)


def test_a_resumed_training_goes_on_as_the_official_one(tmp_path):
    """It stops in the middle of an epoch, and goes on from the checkpoint before."""
    train(SHORT, tmp_path, stop_after=25)
    trained = train(SHORT, tmp_path, resume=True)
    assert trained.steps[0]['iteration'] == 19
    assert_steps(trained.steps, SHORT)
    assert_weights(trained, SHORT)


def train_rank(rank: int, port: str, folder: str) -> None:
    monkeypatch = pytest.MonkeyPatch()
    for name, value in dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1',
                            MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    torch.set_num_threads(1)
    trained = train(SHORT, Path(folder), launcher='pytorch')
    assert_steps(trained.steps, SHORT)
    assert_weights(trained, SHORT)
    Path(folder, f'{rank}.steps').write_text(str(len(trained.steps)))


def test_two_processes_of_one_image_each_take_the_official_steps(tmp_path):
    fork_ranks(train_rank, free_port(), str(tmp_path))
    assert [Path(tmp_path, f'{rank}.steps').read_text() for rank in range(2)] == ['48', '48']
