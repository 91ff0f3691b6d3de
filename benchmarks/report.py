"""Tables, JSON and pictures of results. ``python -m benchmarks.report JSON`` draws time and memory
by the number of groups K (the paper's Figure 7)."""
import argparse
import itertools
import json
import shlex
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Union

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
COLUMNS = {'mode': 'name', 'K': 'num_groups', 'N': 'num_queries', 'dropout': 'attn_drop',
           'loss': 'loss', 'time [s]': 'seconds', 'images/s': 'images_per_second',
           'peak memory [MiB]': 'peak_memory', 'ratio': 'ratio'}  # title -> in the record
DRAWN = 'time [s]', 'peak memory [MiB]'


def report(results: Results, shapes: Shapes, device: torch.device, reach: Sequence[Row],
           json_file: Optional[Path], program: str) -> None:
    """Print all tables, and write the results to ``json_file`` if it is given."""
    record = dict(
        machine=describe_machine(device), shapes=asdict(shapes),
        cases=[case_record(case, results, shapes) for case in results.seconds],
        reach=[row.record(results) for row in reach])
    print(f'{describe(record["machine"])}\n{describe(record["shapes"])}')
    for part, title in PARTS.items():
        cases = [case for case in record['cases'] if case['part'] == part]
        shown = {name: key for name, key in COLUMNS.items() if any(case[key] for case in cases)}
        if cases:
            print_table(title, shown, ([cell(case[key]) for key in shown.values()]
                                       for case in cases))
    if reach:
        print_table('Reach', ('what', 'to reach', 'measured', 'reached'), (
            (row['what'], f'{">=" if row["more_is_better"] else "<="} {row["bound"]:g}',
             f'{row["value"]:.2f}', 'yes' if row['reached'] else 'no')
            for row in record['reach']))
    if json_file:
        write_record(json_file, program, record)


def case_record(case: Case, results: Results, shapes: Shapes) -> Record:
    """Return the results of a case; ``ratio`` is the time of the part's first case to its time."""
    seconds = statistics.median(results.seconds[case])
    first = next(x for x in results.seconds if x.part == case.part)
    peak = results.peak.get(case)
    return dict(
        asdict(case), name=case.name, seconds=seconds, runs=results.seconds[case],
        images_per_second=shapes.batch_size / seconds,
        peak_memory=peak and peak / 2**20, ratio=results.ratio(first, case))


def write_record(path: Path, program: str, record: Record) -> None:
    """Write a record as JSON, with the command that measured it."""
    command = shlex.join(['python', '-m', program, *sys.argv[1:]])
    write_atomically(path, json.dumps(dict(command=command, **record), indent=1).encode())


def describe(values: Record) -> str:
    """Return names and values in a line."""
    return ', '.join(f'{name}: {value}' for name, value in values.items())


def cell(value: Any) -> str:
    """Write a value in a cell, a number with at least three digits."""
    if not isinstance(value, float):
        return '' if value is None else str(value)
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def print_table(title: str, header: Iterable, rows: Iterable[Sequence]) -> None:
    """Print a title and a table in Markdown."""
    print(f'\n{title}\n', *markdown_lines(header, rows), sep='\n')


def markdown_lines(header: Iterable, rows: Iterable[Sequence]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    header = list(header)
    for row in (header, ['---'] * len(header), *rows):
        yield f'| {" | ".join(map(str, row))} |'


def draw_costs(json_file: Union[str, Path], out_file: Union[str, Path]) -> None:
    """Draw time and peak memory by K, a row for each part, a line for each mode."""
    record = json.loads(Path(json_file).read_text())
    cases = sorted(record['cases'], key=lambda x: (x['part'], x['name'], x['num_groups']))
    if len({case['num_groups'] for case in cases if case['mode'] != 'stock'}) < 2:
        raise ConfigError(f'JSON: {json_file} has a single K, which makes no curve; run '
                          'tools/benchmark.py with several, such as --groups 1 2 4 8 11.')
    parts = {case['part'] for case in cases}
    fig, grid = plt.subplots(len(parts), len(DRAWN), squeeze=False, layout='constrained',
                             figsize=(10, .5 + 3.6 * len(parts)))
    for axes, (part, of_part) in zip(grid, itertools.groupby(cases, lambda x: x['part'])):
        for i, (mode, line) in enumerate(itertools.groupby(of_part, lambda x: x['name'])):
            line = list(line)
            for ax, what in zip(axes, DRAWN):
                ax.plot([x['num_groups'] for x in line],
                        [x[COLUMNS[what]] or float('nan') for x in line],
                        **line_style(i), marker='o', markersize=4, label=mode)
        for ax, what in zip(axes, DRAWN):
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
