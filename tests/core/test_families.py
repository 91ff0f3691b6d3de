"""What holds for groups in every family of mmdet."""
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Optional

import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import ALL, STOCK, batch_of, config_of, family_config
from mask_builders import same_points
from torch import Tensor, nn

from groupdetr_mmdet.attention import group_self_attention
from groupdetr_mmdet.errors import ConfigError

K = 3


pytestmark = pytest.mark.usefixtures('same_noise')


def make(family: str, num_query_groups: Optional[int] = K, **kwargs) -> nn.Module:
    return perturbed(build(config_of(family, num_query_groups, **kwargs)))


def predict(model: nn.Module) -> List[Tensor]:
    """Logits, and boxes or masks, of shape (num_layers, bs, num_rows, dim)."""
    if hasattr(model, 'panoptic_head'):
        logits, masks = model(*batch_of('mask2former'), mode='tensor')
        return [torch.stack(logits), torch.stack([x.flatten(2) for x in masks])]
    inputs, samples = make_batch()
    outputs = model.forward_transformer(model.extract_feat(inputs), samples)
    return model.bbox_head(outputs['hidden_states'], outputs['references'])


def predict_groups(model: nn.Module) -> List[Tensor]:
    """The same, of shape (num_layers, bs, K, rows of a group, dim)."""
    return [x.unflatten(2, (model.num_query_groups, -1)) for x in predict(model)]


def compute_losses(family: str, model: nn.Module, *args, **kwargs) -> Dict[str, Tensor]:
    torch.manual_seed(0)  # of the points of masks
    return model.loss(*batch_of(family, *args, **kwargs))


def one_group(family: str, model: nn.Module, group: int) -> nn.Module:
    alone = build(config_of(family, 1))
    alone.load_state_dict(model.stock_state_dict(group))
    return alone.train(model.training)


def decoder_of(model: nn.Module) -> nn.Module:
    head = getattr(model, 'panoptic_head', None)
    return head.transformer_decoder if head else model.decoder


def assert_equal(actual, expected, atol: float = 2e-6, rtol: float = 1e-5) -> None:
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


@torch.no_grad()
@pytest.mark.parametrize('family', ALL)
def test_moving_a_group_moves_no_other(family):
    model = make(family)
    before = predict_groups(model)
    for _, parameter in model.group_parameters():
        parameter.chunk(K)[2].add_(torch.randn(1).abs() + .1)
    for a, b in zip(before, predict_groups(model)):
        assert torch.equal(a[:, :, :2], b[:, :, :2])
        assert not torch.allclose(a[:, :, 2], b[:, :, 2], atol=1e-4)


@pytest.mark.parametrize('family', ALL)
def test_no_gradient_crosses_groups(family):
    model = make(family)
    sum(x[:, :, 1].sum() for x in predict_groups(model)).backward()
    name, parameter = next(model.group_parameters())
    if parameter.grad is not None:  # selected proposals hand no gradient to the encoder's heads
        norms = [block.norm() for block in parameter.grad.chunk(K)]
        assert norms[0] == norms[2] == 0 < norms[1], name
    assert any(p.grad is not None for p in decoder_of(model).parameters())


@torch.no_grad()
@pytest.mark.parametrize('family', ALL)
def test_all_groups_at_once_equal_each_alone(family):
    model = make(family)
    together = predict_groups(model)
    for group in range(K):
        assert_equal([x[:, :, group] for x in together], predict(one_group(family, model, group)))


@pytest.mark.parametrize('family, changes', [
    *((family, {}) for family in (*STOCK, 'mask2former')), ('mask2former', dict(num_stuff=2))])
def test_one_group_is_the_stock_detector(family, changes):
    model = make(family, 1, paired=True, **changes)
    stock = build(config_of(family, None, paired=True, **changes))
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_equal(predict(model), predict(stock))
    losses = [compute_losses(family, x, **changes) for x in (model, stock)]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(
            value.flatten(), losses[1][name].flatten(), atol=1e-5, rtol=1e-4, msg=name)
    for x in losses:
        sum(x.values()).backward()
    # Gradients that are zero but for rounding (of a key's bias) are as small as the rounding.
    rounding = 1e-7 * max(q.grad.abs().max() for q in stock.parameters() if q.grad is not None)
    for (name, p), q in zip(model.named_parameters(), stock.parameters()):
        if q.grad is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            atol = 1e-4 * q.grad.abs().max() + rounding
            torch.testing.assert_close(p.grad, q.grad, atol=atol.item(), rtol=1e-3, msg=name)
    assert_same_results(model.eval(), stock.eval(), family, **changes)


