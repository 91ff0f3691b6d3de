"""What holds for groups in every family of mmdet."""
import re
from typing import List, Optional

import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import ALL, FAMILIES, STOCK, batch_of, config_of, family_config
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import Tensor, nn

from groupdetr_mmdet.attention import GroupMultiheadAttention, group_self_attention
from groupdetr_mmdet.errors import ConfigError

K = 3


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


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


def one_group(family: str, model: nn.Module, group: int) -> nn.Module:
    alone = build(config_of(family, 1))
    alone.load_state_dict(model.stock_state_dict(group))
    return alone.train(model.training)


def assert_equal(actual, expected, atol: float = 2e-6) -> None:
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


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


def decoder_of(model: nn.Module) -> nn.Module:
    head = getattr(model, 'panoptic_head', None)
    return head.transformer_decoder if head else model.decoder


class JointAttention(nn.Module):
    """The stock self-attention of all rows of a layer, with a mask of K blocks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        is_multihead = isinstance(layer.self_attn, GroupMultiheadAttention)
        stock = MultiheadAttention if is_multihead else ConditionalAttention
        self.attention = stock(**layer.self_attn_cfg).train(layer.training)
        self.attention.load_state_dict(layer.self_attn.state_dict())
        self.group_size = layer.self_attn.num_queries

    def forward(self, *args, attn_mask: Optional[Tensor] = None, **kwargs) -> Tensor:
        if attn_mask is None:
            attn_mask = torch.zeros(self.group_size, self.group_size, dtype=torch.bool)
        joint = ~torch.block_diag(*[~attn_mask] * K)
        return self.attention(*args, attn_mask=joint, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize('family', ALL)
def test_fold_equals_a_block_diagonal_mask(family):
    model = make(family)
    folded = predict(model)
    for layer in decoder_of(model).layers:
        layer.self_attn = JointAttention(layer)
    assert_equal(folded, predict(model))


@pytest.fixture
def pair(family):
    """One group, and the stock detector with the same weights."""
    model = make(family, 1, paired=True)
    stock = build(config_of(family, None, paired=True))
    stock.load_state_dict(model.state_dict())
    return model, stock


@pytest.mark.parametrize('family', STOCK)
def test_one_group_is_the_stock_detector(pair):
    model, stock = pair
    shapes = [{name: x.shape for name, x in m.state_dict().items()} for m in pair]
    assert shapes[0] == shapes[1]
    with torch.no_grad():
        assert_equal(predict(model), predict(stock))
    losses, expected = (m.loss(*make_batch()) for m in pair)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(
            value.flatten(), expected[name].flatten(), atol=1e-5, rtol=1e-4, msg=name)
    for x in (losses, expected):
        sum(x.values()).backward()
    # Gradients that are zero but for rounding (those of a key's bias) are as small as it.
    rounding = 1e-7 * max(q.grad.abs().max() for q in stock.parameters() if q.grad is not None)
    for (name, p), q in zip(model.named_parameters(), stock.parameters()):
        if q.grad is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            atol = 1e-4 * q.grad.abs().max() + rounding
            torch.testing.assert_close(p.grad, q.grad, atol=atol.item(), rtol=1e-3, msg=name)


@torch.no_grad()
@pytest.mark.parametrize('family', STOCK)
def test_inference_is_that_of_the_stock_detector_with_a_group(family, group=1):
    config = config_of(family, paired=True)
    config.test_cfg.query_group = group
    model = build(config).eval()
    stock = build(config_of(family, None, paired=True)).eval()
    stock.load_state_dict(model.stock_state_dict())
    results = [m.predict(*make_batch(), rescale=False) for m in (model, stock)]
    for ours, theirs in zip(*results):
        assert len(ours.pred_instances) == 20
        assert torch.equal(ours.pred_instances.labels, theirs.pred_instances.labels)
        assert_equal([ours.pred_instances.bboxes], [theirs.pred_instances.bboxes], atol=1e-3)
        assert_equal([ours.pred_instances.scores], [theirs.pred_instances.scores])


@pytest.mark.parametrize('num_gts', [(0, 0), (0, 3)])
def test_images_without_boxes(family, num_gts):
    losses = make(family).loss(*make_batch(num_gts=num_gts))
    for name, loss in losses.items():
        if not any(num_gts) and ('cls' not in name or 'dn' in name):
            assert loss == 0, name
        else:
            assert loss > 0, name
    sum(losses.values()).sum().backward()


@pytest.mark.parametrize('num_gts', [(3, 2), (0, 0)])
def test_gradients_reach_every_parameter(family, num_gts):
    """So that DDP needs no ``find_unused_parameters``, whatever the batch."""
    model, sizes = make(family), [(64, 96)] * 2  # no padding: a proposal there has no gradient
    sum(model.loss(*make_batch(sizes, num_gts)).values()).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if any(num_gts):
        for name, parameter in model.group_parameters():
            assert all(block.any() for block in parameter.grad.chunk(K)), name


def test_groups_start_apart(family):
    """Groups that start equal get equal gradients and stay equal."""
    model = build(family_config(family))
    name, parameter = next(model.group_parameters())
    blocks = parameter.detach().chunk(K)
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2]), name
    spread = [block.std() for block in blocks]
    alone = dict(build(config_of(family, 1)).named_parameters())[name]
    assert torch.stack(spread).mean() == pytest.approx(alone.std().item(), rel=.2)


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
def test_forward_in_tensor_mode_gives_one_group(family):
    model = make(family).eval()
    logits, boxes = model(*make_batch(), mode='tensor')
    rows = logits.size(2)
    assert rows == boxes.size(2) == model.group_size
