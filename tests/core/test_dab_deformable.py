"""DAB-Deformable-DETR; what holds for all families is in test_families.py."""
import pytest
import torch
from builders import build, make_batch
from family_builders import family_config
from mmdet.models.layers import inverse_sigmoid

from groupdetr_mmdet.errors import ConfigError


@torch.no_grad()
def test_it_is_dino_with_learned_anchors():
    """mmdet's DINO, with an image's selected proposals as the anchors."""
    dino = build(family_config('dino', None, width=256)).eval()
    inputs, samples = make_batch(sizes=[(64, 96)], num_gts=[2])
    memory, _ = dino.pre_transformer(dino.extract_feat(inputs), samples)
    proposals, _ = dino.pre_decoder(**dino.forward_encoder(**memory))
    model = build(family_config('dab_deformable', 1, width=256)).eval()
    state = {name: x for name, x in dino.state_dict().items() if name in model.state_dict()}
    anchors = inverse_sigmoid(proposals['reference_points'][0], eps=1e-6)
    state['query_embedding.weight'] = torch.cat([proposals['query'][0], anchors], 1)
    model.load_state_dict(state)
    left = dino.state_dict().keys() - state.keys()
    assert {name.partition('.')[0] for name in left} == {
        'memory_trans_fc', 'memory_trans_norm', 'dn_query_generator', 'bbox_head'}
    assert all('branches.2.' in name for name in left if name.startswith('bbox_head'))
    for a, b in zip(*(m(inputs, samples, mode='tensor') for m in (model, dino))):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('change', [dict(with_box_refine=False), dict(as_two_stage=True)])
def test_what_it_cannot_be(change):
    with pytest.raises(ConfigError, match='model.with_box_refine=.*GroupDeformableDETR'):
        build(dict(family_config('dab_deformable'), **change))
