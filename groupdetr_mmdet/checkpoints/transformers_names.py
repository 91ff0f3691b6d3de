"""Tensor names of Hugging Face's transformers beside mmdet's, by detector.

These are the names in files, from the sources of transformers 5.24; in memory its classes may have
other names.
"""
import re
from typing import List, Tuple

Row = Tuple[str, str]  # mmdet's name of a module, and transformers'


# Prefixes: layers of encoder and decoder; Mask2Former's pixel decoder and decoder layers.
SHORT = {
    'E.': ('encoder.layers.*.', 'model.encoder.layers.*.'),
    'D.': ('decoder.layers.*.', 'model.decoder.layers.*.'),
    'P.': ('panoptic_head.pixel_decoder.', 'model.pixel_level_module.decoder.'),
    'T.': ('panoptic_head.transformer_decoder.layers.*.',
           'model.transformer_module.decoder.layers.*.'),
}


def table(text: str) -> List[Row]:
    """Read rows of two names, with prefixes from ``SHORT``; ``*`` is a number."""
    rows = []
    for ours, theirs in map(str.split, text.strip().splitlines()):
        starts = SHORT.get(ours[:2], ('', ''))
        rows.append((starts[0] + ours[2 * bool(starts[0]):], starts[1] + theirs))
    return rows


BACKBONE = 'model.backbone.conv_encoder.model'
TIMM = [('backbone', BACKBONE)]  # timm's ResNets have torchvision's names, as mmdet's


def resnet_rows(backbone: str = BACKBONE) -> List[Row]:
    """Return the rows of a ResNet of transformers; ``backbone`` is the module's name."""
    stages = f'{backbone}.encoder.stages'
    return [('backbone.conv1', f'{backbone}.embedder.embedder.convolution'),
            ('backbone.bn1', f'{backbone}.embedder.embedder.normalization')] + [
        (f'backbone.layer{stage + 1}.*.{ours}', f'{stages}.{stage}.layers.*.{theirs}')
        for stage in range(4) for ours, theirs in (
            ('conv1', 'layer.0.convolution'), ('bn1', 'layer.0.normalization'),
            ('conv2', 'layer.1.convolution'), ('bn2', 'layer.1.normalization'),
            ('conv3', 'layer.2.convolution'), ('bn3', 'layer.2.normalization'),
            ('downsample.0', 'shortcut.convolution'), ('downsample.1', 'shortcut.normalization'))]


ENCODER = table("""
    E.norms.0                   self_attn_layer_norm
    E.norms.1                   final_layer_norm
    E.ffn.layers.0.0            fc1
    E.ffn.layers.0.1            activation_fn
    E.ffn.layers.1              fc2
    E.self_attn.attn.q_proj     self_attn.q_proj
    E.self_attn.attn.k_proj     self_attn.k_proj
    E.self_attn.attn.v_proj     self_attn.v_proj
    E.self_attn.attn.out_proj   self_attn.out_proj
""")
DECODER = table("""
    D.norms.0                   self_attn_layer_norm
    D.norms.1                   encoder_attn_layer_norm
    D.norms.2                   final_layer_norm
    D.ffn.layers.0.0            fc1
    D.ffn.layers.1              fc2
""")

CONDITIONAL = ENCODER + DECODER + table("""
    neck.convs.0.conv               model.input_projection
    query_embedding                 model.query_position_embeddings
    bbox_head.fc_cls                class_labels_classifier
    bbox_head.reg_ffn.layers.0.0    bbox_predictor.layers.0
    bbox_head.reg_ffn.layers.1      bbox_predictor.layers.1
    bbox_head.fc_reg                bbox_predictor.layers.2
    decoder.post_norm               model.decoder.layernorm
    decoder.query_scale             model.decoder.query_scale
    decoder.ref_point_head          model.decoder.ref_point_head
    D.self_attn.qcontent_proj       sa_qcontent_proj
    D.self_attn.qpos_proj           sa_qpos_proj
    D.self_attn.kcontent_proj       sa_kcontent_proj
    D.self_attn.kpos_proj           sa_kpos_proj
    D.self_attn.v_proj              sa_v_proj
    D.self_attn.out_proj            self_attn.out_proj
    D.cross_attn.qcontent_proj      ca_qcontent_proj
    D.cross_attn.qpos_proj          ca_qpos_proj
    D.cross_attn.qpos_sine_proj     ca_qpos_sine_proj
    D.cross_attn.kcontent_proj      ca_kcontent_proj
    D.cross_attn.kpos_proj          ca_kpos_proj
    D.cross_attn.v_proj             ca_v_proj
    D.cross_attn.out_proj           encoder_attn.out_proj
""")

