"""Begin a training with the weights of a detector of other classes."""
import re
from typing import Any, Dict, List

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..group_detector import GroupDetector, repeat_groups
from ..host.processes import unwrapped
from .loading import weights_of

# DETR's and Conditional DETR's, the later ones', Mask2Former's, and the embedding of noisy labels
CLASS_LAYERS = re.compile(r'(^|\.)(fc_cls|cls_branches|cls_embed|label_embedding)\.')
CLASS_BIAS = re.compile(r'(bbox_head\.(fc_cls|cls_branches\.0)|panoptic_head\.cls_embed)\.bias$')


@HOOKS.register_module()
class OtherClassesHook(Hook):
    """Leave the layers that name classes out of ``load_from`` where the classes are others.

    They keep their start; one line of the log says so. mmengine leaves them out, too, and writes
    a line for each of their tensors.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Give the checkpoint the model's own class layers, in place."""
        if not runner.cfg.get('resume'):
            weights_of(checkpoint, str(runner._load_from))  # refuses what has none
            keep_class_layers(unwrapped(runner.model), checkpoint.get('state_dict', checkpoint))


def keep_class_layers(model: nn.Module, state_dict: Dict[str, Tensor]) -> List[str]:
    """Put a model's class layers into a state dict of other classes; return their names."""
    own = model.state_dict()
    saved_classes, num_classes = count_classes(state_dict), count_classes(own)
    if not saved_classes or saved_classes == num_classes:
        return []
    names = [name for name in own if CLASS_LAYERS.search(name) and name in state_dict]
    of_groups = dict(model.group_parameters()) if isinstance(model, GroupDetector) else {}
    for name in names:
        num_groups = len(state_dict[name]) // saved_classes
        state_dict[name] = (
            repeat_groups(own[name], model.num_query_groups, num_groups, noise=0., seed=0)
            if name in of_groups else own[name])
    print_log(f'load_from has {saved_classes} classes and the model {num_classes}: the layers '
              'that name them are left out, all others are loaded.', logger='current')
    return names


def count_classes(tensors: Dict[str, Tensor]) -> int:
    """Number of classes of a detector's head, 0 where there is none."""
    name = next((name for name in tensors if CLASS_BIAS.search(name)), None)
    if name is None:
        return 0
    return len(tensors[name]) - ('cls_embed' in name)  # Mask2Former's has one more, of no object
