"""Train as recorded, draw both losses, and print how far ours are from the official ones.

    PYTHONPATH=tests python docs/draw_proof.py

It writes ``docs/images/proof.png``, and takes some minutes.
"""
import tempfile
from pathlib import Path
from typing import Dict, List

import matplotlib
import torch
from parity import golden
from parity.case import PARITY, Case, from_official
from parity.training import train

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

STEM = PARITY / 'train_A'
OUT = Path(__file__).with_name('images') / 'proof.png'


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / max(1., abs(expected))


def digits_of_a_step() -> Dict[str, float]:
    """Largest differences of a single step of case A."""
    case = Case(PARITY / 'case_A')
    with golden.float64():
        logits, boxes = case.predict_layers()
        losses = case.model.loss(case.inputs, case.samples)
        sum(losses.values()).backward()
    parameters = dict(case.model.named_parameters())
    of_layers = range(case.config['dec_layers'])
    return {
        'logits of every layer': max((logits[i].detach() - torch.as_tensor(
            case.arrays[f'train_logits_{i}'])).abs().max().item() for i in of_layers),
        'boxes of every layer': max((boxes[i].detach() - torch.as_tensor(
            case.arrays[f'train_boxes_{i}'])).abs().max().item() for i in of_layers),
        'total loss, relative': relative(
            sum(losses.values()).item(), case.spec['losses']['total']),
        'norm of every gradient, relative': max(
            relative(parameters[next(iter(from_official({name: None})))].grad.norm().item(), norm)
            for name, norm in case.spec['grad_norms'].items())}


def digits_of_a_training(steps: List[dict], spec: dict, trained) -> Dict[str, float]:
    """Largest differences over 200 optimizer steps."""
    recorded, weights = spec['trajectory'], trained.model.state_dict()
    names = {official: next(iter(from_official({official: None}))) for official in spec['norms']}
    return {
        'loss of 200 steps, relative': max(
            relative(x['loss'], recorded[x['iteration']]['loss']) for x in steps),
        'norm of the gradients of 200 steps, relative': max(
            relative(x['grad_norm'], recorded[x['iteration']]['grad_norm']) for x in steps),
        'norm of every weight after 200 steps, relative': max(
            relative(weights[name].norm().item(), spec['norms'][official])
            for official, name in names.items())}


def draw(steps: List[dict], spec: dict) -> None:
    fig, ax = plt.subplots(figsize=(8, 3.6), layout='constrained')
    ax.plot([x['loss'] for x in spec['trajectory']], color='0.75', lw=5,
            label="the authors' code, float64")
    ax.plot([x['loss'] for x in steps], color='C0', lw=1.2, label='this package, float64')
    ax.plot(spec['trajectory_float32'], color='C3', lw=.8, ls=':',
            label="the authors' code, float32")
    ax.set(xlabel='optimizer step', ylabel='loss')
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False)
    fig.savefig(OUT, dpi=110)


def main() -> None:
    spec, _ = golden.load(STEM)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(STEM, Path(folder))
    draw(trained.steps, spec)
    found = {**digits_of_a_step(), **digits_of_a_training(trained.steps, spec, trained)}
    for name, value in found.items():
        print(f'| {name} | {value:.0e} |')


if __name__ == '__main__':
    main()
