"""The baselines of the benchmark compute what our detector computes, and the command runs."""
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Dict

import pytest
import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

import benchmarks.__main__ as command
from benchmarks import measure
from benchmarks.cases import Benchmark, Case, Shapes, build_model, share_weights
from benchmarks.measure import Stopwatch, count_flops, peak_memory
from benchmarks.reach import Row
from benchmarks.report import describe_shapes
from benchmarks.suite import Results
from groupdetr_mmdet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device('cpu')
SHAPES = Shapes(batch_size=2, image_size=(64, 96), memory_size=(4, 6), padded=True)


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
    cases = [Case(part, mode, None, k, 10, 4, attn_drop=0.) for mode, k in variants]
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


@pytest.mark.parametrize('family', ['conditional', 'dab', 'deformable', 'two_stage', 'dino'])
def test_inference_of_groups_is_that_of_stock(cfg, family):
    theirs, ours = make_benchmarks(
        family_cfg(cfg, family), 'inference', ('stock', 1), ('ours', 3))
    torch.testing.assert_close(ours.predict(), theirs.predict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('part', ['decoder', 'criterion'])
@pytest.mark.parametrize('family', ['deformable', 'dino'])
def test_a_part_that_does_not_stand_alone_is_refused(cfg, family, part):
    with pytest.raises(ConfigError, match=f'--parts {part}: .* choose --parts step inference'):
        make_benchmarks(family_cfg(cfg, family), part, ('ours', 1))


class Clock:
    """A time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.

    def perf_counter(self) -> float:
        return self.now

    def advance(self, seconds: float) -> Callable:
        """Return a hook of whatever kind that lets some time pass."""

        def hook(*args, **kwargs) -> None:
            self.now += seconds

        return hook


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, 'time', clock)
    return clock


def let_parts_take(benchmark: Benchmark, clock: Clock, match: str) -> Dict[str, float]:
    """Let each part of a step take seconds of its own: 1, 2, 4, ...; return what is expected."""
    model, criterion = benchmark.model, type(benchmark.head).loss_by_feat
    model.backbone.register_forward_hook(clock.advance(1))
    model.encoder.register_forward_hook(clock.advance(2))
    model.decoder.register_forward_hook(clock.advance(4))
    next(model.decoder.parameters()).register_hook(clock.advance(8))
    if hasattr(benchmark, 'optim'):
        benchmark.optim.optimizer.register_step_post_hook(clock.advance(16))
    matched = getattr(benchmark.head.assigner, match)

    def matching(*args, **kwargs) -> object:
        clock.now += 1 / 64
        return matched(*args, **kwargs)

    def supervising(*args, **kwargs) -> object:
        clock.now += 32
        return criterion(benchmark.head, *args, **kwargs)

    setattr(benchmark.head.assigner, match, matching)
    benchmark.head.loss_by_feat = supervising
    return dict(backbone=1, encoder=2, decoder=4, backward=8, optimizer=16, criterion=32)


@pytest.mark.parametrize('mode', ['ours', 'stock'])
@pytest.mark.parametrize('family', ['conditional', 'dab', 'deformable', 'two_stage', 'dino'])
def test_parts_of_every_family_are_told_apart(cfg, clock, family, mode):
    benchmark, = make_benchmarks(family_cfg(cfg, family), 'step', (mode, 1))
    expected = let_parts_take(benchmark, clock, 'match_layers' if mode == 'ours' else 'assign')
    seconds = benchmark()
    matching = seconds.pop('matching')
    assert matching > 0
    expected['criterion'] += matching
    assert seconds == dict(expected, total=sum(expected.values()))


@pytest.mark.parametrize('part, laps', [
    ('step', ['backbone', 'encoder', 'decoder', 'backward', 'optimizer', 'criterion']),
    ('decoder', ['decoder', 'backward', 'criterion']),
])
@pytest.mark.parametrize('mode, match', [('plain', 'assign'), ('ours', 'match_layers')])
def test_each_part_gets_its_own_time(cfg, clock, part, laps, mode, match):
    benchmark, = make_benchmarks(cfg, part, (mode, 3))
    times = let_parts_take(benchmark, clock, match)
    seconds = benchmark()
    expected = {lap: times[lap] for lap in laps}
    expected['criterion'] += seconds.pop('matching')
    assert seconds == dict(expected, total=sum(expected.values()))


def test_what_turns_compute_again_counts_as_backward(cfg):
    benchmark, = make_benchmarks(cfg, 'step', ('turns', 3))
    watch = Stopwatch(CPU)
    benchmark.run_training(watch)
    names = [name for name, *_ in watch.spans if name != 'matching']
    assert names == ['backbone', 'encoder', *['decoder', 'criterion'] * 3, 'backward', 'optimizer']


def test_a_run_leaves_no_gradients_and_no_timer(cfg):
    benchmark, = make_benchmarks(cfg, 'decoder', ('ours', 3))
    benchmark()
    assert all(p.grad is None for p in benchmark.model.parameters())
    assert benchmark.given[0].grad is None
    assert 'match_layers' not in vars(benchmark.head.assigner)


def test_stopwatch_adds_what_comes_twice():
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.within('inner'):
            pass
        watch.lap('outer')
    seconds = watch.seconds()
    assert len(watch.spans) == 4 and seconds.keys() == {'inner', 'outer', 'total'}
    assert 0 < seconds['inner'] < seconds['outer'] == pytest.approx(seconds['total'])


def test_peak_memory_sees_what_is_freed_before_the_end():
    size = 64 * 2**20
    peak = peak_memory(lambda: torch.ones(size // 4).sum().item(), CPU)
    assert peak == pytest.approx(size, rel=.2)


def test_flops_are_counted_forward_and_backward():
    x, weight = torch.randn(4, 5), torch.randn(5, 6, requires_grad=True)
    assert count_flops(lambda: (x @ weight).sum().backward()) == 2 * (2 * 4 * 5 * 6)


@pytest.mark.parametrize('parts, memory', [
    (['step', 'criterion', 'inference'], ''), (['step', 'decoder'], 'memory 4 x 6, ')])
def test_the_memory_is_said_where_a_part_is_given_one(parts, memory):
    assert describe_shapes(asdict(SHAPES), parts) == f'2 images of 64 x 96, {memory}with padding'


def run_tool(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / 'tools/benchmark.py'), *map(str, args)],
                          capture_output=True, text=True, timeout=300)


def set_arguments(monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmarks', *map(str, args)])


@pytest.fixture
def config_file(cfg, tmp_path) -> Path:
    cfg.custom_imports = dict(imports=['groupdetr_mmdet'])
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


def test_command_measures_modes_side_by_side(config_file, tmp_path):
    out = tmp_path / 'out.json'
    result = run_tool(config_file, '--parts', 'decoder', '--modes', 'plain', 'ours:bf16', 'stock',
                      '--groups', 2, 3, '--memory-size', 2, 3, '--rounds', 2, '--threads', 1,
                      '--json', out)
    assert result.returncode == 0, result.stderr
    record = json.loads(out.read_text())
    cases = {(case['name'], case['num_groups']): case for case in record['cases']}
    assert set(cases) == {('plain', 2), ('ours:bf16', 2), ('plain', 3), ('ours:bf16', 3),
                          ('stock', 1)}
    assert all(len(case['runs']) == 2 and min(case['runs']) > 0 for case in cases.values())
    assert cases['plain', 3]['ratio'] == 1
    assert cases['plain', 3]['flops'] > cases['plain', 2]['flops'] > cases['stock', 1]['flops']
    assert set(record['gemm_flops_per_second']) == {'float32', 'bf16'}
    assert record['machine']['threads'] == 1
    assert 'ours:bf16' in result.stdout and 'matching' in result.stdout


def test_the_detector_chooses_k(cfg, config_file):
    cfg.model.pop('num_query_groups')
    cfg.dump(config_file)
    assert command.load_config(config_file).model.num_query_groups == 11


def test_a_detector_without_groups(cfg, config_file, monkeypatch):
    cfg.model.type = 'ConditionalDETR'
    cfg.dump(config_file)
    set_arguments(monkeypatch, config_file)
    with pytest.raises(ConfigError, match='CONFIG: model.type=ConditionalDETR has no groups'):
        command.main()


@pytest.mark.slow
def test_command_measures_the_whole_table(config_file, tmp_path):
    out = tmp_path / 'out.json'
    result = run_tool(config_file, '--table', '--image-size', 64, 96, '--rounds', 1,
                      '--threads', 1, '--json', out)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())['reach']
    assert len(rows) == 7
    assert all(row['value'] > 0 for row in rows)


@pytest.mark.parametrize('seconds, more, reached', [
    (3., True, True), (2., True, True), (1.9, True, False),
    (1.9, False, True), (2., False, True), (3., False, False),
])
def test_a_bound_is_reached_from_its_side(seconds, more, reached):
    slow, quick = Case('step', 'plain', None, 3, 10, 4), Case('step', 'ours', None, 3, 10, 4)
    results = Results(runs={slow: [dict(total=2 * seconds)], quick: [dict(total=1.)]})
    row = Row('plain / (2 x ours)', slow, quick, bound=2., more=more, factor=2)
    assert row.record(results)['reached'] == reached


@pytest.mark.parametrize('args, sentence', [
    (['--modes', 'fast'], '--modes: fast is none'),
    (['--modes', 'ours:int8'], '--modes: ours:int8 is none'),
    (['--json', '.'], '--json . is a folder and must be a file'),
    (['--table', '--groups', '1', '2'], '--groups: [1, 2] are several'),
])
def test_mistakes_get_one_sentence(config_file, monkeypatch, args, sentence):
    set_arguments(monkeypatch, config_file, *args)
    with pytest.raises(ConfigError) as error:
        command.main()
    assert str(error.value).startswith(sentence)