@torch.no_grad()
def assert_same_results(model: nn.Module, stock: nn.Module, family: str, **changes) -> None:
    batch, shown = batch_of(family, **changes), batch_of(family, **changes)
    for ours, theirs in zip(model.predict(*batch), stock.predict(*shown)):
        a, b = ours.pred_instances, theirs.pred_instances
        assert len(a) and torch.equal(a.labels, b.labels)
        assert_equal([a.scores], [b.scores], atol=1e-4, rtol=1e-3)
        if 'masks' in a:
            assert (a.masks != b.masks).float().mean() < 1e-3
        else:
            assert_equal([a.bboxes], [b.bboxes], atol=1e-3)
        if changes:
            segments = [x.pred_panoptic_seg.sem_seg for x in (ours, theirs)]
            assert (segments[0] == segments[1]).float().mean() > .999


@pytest.mark.parametrize('family', [*STOCK, 'mask2former'])
def test_inference_is_that_of_the_stock_detector_with_a_group(family):
    """Queries of other groups are not decoded."""
    config = config_of(family, paired=True)
    config.test_cfg.query_group = 1
    model = build(config).eval()
    stock = build(config_of(family, None, paired=True)).eval()
    stock.load_state_dict(model.stock_state_dict())
    rows = set()
    decoder_of(model).layers[0].register_forward_hook(
        lambda module, args, out: rows.add(out.size(1)))
    assert_same_results(model, stock, family)
    assert rows == {decoder_of(model).layers[0].self_attn.num_queries}


@pytest.mark.parametrize('family', ALL)
@pytest.mark.parametrize('num_gts', [(0, 0), (0, 3)])
def test_losses_of_images_without_boxes_are_the_mean_of_the_groups(monkeypatch, family, num_gts):
    """Or the decoder's their sum in a batch without boxes, where the official normalizer is 1."""
    monkeypatch.setattr(torch, 'rand', same_points())
    model = make(family)
    losses = compute_losses(family, model, num_gts=num_gts)
    alone = [compute_losses(family, one_group(family, model, i), num_gts=num_gts)
             for i in range(K)]
    for name, loss in losses.items():
        count = K if any(num_gts) or family == 'mask2former' or 'enc' in name else 1
        mean = sum(x[name] for x in alone) / count
        torch.testing.assert_close(loss.flatten(), mean.flatten(), atol=1e-5, rtol=1e-4, msg=name)
        empty = not any(num_gts) and ('cls' not in name or 'dn' in name)
        assert (loss == 0) == empty and loss >= 0, name


@pytest.mark.parametrize('family', ALL)
@pytest.mark.parametrize('num_gts', [(3, 2), (0, 0)])
def test_gradients_reach_every_parameter(family, num_gts):
    """So that DDP needs no ``find_unused_parameters``, whatever the batch."""
    model, sizes = make(family), [(64, 96)] * 2  # no padding: a proposal there has no gradient
    sum(compute_losses(family, model, sizes, num_gts).values()).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if any(num_gts):
        for name, parameter in model.group_parameters():
            assert all(block.any() for block in parameter.grad.chunk(K)), name


@pytest.mark.parametrize('family', ALL)
def test_groups_start_apart(family):
    """Groups that start equal get equal gradients and stay equal."""
    model = build(config_of(family))
    name, parameter = next(model.group_parameters())
    blocks = parameter.detach().chunk(K)
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2]), name
    alone = dict(build(config_of(family, 1)).named_parameters())[name]
    spread = torch.stack([block.std() for block in blocks])
    assert spread.mean() == pytest.approx(alone.std().item(), rel=.2)


@pytest.mark.parametrize('family', ['two_stage', 'dino'])
@pytest.mark.parametrize('old, new', [(1, 1), (None, 3), (2, 4)])
def test_the_classes_of_other_data_are_not_taken_for_groups(family, old, new):
    """An encoder head of 20 classes is not that of 4 groups of 5."""
    source = family_config(family, old)
    source['bbox_head']['num_classes'] = 20
    target = build(family_config(family, new))
    with pytest.raises(RuntimeError, match='size mismatch') as error:
        target.load_state_dict(build(source).state_dict())
    misfits = re.findall(r'size mismatch for ([\w.]+)', str(error.value))
    last = target.decoder.num_layers
    assert {f'bbox_head.cls_branches.{i}.bias' for i in range(last + 1)} <= set(misfits)


def test_self_attention_that_knows_no_groups_is_refused():
    decoder = build(family_config('deformable')).decoder
    decoder.layers[0].self_attn = nn.Identity()
    with pytest.raises(ConfigError, match='model.decoder.*Identity.*MultiheadAttention'):
        group_self_attention(decoder, 6)


@torch.no_grad()
@pytest.mark.parametrize('family, each_group', [
    *((family, False) for family in ALL), ('conditional', True), ('dino', True)])
def test_threads_detect_what_one_thread_detects(family, each_group):
    """One detector that four threads share, as in a web server."""
    config = config_of(family)
    config.test_cfg.update(each_group=each_group, query_group=1)
    model = perturbed(build(config)).eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}

    @torch.no_grad()
    def detect():
        found = [sample.pred_instances for sample in model.predict(*batch_of(family))]
        return [y for x in found for y in (x.scores, x.masks if 'masks' in x else x.bboxes)]

    expected = detect()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: detect(), range(12)):
            assert all(map(torch.equal, result, expected))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