DAB = ENCODER + table("""
    neck.convs.0.conv               model.input_projection
    query_embedding                 model.query_refpoint_embeddings
    patterns                        model.patterns
    encoder.query_scale             model.encoder.query_scale
    bbox_head.fc_cls                class_embed
    bbox_head.fc_reg                bbox_predictor
    bbox_head.fc_reg                model.decoder.bbox_embed
    decoder.post_norm               model.decoder.layernorm
    decoder.query_scale             model.decoder.query_scale
    decoder.ref_point_head          model.decoder.ref_point_head
    decoder.ref_anchor_head         model.decoder.ref_anchor_head
    D.norms.0                       self_attn.self_attn_layer_norm
    D.norms.1                       cross_attn.cross_attn_layer_norm
    D.norms.2                       mlp.final_layer_norm
    D.ffn.layers.0.0                mlp.fc1
    D.ffn.layers.0.1                mlp.activation_fn
    D.ffn.layers.1                  mlp.fc2
    D.self_attn.qcontent_proj       self_attn.self_attn_query_content_proj
    D.self_attn.qpos_proj           self_attn.self_attn_query_pos_proj
    D.self_attn.kcontent_proj       self_attn.self_attn_key_content_proj
    D.self_attn.kpos_proj           self_attn.self_attn_key_pos_proj
    D.self_attn.v_proj              self_attn.self_attn_value_proj
    D.self_attn.out_proj            self_attn.self_attn.output_proj
    D.cross_attn.qcontent_proj      cross_attn.cross_attn_query_content_proj
    D.cross_attn.qpos_proj          cross_attn.cross_attn_query_pos_proj
    D.cross_attn.qpos_sine_proj     cross_attn.cross_attn_query_pos_sine_proj
    D.cross_attn.kcontent_proj      cross_attn.cross_attn_key_content_proj
    D.cross_attn.kpos_proj          cross_attn.cross_attn_key_pos_proj
    D.cross_attn.v_proj             cross_attn.cross_attn_value_proj
    D.cross_attn.out_proj           cross_attn.cross_attn.output_proj
""")

DEFORMABLE = ENCODER + DECODER + table("""
    level_embed                     model.level_embed
    query_embedding                 model.query_position_embeddings
    reference_points_fc             model.reference_points
    memory_trans_fc                 model.enc_output
    memory_trans_norm               model.enc_output_norm
    pos_trans_fc                    model.pos_trans
    pos_trans_norm                  model.pos_trans_norm
    bbox_head.cls_branches.*        class_embed.*
    bbox_head.cls_branches.*        model.decoder.class_embed.*
    bbox_head.reg_branches.*.0      bbox_embed.*.layers.0
    bbox_head.reg_branches.*.2      bbox_embed.*.layers.1
    bbox_head.reg_branches.*.4      bbox_embed.*.layers.2
    bbox_head.reg_branches.*.0      model.decoder.bbox_embed.*.layers.0
    bbox_head.reg_branches.*.2      model.decoder.bbox_embed.*.layers.1
    bbox_head.reg_branches.*.4      model.decoder.bbox_embed.*.layers.2
    E.self_attn                     self_attn
    D.self_attn.attn.q_proj         self_attn.q_proj
    D.self_attn.attn.k_proj         self_attn.k_proj
    D.self_attn.attn.v_proj         self_attn.v_proj
    D.self_attn.attn.out_proj       self_attn.out_proj
    D.cross_attn                    encoder_attn
""")

