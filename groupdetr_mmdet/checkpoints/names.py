"""How other codebases name what mmdet names otherwise, by detector.

The names were read in the sources of Atten4Vis/ConditionalDETR (branches main and GroupDETR),
IDEA-Research/DAB-DETR, IDEA-Research/DINO and IDEA-Research/detrex.
"""
import re
from typing import Dict, List, Mapping, Sequence, Tuple

from torch import Tensor

Rules = Sequence[Tuple[str, str]]  # regular expressions and replacements, applied in order

SOURCES = ('official', 'detrex', 'mmdet', 'ours')

# A tensor that tells the codebase and detector of a file; the first that is there counts.
MARKS = (
    ('transformer.enc_out_bbox_embed.layers.0.weight', 'official', 'DINO'),
    ('refpoint_embed.weight', 'official', 'DABDETR'),
    ('label_enc.weight', 'detrex', 'DINO'),
    ('anchor_box_embed.weight', 'detrex', 'DABDETR'),
    ('transformer.decoder.layers.0.sa_qcontent_proj.weight', 'official', 'ConditionalDETR'),
    ('transformer.decoder.layers.0.attentions.0.query_content_proj.weight', 'detrex',
     'ConditionalDETR'),
    ('decoder.ref_anchor_head.layers.0.weight', 'mmdet', 'DABDETR'),
    ('dn_query_generator.label_embedding.weight', 'mmdet', 'DINO'),
    ('decoder.layers.0.self_attn.qcontent_proj.weight', 'mmdet', 'ConditionalDETR'),
    ('bbox_head.cls_branches.0.weight', 'mmdet', 'DeformableDETR'),
)

BACKBONES = dict(
    official=((r'^backbone\.0\.body\.', 'backbone.'), ),
    detrex=(  # detectron2's
        (r'^backbone\.stem\.', 'backbone.'),
        *((rf'^backbone\.res{stage + 1}\.', f'backbone.layer{stage}.') for stage in range(1, 5)),
        (r'^(backbone\..*)conv(\d)\.norm\.', r'\1bn\2.'),
        (r'^(backbone\..*)\.shortcut\.norm\.', r'\1.downsample.1.'),
        (r'^(backbone\..*)\.shortcut\.', r'\1.downsample.0.'),
    ))

LAYERS = dict(
    official=(
        (r'\.linear1\.', '.ffn.layers.0.0.'),
        (r'\.activation\.', '.ffn.layers.0.1.'),
        (r'\.linear2\.', '.ffn.layers.1.'),
        (r'\.norm1\.', '.norms.0.'),
        (r'\.norm2\.', '.norms.1.'),
        (r'\.norm3\.', '.norms.2.'),
    ),
    detrex=(
        (r'^(\w+\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
        (r'^(\w+\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
        (r'\.ffns\.0\.', '.ffn.'),
    ))

# Of Conditional DETR, and of DAB-DETR, which builds on it.
CONDITIONAL = (
    (r'^input_proj\.', 'neck.convs.0.conv.'),
    (r'^(query|refpoint|anchor_box)_embed\.', 'query_embedding.'),
    (r'^class_embed\.', 'bbox_head.fc_cls.'),
    (r'^decoder\.(norm|post_norm_layer)\.', 'decoder.post_norm.'),
    (r'\.sa_(\w+_proj)\.', r'.self_attn.\1.'),
    (r'\.ca_(\w+_proj)\.', r'.cross_attn.\1.'),
    (r'^(encoder\.layers\.\d+\.self_attn)\.(?!attn\.)', r'\1.attn.'),
    (r'\.query_(\w+_proj)\.', r'.q\1.'),
    (r'\.key_(\w+_proj)\.', r'.k\1.'),
    (r'\.value_proj\.', '.v_proj.'),
)


def rules_of(source: str, detector: str, num_convs: int = 1, num_layers: int = 6) -> List:
    """Rules from a codebase's names to mmdet's.

    Args:
        source (str): One of ``SOURCES``.
        detector (str): Class of the stock detector.
        num_convs (int): Feature levels that come from the backbone. Defaults to 1.
        num_layers (int): Layers of the decoder. Defaults to 6.

    Raises:
        KeyError: If the codebase has no such detector.
    """
    if source in ('mmdet', 'ours'):
        return []
    heads = dict(
        ConditionalDETR=(
            (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
            (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
            (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
        ) + CONDITIONAL,
        DABDETR=((r'^bbox_embed\.', 'bbox_head.fc_reg.'), ) + CONDITIONAL,
        DINO=(
            *((rf'^input_proj\.{i}\.', f'neck.convs.{i}.') for i in range(num_convs)),
            *((rf'^input_proj\.{i}\.', f'neck.extra_convs.{i - num_convs}.')
              for i in range(num_convs, 10)),
            (r'^(neck\.\w+\.\d+)\.0\.', r'\1.conv.'),
            (r'^(neck\.\w+\.\d+)\.(1|norm)\.', r'\1.gn.'),
            (r'^level_embeds$', 'level_embed'),
            (r'^tgt_embed\.', 'query_embedding.'),
            (r'^label_enc\.', 'dn_query_generator.label_embedding.'),
            (r'^enc_output\.', 'memory_trans_fc.'),
            (r'^enc_output_norm\.', 'memory_trans_norm.'),
            (r'^enc_out_(class|bbox)_embed\.', rf'\1_embed.{num_layers}.'),
            (r'^class_embed\.', 'bbox_head.cls_branches.'),
            *((rf'^bbox_embed\.(\d+)\.layers\.{i}\.', rf'bbox_head.reg_branches.\1.{2 * i}.')
              for i in range(3)),
            # The official layer numbers its norms otherwise than it uses them.
            (r'^(decoder\.layers\.\d+)\.norm2\.', r'\1.norms.0.'),
            (r'^(decoder\.layers\.\d+)\.norm1\.', r'\1.norms.1.'),
            (r'^(decoder\.layers\.\d+\.self_attn)\.(?!attn\.)', r'\1.attn.'),
        ))
    # The decoder holds the prediction layers a second time.
    shared = ((r'^transformer\.', ''), (r'^decoder\.(class|bbox)_embed\.', r'\1_embed.'))
    return [*BACKBONES[source], *shared, *heads[detector], *LAYERS[source]]


def rename(name: str, rules: Rules) -> str:
    """Apply all rules in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Rename the tensors of the official Conditional DETR to mmdet's names."""
    rules = rules_of('official', 'ConditionalDETR')
    return {rename(name, rules): tensor for name, tensor in state_dict.items()}
