"""Tables, JSON and pictures of what was measured: ``python -m benchmarks.report JSON`` draws time
and memory by the number of groups K (the paper's Figure 7)."""
import argparse
import itertools
import json
import shlex
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator

from groupdetr_mmdet.analysis.plots import line_style, prepare_picture, save_picture
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.io import write_atomically

from .cases import PARTS, Case, Shapes
from .measure import describe_machine
from .suite import Results, Row

Record = Dict[str, Any]
LAPS = ('backbone', 'encoder', 'decoder', 'criterion', 'matching', 'backward', 'optimizer',
        'total')
HEADER = ('mode', 'K', 'N', 'dropout', 'loss', *(f'{lap} ms' for lap in LAPS), 'images/s',
          'peak MiB', 'ratio')


def report(results: Results, shapes: Shapes, device: torch.device, reach: Sequence[Row],
           json_file: Optional[Path], program: str) -> None:
    """Print all tables, and write everything as JSON where a file is named."""
    record = dict(
        machine=describe_machine(device), shapes=asdict(shapes),
        cases=[case_record(case, results, shapes) for case in results.runs],
        reach=[row.record(results) for row in reach])
    print(f'{describe(record["machine"])}\n{describe(record["shapes"])}')
    for part in dict.fromkeys(case['part'] for case in record['cases']):
        rows = [table_row(case) for case in record['cases'] if case['part'] == part]
        shown = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
        print_table(f'{PARTS[part]}; matching is a part of the criterion',
                    [HEADER[i] for i in shown], ([row[i] for i in shown] for row in rows))
    if reach:
        print_table('Reach', ('what', 'to reach', 'measured', 'reached'), (
            (row['what'], f'{">=" if row["more_is_better"] else "<="} {row["bound"]:g}',
             f'{row["value"]:.2f}', 'yes' if row['reached'] else 'no')
            for row in record['reach']))
    if json_file:
        write_record(json_file, program, record)


def write_record(path: Path, program: str, record: Record) -> None:
    """Write a record as JSON, with the command that measured it."""
    command = shlex.join(['python', '-m', program, *sys.argv[1:]])
    write_atomically(path, json.dumps(dict(command=command, **record), indent=1).encode())


def case_record(case: Case, results: Results, shapes: Shapes) -> Record:
    """Return what was measured of a case; ``ratio`` is the time of the part's first case to it."""
    seconds = results.seconds(case)
    first = next(x for x in results.runs if x.part == case.part)
    return dict(
        asdict(case), name=case.name, seconds=seconds,
        runs=[run['total'] for run in results.runs[case]],
        images_per_second=shapes.batch_size / seconds['total'],
        peak_memory=results.peak.get(case), ratio=results.ratio(first, case))


def describe(values: Record) -> str:
    """Write names and values in a line."""
    return ', '.join(f'{name}: {value}' for name, value in values.items())


def table_row(case: Record) -> Sequence[str]:
    """Return the cells of a case, empty where nothing was measured."""

    def cell(value: Optional[float], text: str, scale: float = 1) -> str:
        return '' if value is None else text.format(value * scale)

    return (case['name'], case['num_groups'], case['num_queries'],
            cell(case['attn_drop'], '{:g}'), case['loss'] or '',
            *(cell(case['seconds'].get(name), '{:.1f}', 1e3) for name in LAPS),
            cell(case['images_per_second'], '{:.3g}'),
            cell(case['peak_memory'], '{:.0f}', 2**-20), cell(case['ratio'], '{:.2f}'))


def print_table(title: str, header: Sequence, rows: Iterable[Sequence]) -> None:
    """Print a title and a table in Markdown."""
    print(f'\n{title}\n', *markdown_lines(header, rows), sep='\n')


def markdown_lines(header: Sequence, rows: Iterable[Sequence]) -> Iterator[str]:
    """Write a table in Markdown, line by line."""
    for row in itertools.chain((header, ['---'] * len(header)), rows):
        yield f'| {" | ".join(map(str, row))} |'


def draw_costs(json_file: Union[str, Path], out_file: Union[str, Path]) -> None:
    """Draw time and peak memory by K, a row for each part, a line for each mode."""
    record = json.loads(Path(json_file).read_text())
    cases = sorted(record['cases'], key=lambda case: case['num_groups'])
    if len({case['num_groups'] for case in cases if case['mode'] != 'stock'}) < 2:
        raise ConfigError(f'JSON: {json_file} has a single K, which makes no curve; run '
                          'tools/benchmark.py with several, such as --groups 1 2 4 8 11.')
    parts: Dict[str, Dict[str, List[Record]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        parts[case['part']][case['name']].append(case)
    fig, grid = plt.subplots(len(parts), 2, squeeze=False, layout='constrained',
                             figsize=(10, .5 + 3.6 * len(parts)))
    for (part, lines), axes in zip(parts.items(), grid):
        for i, (label, line) in enumerate(lines.items()):
            groups = [case['num_groups'] for case in line]
            memory = [(case['peak_memory'] or float('nan')) / 2**20 for case in line]
            for ax, y in zip(axes, ([case['seconds']['total'] for case in line], memory)):
                ax.plot(groups, y, **line_style(i), marker='o', markersize=4, label=label)
        for ax, what in zip(axes, ('time [s]', 'peak memory [MiB]')):
            ax.set(title=PARTS[part], xlabel='groups of queries K', ylabel=what, xlim=(0, None),
                   ylim=(0, None))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=.3)
            ax.legend(fontsize=8)
    fig.suptitle(f'{describe(record["shapes"])}\n{describe(record["machine"])}', fontsize=9)
    save_picture(fig, out_file, dpi=110)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.report', description=__doc__)
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
