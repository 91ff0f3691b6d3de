"""What MIM reads about the configs is true of them."""
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
META = [yaml.safe_load((ROOT / path).read_text()) for path in INDEX['Import']]
MODELS = {model['Name']: model for meta in META for model in meta['Models']}
COLLECTIONS = {entry['Name']: entry for meta in META for entry in meta['Collections']}


def test_every_config_has_an_entry():
    configs = {path.stem: path for path in (ROOT / 'configs').glob('*.py')}
    assert set(MODELS) == set(configs)
    assert {name: ROOT / model['Config'] for name, model in MODELS.items()} == configs


def test_every_collection_is_used_and_has_its_readme():
    assert {model['In Collection'] for model in MODELS.values()} == set(COLLECTIONS)
    assert all((ROOT / entry['README']).is_file() for entry in COLLECTIONS.values())


@pytest.mark.parametrize('name', [name for name, x in MODELS.items() if 'Epochs' in x['Metadata']])
def test_the_epochs_are_those_of_the_config(name):
    config = Config.fromfile(ROOT / MODELS[name]['Config'], import_custom_modules=False)
    assert config.train_cfg.max_epochs == MODELS[name]['Metadata']['Epochs']


def test_results_say_whose_they_are():
    metrics = [metric for model in MODELS.values() for result in model.get('Results', [])
               for metric in result['Metrics']]
    assert metrics and all(metric == 'box AP (paper)' for metric in metrics)
