"""Tensor names of other codebases, and rules to rename them as in mmdet, by detector.

The names are from the sources of Atten4Vis/ConditionalDETR (branches main and GroupDETR),
IDEA-Research/DAB-DETR, IDEA-Research/DN-DETR, IDEA-Research/DINO, IDEA-Research/detrex and
huggingface/transformers 5.24. The names in transformers' files differ from those in its models.
"""
import re
from typing import Container, List, Optional, Sequence, Tuple

from ..errors import ConfigError

Rules = Sequence[Tuple[str, str]]  # regular expressions and replacements, applied in order

SOURCES = dict(  # source -> its name in reports
    official="its authors' code", detrex='IDEA-Research/detrex',
    transformers="Hugging Face's transformers", mmdet='mmdet', ours='ours')
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

# Codebase, detector and the tensors that identify both; the first matching row counts.
SIGNATURES = (
    ('official', 'DINO', 'transformer.enc_out_bbox_embed.layers.0.weight'),
    ('official', 'DABDeformableDETR', 'refpoint_embed.weight', 'tgt_embed.weight'),
    ('official', 'DNDETR', 'refpoint_embed.weight', 'label_enc.weight'),
    ('official', 'DABDETR', 'refpoint_embed.weight'),
    ('detrex', 'DINO', 'label_enc.weight'),
    ('detrex', 'DNDETR', 'anchor_box_embed.weight', 'denoising_generator.label_encoder.weight'),
    ('detrex', 'DABDETR', 'anchor_box_embed.weight'),
    ('official', 'ConditionalDETR', 'transformer.decoder.layers.0.sa_qcontent_proj.weight'),
    ('detrex', 'ConditionalDETR',
     'transformer.decoder.layers.0.attentions.0.query_content_proj.weight'),
    ('mmdet', 'DNDETR', 'decoder.ref_anchor_head.layers.0.weight',
     'dn_query_generator.label_embedding.weight'),
    ('mmdet', 'DABDETR', 'decoder.ref_anchor_head.layers.0.weight'),
    ('mmdet', 'DINO', 'dn_query_generator.label_embedding.weight'),
    ('mmdet', 'ConditionalDETR', 'decoder.layers.0.self_attn.qcontent_proj.weight'),
    ('mmdet', 'DABDeformableDETR', 'decoder.ref_point_head.layers.0.weight'),
    ('mmdet', 'two-stage DeformableDETR', 'bbox_head.cls_branches.0.weight',
     'memory_trans_fc.weight'),
    ('mmdet', 'DeformableDETR', 'bbox_head.cls_branches.0.weight'),
    ('mmdet', 'Mask2Former', 'panoptic_head.query_feat.weight'),
)
CONFIGS = {  # of ours for each detector
    'ConditionalDETR': 'group_cond_detr_r50_12e',
    'DABDETR': 'group_dab_detr_r50_12e',
    'DNDETR': 'group_dn_detr_r50_12e',
    'DeformableDETR': 'group_deformable_detr_r50_12e',
    'two-stage DeformableDETR': 'group_deformable_detr_refine_two_stage_r50_12e',
    'DABDeformableDETR': 'group_dab_deformable_detr_r50_12e',
    'DINO': 'group_dino_4scale_r50_12e',
    'Mask2Former': 'group_mask2former_r50_12e',
}

BACKBONES = dict(
    official=((r'^backbone\.0\.body\.', 'backbone.'), ),
    detrex=(  # detectron2's
        (r'^backbone\.stem\.', 'backbone.'),
        *((rf'^backbone\.res{stage + 1}\.', f'backbone.layer{stage}.') for stage in range(1, 5)),
        (r'^(backbone\..*)conv(\d)\.norm\.', r'\1bn\2.'),
        (r'^(backbone\..*)\.shortcut\.norm\.', r'\1.downsample.1.'),
        (r'^(backbone\..*)\.shortcut\.', r'\1.downsample.0.'),
    ),
    transformers=(  # timm's ResNets have mmdet's names
        (r'^model\.', ''),
        (r'^(backbone\.conv_encoder\.model|pixel_level_module\.encoder)\.', 'backbone.'),
        (r'^backbone\.embedder\.embedder\.', 'backbone.layer.0.'),
        *((rf'^backbone\.encoder\.stages\.{stage}\.layers\.', f'backbone.layer{stage + 1}.')
          for stage in range(4)),
        *((rf'^(backbone\..*)layer\.{i}\.convolution\.', rf'\1conv{i + 1}.') for i in range(3)),
        *((rf'^(backbone\..*)layer\.{i}\.normalization\.', rf'\1bn{i + 1}.') for i in range(3)),
        (r'^(backbone\..*)\.shortcut\.convolution\.', r'\1.downsample.0.'),
        (r'^(backbone\..*)\.shortcut\.normalization\.', r'\1.downsample.1.'),
        # To the names of the authors
        (r'^input_projection\.', 'input_proj.'),
        (r'^query_(position|refpoint)_embeddings\.', 'query_embed.'),
        (r'^class_labels_classifier\.', 'class_embed.'),
        (r'^bbox_predictor\.', 'bbox_embed.'),
        (r'^decoder\.layernorm\.', 'decoder.norm.'),
        (r'\.encoder_attn\.', '.cross_attn.'),
        (r'\.(self|cross)_attn\.\1_attn\.output_proj\.', r'.\1_attn.out_proj.'),
        (r'\.(self|cross)_attn\.\1_attn_(\w+_proj)\.', r'.\1_attn.\2.'),
    ))

