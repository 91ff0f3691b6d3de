"""The reference pages: every config key and class of this package, every command."""
import inspect
import sys
from pathlib import Path


import groupdetr_mmdet
from groupdetr_mmdet.commands.cli import COMMANDS
from groupdetr_mmdet.group_detector import OUR_KEYS, GroupDetector
from groupdetr_mmdet.ops.recompute import LAYER_OPTIONS

ROOT = Path(__file__).parents[2]
KEYS = [f'model.{key}' for key in (
    *(f'{part}.{key}' for part, keys in OUR_KEYS.items() for key in keys),
    *(f'decoder.{key}' for key in LAYER_OPTIONS),
    *inspect.signature(GroupDetector).parameters.keys() - {'train_cfg', 'test_cfg', 'kwargs'})]


def test_config_keys_lists_every_key_of_a_detector():
    page = (ROOT / 'docs/config-keys.md').read_text()
    assert [key for key in KEYS if key not in page] == []


def test_config_keys_or_detectors_name_every_class_that_a_config_can_name():
    pages = ''.join((ROOT / f'docs/{page}.md').read_text()
                    for page in ('config-keys', 'families'))
    inside = {'GroupConditionalDetrTransformerDecoder',
              'GroupConditionalDetrTransformerDecoderLayer', '__version__'}  # of a detector
    assert {name for name in groupdetr_mmdet.__all__ if name not in pages} == inside


def test_the_command_line_page_has_every_command_and_its_arguments(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'docs'), *sys.path])
    import generated
    text = generated.command_reference()
    assert [name for name in COMMANDS if f'## groupdetr {name}\n' not in text] == []
    assert '`--epochs N`' in text
    assert '%(' not in text
