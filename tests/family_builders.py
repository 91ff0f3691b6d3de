"""Small models of every family, with groups or stock, and a batch for each."""
import copy
from typing import Optional

from builders import MATCH_COSTS, detector_config, make_batch
from mask_builders import make_mask_batch, mask2former_config
from mmengine.config import ConfigDict

# name -> detector without groups
STOCK = dict(
    conditional='ConditionalDETR', dab='DABDETR', dab_patterns='DABDETR', dn_off='DABDETR',
    deformable='DeformableDETR', refine='DeformableDETR', two_stage='DeformableDETR',
    tied_two_stage='DeformableDETR', dab_deformable='DABDeformableDETR', dino='DINO')
GROUP = {family: f'Group{stock}' for family, stock in STOCK.items()}
GROUP.update(dn='GroupDNDETR', dn_off='GroupDNDETR')  # off: without denoising, it is DAB-DETR
FAMILIES = tuple(x for x in GROUP if x != 'dn_off')
ALL = (*FAMILIES, 'mask2former')
# mmdet hard-codes 128 sine features a coordinate in these, so that their stock form is this wide
ONE_WIDTH = dict(conditional=256, two_stage=256, tied_two_stage=256, dino=256)


def config_of(family: str, num_query_groups: Optional[int] = 3, paired: bool = False,
              **kwargs) -> ConfigDict:
    """Config of a detector of ``ALL``; ``paired``: of a width that its stock form has, too."""
    if family == 'mask2former':
        return mask2former_config(num_query_groups, **kwargs)
    kwargs.setdefault('width', ONE_WIDTH.get(family, 32) if paired else 32)
    return ConfigDict(family_config(family, num_query_groups, **kwargs))


def batch_of(family: str, *args, **kwargs) -> tuple:
    """Images and samples as of ``builders.make_batch``, with what the family learns from."""
    return (make_mask_batch if family == 'mask2former' else make_batch)(*args, **kwargs)


def family_config(family: str, num_query_groups: Optional[int] = 3, num_queries: int = 6,
                  width: int = 32) -> dict:
    """Config of a detector of a family, or of the stock one with ``num_query_groups=None``.

    Where mmdet has none, one group is taken for it.
    """
    if family not in STOCK:
        num_query_groups = num_query_groups or 1
    if family == 'conditional':
        return detector_config(num_queries, num_query_groups, width=width)
    is_dab = GROUP[family] in ('GroupDABDETR', 'GroupDNDETR')
    make = dab_config if is_dab else deformable_config
    config = make(family, num_queries, width)
    config.update(
        type=GROUP[family], num_queries=num_queries, num_query_groups=num_query_groups,
        train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', match_costs=MATCH_COSTS)),
        test_cfg=dict(max_per_img=20))
    config['bbox_head'].update(
        type=f'{GROUP[family]}Head', num_classes=5, embed_dims=width,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2., alpha=.25, loss_weight=1.),
        loss_bbox=dict(type='L1Loss', loss_weight=5.),
        loss_iou=dict(type='GIoULoss', loss_weight=2.))
    if num_query_groups is None:
        config.pop('num_query_groups')
        config['type'] = STOCK[family]
        config['bbox_head']['type'] = f'{STOCK[family].replace("DABDef", "Def")}Head'
        config['train_cfg']['assigner']['type'] = 'HungarianAssigner'
    return copy.deepcopy(config)


def dab_config(family: str, num_queries: int, width: int) -> dict:
    """The parts of a DAB-DETR that differ from a Conditional DETR's."""
    config = detector_config(num_queries, width=width)
    for coder in ('encoder', 'decoder'):
        config[coder]['layer_cfg']['ffn_cfg']['act_cfg'] = dict(type='PReLU')
    config['positional_encoding']['temperature'] = 20
    config['num_patterns'] = 2 if family == 'dab_patterns' else 0
    if family == 'dn':
        config['dn_cfg'] = dict(group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=6))
    return config


def deformable_config(family: str, num_queries: int, width: int) -> dict:
    """The parts of a Deformable DETR or DINO."""
    attention = dict(embed_dims=width, num_levels=2, num_heads=4, dropout=0.)
    ffn = dict(embed_dims=width, feedforward_channels=64, ffn_drop=0.)
    config = detector_config(num_queries, width=width)
    config['backbone'].update(out_indices=(2, 3))
    config['neck'].update(
        in_channels=[32, 64], num_outs=2, norm_cfg=dict(type='GN', num_groups=4))
    config.update(
        num_feature_levels=2,
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        decoder=dict(num_layers=2, return_intermediate=True, post_norm_cfg=None, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=width, num_heads=4, dropout=0.),
            cross_attn_cfg=attention, ffn_cfg=ffn)),
        positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-.5))
    config['bbox_head']['sync_cls_avg_factor'] = True
    if family != 'dab_deformable':
        config.update(
            with_box_refine=family in ('refine', 'two_stage', 'dino'),
            as_two_stage=family in ('two_stage', 'tied_two_stage', 'dino'))
    if family == 'dino':
        config['dn_cfg'] = dict(
            label_noise_scale=.5, box_noise_scale=1.,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=6))
    return config
