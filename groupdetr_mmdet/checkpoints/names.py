"""What a checkpoint's names and query rows mean, and how they change between codebases and K."""
import re
from typing import Dict, Mapping, Sequence, Tuple

from torch import Tensor

Rules = Sequence[Tuple[str, str]]


# Another codebase's name -> ours: regular expressions, applied in order.

PARTS = (
    (r'^input_proj\.', 'neck.convs.0.conv.'),
    (r'^query_embed\.', 'query_embedding.'),
    (r'^class_embed\.', 'bbox_head.fc_cls.'),
    (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
    (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
    (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
    (r'^transformer\.', ''),
)

# Atten4Vis/ConditionalDETR, branches main and GroupDETR
OFFICIAL_NAMES = PARTS + (
    (r'^backbone\.0\.body\.', 'backbone.'),
    (r'^decoder\.norm\.', 'decoder.post_norm.'),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
    (r'\.norm1\.', '.norms.0.'),
    (r'\.norm2\.', '.norms.1.'),
    (r'\.norm3\.', '.norms.2.'),
    (r'\.sa_(\w+_proj)\.', r'.self_attn.\1.'),
    (r'\.ca_(\w+_proj)\.', r'.cross_attn.\1.'),
    (r'^(encoder\.layers\.\d+\.self_attn)\.', r'\1.attn.'),
)

# IDEA-Research/detrex, whose backbone is detectron2's
DETREX_NAMES = PARTS + (
    (r'^backbone\.stem\.', 'backbone.'),
    *((rf'^backbone\.res{stage + 1}\.', f'backbone.layer{stage}.') for stage in range(1, 5)),
    (r'^(backbone\..*)conv(\d)\.norm\.', r'\1bn\2.'),
    (r'^(backbone\..*)\.shortcut\.norm\.', r'\1.downsample.1.'),
    (r'^(backbone\..*)\.shortcut\.', r'\1.downsample.0.'),
    (r'^decoder\.post_norm_layer\.', 'decoder.post_norm.'),
    (r'^(encoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^(decoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^(decoder\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
    (r'\.query_(\w+_proj)\.', r'.q\1.'),
    (r'\.key_(\w+_proj)\.', r'.k\1.'),
    (r'\.value_proj\.', '.v_proj.'),
    (r'\.ffns\.0\.', '.ffn.'),
)


def rename(name: str, rules: Rules) -> str:
    """Apply all rules, pairs of a regular expression and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Rename the tensors of the official code's state dict to ours."""
    return {rename(name, OFFICIAL_NAMES): tensor for name, tensor in state_dict.items()}
