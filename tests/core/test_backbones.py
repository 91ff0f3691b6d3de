"""Backbones have no parameters that nothing reaches."""
import pytest
import torch
from mmdet.models.backbones import MobileNetV2

from groupdetr_mmdet.backbones import EndingMobileNetV2


@pytest.mark.parametrize('out_indices', [(4, ), (2, 4), (7, )])
def test_mobilenet_ends_with_its_last_output(out_indices):
    torch.manual_seed(0)
    whole, ending = (backbone(out_indices=out_indices, norm_eval=False)
                     for backbone in (MobileNetV2, EndingMobileNetV2))
    ending.load_state_dict(whole.state_dict())
    for backbone in (whole, ending):
        backbone.eval()
    image = torch.rand(1, 3, 64, 64)
    for mine, theirs in zip(ending(image), whole(image)):
        assert torch.equal(mine, theirs)
    ending.train()
    sum(x.sum() for x in ending(image)).backward()
    assert all(x.grad is not None for x in ending.parameters())
    unused = sum(x.numel() for x in whole.parameters()) - sum(
        x.numel() for x in ending.parameters())
    assert (unused > 0) == (out_indices != (7, ))
