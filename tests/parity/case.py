"""Our model with the weights and inputs of a case of the official code, in float64."""
from pathlib import Path

from builders import build, collate, detector_config

from groupdetr_mmdet.checkpoints.names import rename, rules_of

from . import golden

PARITY = Path(__file__).parent


def from_official(state_dict: dict) -> dict:
    """Rename the tensors of the official Conditional DETR to mmdet's names."""
    rules = rules_of('official', 'ConditionalDETR')
    return {rename(name, rules): tensor for name, tensor in state_dict.items()}


def model_config(config: dict) -> dict:
    """Config of our model for the configuration of a case or of a training."""
    same = {key: config[key] for key in (
        'num_queries', 'num_classes', 'enc_layers', 'dec_layers', 'base_channels')}
    return detector_config(
        num_query_groups=config['num_groups'], width=256, num_heads=8,
        feedforward_channels=config['dim_feedforward'], **same)


class Case:
    """A case of the official code and our model with its weights.

    Make it outside of ``golden.float64``, which changes what is drawn, and compute inside.
    """

    def __init__(self, stem: Path) -> None:
        self.spec, self.arrays = golden.load(stem)
        config = self.spec['config']
        self.config = config
        self.model = build(model_config(config))
        self.model.test_cfg['max_per_img'] = self.model.bbox_head.test_cfg['max_per_img'] = 100
        official = golden.official_state_dict(self.spec)
        result = self.model.load_state_dict(from_official(official), strict=False)
        assert not result.unexpected_keys
        assert all(key.endswith('num_batches_tracked') for key in result.missing_keys)
        self.model.double()
        targets = [(labels, boxes.double()) for labels, boxes in golden.targets(self.spec)]
        inputs, self.samples = collate(golden.images(self.spec), targets)
        self.inputs = inputs.double()

    def predict_layers(self):
        feats = self.model.extract_feat(self.inputs)
        return self.model.bbox_head(**self.model.forward_transformer(feats, self.samples))