MASK2FORMER = resnet_rows('model.pixel_level_module.encoder') + table("""
    P.input_convs.*.conv            input_projections.*.0
    P.input_convs.*.gn              input_projections.*.1
    P.lateral_convs.0.conv          adapter_1.0
    P.lateral_convs.0.gn            adapter_1.1
    P.output_convs.0.conv           layer_1.0
    P.output_convs.0.gn             layer_1.1
    P.mask_feature                  mask_projection
    P.level_encoding.weight         level_embed
    P.encoder.layers.*.self_attn    encoder.layers.*.self_attn
    P.encoder.layers.*.norms.0      encoder.layers.*.self_attn_layer_norm
    P.encoder.layers.*.norms.1      encoder.layers.*.final_layer_norm
    P.encoder.layers.*.ffn.layers.0.0   encoder.layers.*.fc1
    P.encoder.layers.*.ffn.layers.1     encoder.layers.*.fc2
    T.cross_attn.attn               cross_attn
    T.self_attn.attn.q_proj         self_attn.q_proj
    T.self_attn.attn.k_proj         self_attn.k_proj
    T.self_attn.attn.v_proj         self_attn.v_proj
    T.self_attn.attn.out_proj       self_attn.out_proj
    T.norms.0                       cross_attn_layer_norm
    T.norms.1                       self_attn_layer_norm
    T.norms.2                       final_layer_norm
    T.ffn.layers.0.0                fc1
    T.ffn.layers.1                  fc2
    panoptic_head.transformer_decoder.post_norm     model.transformer_module.decoder.layernorm
    panoptic_head.query_embed       model.transformer_module.queries_embedder
    panoptic_head.query_feat        model.transformer_module.queries_features
    panoptic_head.level_embed       model.transformer_module.level_embed
    panoptic_head.cls_embed         class_predictor
    panoptic_head.mask_embed.0  model.transformer_module.decoder.mask_predictor.mask_embedder.0.0
    panoptic_head.mask_embed.2  model.transformer_module.decoder.mask_predictor.mask_embedder.1.0
    panoptic_head.mask_embed.4  model.transformer_module.decoder.mask_predictor.mask_embedder.2.0
""")

# Detector, as in `names.MARKS` -> class of transformers, rows
DETECTORS = {
    'ConditionalDETR': ('ConditionalDetr', CONDITIONAL),
    'DABDETR': ('DabDetr', DAB),
    'DeformableDETR': ('DeformableDetr', DEFORMABLE),
    'two-stage DeformableDETR': ('DeformableDetr', DEFORMABLE),
    'Mask2Former': ('Mask2Former', MASK2FORMER),
}


def level_rows(num_convs: int) -> List[Row]:
    """Return the rows of Deformable DETR's neck, with ``num_convs`` levels of the backbone."""
    ours = [f'neck.convs.{i}' for i in range(num_convs)]
    ours += [f'neck.extra_convs.{i}' for i in range(10)]
    return [(f'{name}.{x}', f'model.input_proj.{i}.{j}')
            for i, name in enumerate(ours) for j, x in enumerate(('conv', 'gn'))]


def to_theirs(name: str, rows: List[Row]) -> List[str]:
    """Return transformers' names of a tensor of mmdet, several for a shared tensor."""
    return [new for new in (renamed(name, *row) for row in rows) if new]


def to_ours(name: str, rows: List[Row]) -> str:
    """Return mmdet's name of a tensor of transformers, its own name if no row has it."""
    return next((new for new in (renamed(name, *row[::-1]) for row in rows) if new), name)


def renamed(name: str, old: str, new: str) -> str:
    """Return a tensor's name after module ``old`` is renamed ``new``; '' for other modules."""
    match = re.match(re.escape(old).replace(r'\*', r'(\d+)') + r'(?=\.|$)', name)
    return match and new.replace('*', '{}').format(*match.groups()) + name[match.end():] or ''
