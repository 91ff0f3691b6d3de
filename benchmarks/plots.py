"""Draw time and memory against the number of groups K (the paper's Figure 7) from the JSON of the
benchmark: ``python -m benchmarks.plots JSON``."""
import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Union

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from groupdetr_mmdet.analysis.plots import line_style, prepare_picture, save_picture
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.errors import ConfigError

from .arguments import make_parser
from .cases import PARTS
from .report import describe

# what else cases may differ in, and how a label says it
SETTINGS = dict(
    num_queries='{} queries in a group',
    num_objects='{} objects in an image',
    attn_drop='attention dropout {}')


def draw_costs(json_file: Union[str, Path], out_file: Union[str, Path]) -> None:
    """Draw what ``python -m benchmarks --json`` wrote, a row for each part.

    A line is a mode and, where cases differ in them, other settings than K; the stock detector is
    one point.

    Raises:
        ConfigError: If there is only one K.
    """
    record = json.loads(Path(json_file).read_text())
    cases = sorted(record['cases'], key=lambda case: case['num_groups'])
    if len({case['num_groups'] for case in cases if case['mode'] != 'stock'}) < 2:
        raise ConfigError(f'JSON: {json_file} has a single K, which makes no curve; run '
                          'python -m benchmarks with several, such as --groups 1 2 4 8 11.')
    parts: Dict[str, Dict[str, List[dict]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        label = ', '.join([case['name'], *settings_of(case, cases, shared=False)])
        parts[case['part']][label].append(case)
    fig, grid = plt.subplots(len(parts), 2, squeeze=False, layout='constrained',
                             figsize=(10, .5 + 3.6 * len(parts)))
    for (part, lines), (time, memory) in zip(parts.items(), grid):
        for i, (name, cases_of_line) in enumerate(lines.items()):
            groups = [case['num_groups'] for case in cases_of_line]
            style = dict(line_style(i), marker='o', markersize=4, label=name)
            time.plot(groups, [case['seconds']['total'] for case in cases_of_line], **style)
            peaks = [case['peak_memory'] for case in cases_of_line]
            if None not in peaks:
                memory.plot(groups, [peak / 2**20 for peak in peaks], **style)
        for ax, what, unit in ((time, 'time', 's'), (memory, 'peak memory', 'MiB')):
            ax.set(title=f'{PARTS[part]}: {what}', xlabel='groups of queries K',
                   ylabel=f'{what} [{unit}]', xlim=(0, None), ylim=(0, None))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=.3)
        time.legend(fontsize=8)
        if not memory.lines:
            memory.axis('off')
            memory.set_title('no memory: run the benchmark with --memory', fontsize=10)
    images = 'batch of {} images of {} x {}'.format(
        record['shapes']['batch_size'], *record['shapes']['image_size'])
    settings = settings_of(record['cases'][0], record['cases'], shared=True)
    fig.suptitle(', '.join([images, *settings]) + f'\n{describe(record["machine"])}', fontsize=9)
    save_picture(fig, out_file, dpi=110)


def settings_of(case: dict, cases: Sequence[dict], shared: bool) -> Iterator[str]:
    """Yield the settings of a case that all cases share, or those in which they differ."""
    for name, text in SETTINGS.items():
        if (len({other.get(name) for other in cases}) == 1) == shared:
            value = case.get(name)
            yield text.format('of the config' if value is None else value)


def parse_args() -> argparse.Namespace:
    parser = make_parser('benchmarks.plots', __doc__)
    parser.add_argument('json', metavar='JSON', help='what the benchmark wrote to --json, of '
                        'several --groups, with --memory for the memory')
    parser.add_argument('--out', default='costs.png',
                        help='picture to write, .png, .svg, .pdf or .jpg (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare_picture(args.out)
    draw_costs(args.json, args.out)
    print('Wrote', args.out)


if __name__ == '__main__':
    end_in_one_line(main)