LAYERS = dict(
    official=(
        (r'\.linear1\.', '.ffn.layers.0.0.'),
        (r'\.activation\.', '.ffn.layers.0.1.'),
        (r'\.linear2\.', '.ffn.layers.1.'),
        *((rf'\.norm{i + 1}\.', f'.norms.{i}.') for i in range(3)),
    ),
    detrex=(
        (r'^(\w+\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
        (r'^(\w+\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
        (r'\.ffns\.0\.', '.ffn.'),
    ),
    transformers=(
        (r'\.(mlp\.)?fc1\.', '.ffn.layers.0.0.'),
        (r'\.(mlp\.)?activation_fn\.', '.ffn.layers.0.1.'),
        (r'\.(mlp\.)?fc2\.', '.ffn.layers.1.'),
        (r'\.(self_attn\.)?self_attn_layer_norm\.', '.norms.0.'),
        (r'\.(cross_attn\.cross|encoder)_attn_layer_norm\.', '.norms.1.'),
        (r'(encoder\.layers\.\d+)\.final_layer_norm\.', r'\1.norms.1.'),
        (r'\.(mlp\.)?final_layer_norm\.', '.norms.2.'),
    ))

# Also of DAB-DETR and DN-DETR, which extend Conditional DETR
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

DAB = ((r'^bbox_embed\.', 'bbox_head.fc_reg.'), ) + CONDITIONAL

MASK2FORMER = (
    (r'^class_predictor\.', 'panoptic_head.cls_embed.'),
    (r'^transformer_module\.queries_(embed|feat)\w+', r'panoptic_head.query_\1'),
    (r'^transformer_module\.level_embed\.', 'panoptic_head.level_embed.'),
    *((rf'^transformer_module\.decoder\.mask_predictor\.mask_embedder\.{i}\.0\.',
       f'panoptic_head.mask_embed.{2 * i}.') for i in range(3)),
    (r'^(transformer_module\.decoder)\.layernorm\.', r'\1.post_norm.'),
    (r'^(transformer_module\..*_attn)\.', r'\1.attn.'),
    (r'^(transformer_module\..*)\.cross_attn_layer_norm\.', r'\1.norms.0.'),
    (r'^(transformer_module\..*)\.self_attn_layer_norm\.', r'\1.norms.1.'),
    (r'^transformer_module\.', 'panoptic_head.transformer_'),
    (r'^pixel_level_module\.', 'panoptic_head.pixel_'),
    (r'(pixel_decoder)\.level_embed$', r'\1.level_encoding.weight'),
    (r'(pixel_decoder)\.mask_projection\.', r'\1.mask_feature.'),
    (r'(pixel_decoder)\.input_projections\.', r'\1.input_convs.'),
    (r'(pixel_decoder)\.adapter_1\.', r'\1.lateral_convs.0.'),
    (r'(pixel_decoder)\.layer_1\.', r'\1.output_convs.0.'),
    (r'(_convs\.\d+)\.0\.', r'\1.conv.'),
    (r'(_convs\.\d+)\.1\.', r'\1.gn.'),
)


def recognize(names: Container[str]) -> Tuple[Optional[str], Optional[str]]:
    """Return codebase and detector by the names of tensors, or (None, None)."""
    return next(((source, detector) for source, detector, *marks in SIGNATURES
                 if all(name in names for name in marks)), (None, None))


def rules_of(source: str, detector: str, num_convs: int = 1, num_layers: int = 6) -> List:
    """Return the rules from the names of another codebase to mmdet's.

    ``num_convs`` is the number of feature levels from the backbone, ``num_layers`` the number of
    decoder layers.

    Raises:
        ConfigError: If the names of the detector are unknown.
    """
    heads = dict(
        ConditionalDETR=(
            (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
            (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
            (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
        ) + CONDITIONAL,
        DABDETR=DAB,
        DNDETR=((r'^(label_enc|denoising_generator\.label_encoder)\.',
                 'dn_query_generator.label_embedding.'), ) + DAB,
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
            # The official layer applies norm2 before norm1.
            (r'^(decoder\.layers\.\d+)\.norm2\.', r'\1.norms.0.'),
            (r'^(decoder\.layers\.\d+)\.norm1\.', r'\1.norms.1.'),
            (r'^(decoder\.layers\.\d+\.self_attn)\.(?!attn\.)', r'\1.attn.'),
        ))
    if source == 'transformers':
        heads.update(Mask2Former=MASK2FORMER, DeformableDETR=(
            (r'^query_embed\.', 'query_embedding.'),
            (r'^reference_points\.', 'reference_points_fc.'),
            (r'^pos_trans\.', 'pos_trans_fc.'), *heads['DINO']))
    if detector not in heads:
        raise ConfigError(f'--from {source}: its tensor names for {detector} are unknown; '
                          f'convert reads {", ".join(heads)}.')
    # The decoder has the prediction layers a second time.
    shared = ((r'^transformer\.', ''), (r'^decoder\.(class|bbox)_embed\.', r'\1_embed.'))
    return [*BACKBONES[source], *shared, *heads[detector], *LAYERS[source]]


def rename(name: str, rules: Rules) -> str:
    """Apply all rules in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
