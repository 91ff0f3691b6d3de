"""The baselines of the benchmark compute what our detector computes, and the command runs."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

import benchmarks.__main__
from benchmarks.cases import Benchmark, Case, Shapes, build_model, share_weights
from benchmarks.measure import peak_memory
from benchmarks.suite import Results, Row
from groupdetr_mmdet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device('cpu')
SHAPES = Shapes(batch_size=2, image_size=(64, 96))


@pytest.fixture
def cfg() -> Config:
    # Width 256, the only one of the stock decoder.
    model = detector_config(width=256, num_heads=8, num_queries=10, num_query_groups=3)
    return Config(dict(
        model=dict(model, data_preprocessor=dict(type='DetDataPreprocessor')),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=.1)),
        default_scope='mmdet'))


def make_benchmarks(cfg: Config, part: str, *variants: tuple) -> list:
    """Build a benchmark for each (mode, K), with equal weights."""
    cases = [Case(part, mode, None, k, 10, attn_drop=0.) for mode, k in variants]
    models = [build_model(cfg, case) for case in cases]
    share_weights(models)
    return [Benchmark(case, SHAPES, cfg, CPU, model) for case, model in zip(cases, models)]


def losses_and_grads(benchmark: Benchmark) -> tuple:
    model = benchmark.model.train()
    images = torch.randn(2, 3, *SHAPES.image_size, generator=torch.Generator().manual_seed(1))
    losses = model.loss(images, benchmark.samples)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('baseline, k', [('plain', 3), ('plain', 1), ('stock', 1)])
def test_baselines_give_our_losses_and_gradients(cfg, baseline, k):
    theirs, ours = make_benchmarks(cfg, 'step', (baseline, k), ('ours', k))
    (expected_losses, expected_grads), (losses, grads) = map(losses_and_grads, (theirs, ours))
    assert len(losses) == 6
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert grads.keys() == expected_grads.keys()
    # The encoder's gradients are ill-conditioned where the weights are random.
    torch.testing.assert_close(grads, expected_grads, rtol=1e-3, atol=1e-4)


def family_cfg(cfg: Config, family: str) -> Config:
    """A config of another family with the settings of ``cfg`` beside the model."""
    model = family_config(family, num_queries=10, width=256)
    return Config(dict(
        cfg, model=dict(model, data_preprocessor=dict(type='DetDataPreprocessor'))))


@torch.no_grad()
@pytest.mark.parametrize('family', ['conditional', 'dab', 'dino'])
def test_inference_of_groups_is_that_of_stock(cfg, family):
    (scores, boxes), (expected_scores, expected_boxes) = (
        x.model.eval()(x.images, x.samples, mode='tensor') for x in make_benchmarks(
            family_cfg(cfg, family), 'inference', ('stock', 1), ('ours', 3)))
    torch.testing.assert_close(scores[-1], expected_scores[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(boxes[-1], expected_boxes[-1], rtol=1e-5, atol=1e-5)


def test_a_part_that_does_not_stand_alone_is_refused(cfg):
    with pytest.raises(ConfigError, match='--parts decoder: .* choose --parts step inference'):
        make_benchmarks(family_cfg(cfg, 'dino'), 'decoder', ('ours', 1))


def test_peak_memory_sees_what_is_freed_before_the_end():
    size = 64 * 2**20
    peak = peak_memory(lambda: torch.ones(size // 4).sum().item(), CPU)
    assert peak == pytest.approx(size, rel=.2)


@pytest.fixture
def config_file(cfg, tmp_path) -> Path:
    cfg.custom_imports = dict(imports=['groupdetr_mmdet'])
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


def test_command_measures_modes_side_by_side(config_file, tmp_path):
    out = tmp_path / 'out.json'
    words = '--parts decoder --modes plain ours:bf16 stock:bf16 --groups 2 3 --image-size 64 96 ' \
        '--rounds 2 --threads 1 --json'
    result = subprocess.run([sys.executable, ROOT / 'tools/benchmark.py', config_file,
                             *words.split(), out], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    record = json.loads(out.read_text())
    cases = {(case['name'], case['num_groups']): case for case in record['cases']}
    assert set(cases) == {('plain', 2), ('ours:bf16', 2), ('plain', 3), ('ours:bf16', 3),
                          ('stock:bf16', 1)}
    assert all(len(case['runs']) == 2 and min(case['runs']) > 0 for case in cases.values())
    assert cases['plain', 2]['ratio'] == 1 and record['machine']['threads'] == 1
    assert 'ours:bf16' in result.stdout


@pytest.mark.slow
def test_command_measures_the_whole_table(config_file, tmp_path, monkeypatch):
    out = tmp_path / 'out.json'
    monkeypatch.setattr('sys.argv', [
        'benchmarks', str(config_file), '--table', '--image-size', '64', '96', '--rounds', '1',
        '--threads', '1', '--json', str(out)])
    benchmarks.__main__.main()
    rows = json.loads(out.read_text())['reach']
    assert len(rows) == 7
    assert all(row['value'] > 0 for row in rows)


@pytest.mark.parametrize('seconds, more, reached', [
    (2., True, True), (1.9, True, False), (2., False, True), (2.1, False, False)])
def test_a_bound_is_reached_from_its_side(seconds, more, reached):
    slow, quick = Case('step', 'plain', None, 3, 10), Case('step', 'ours', None, 3, 10)
    results = Results(seconds={slow: [2 * seconds], quick: [1.]})
    row = Row('plain / (2 x ours)', slow, quick, bound=2., more=more, factor=2)
    assert row.record(results)['reached'] == reached
