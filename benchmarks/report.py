"""Tables and JSON of what was measured."""
import itertools
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence

import torch
from rich.console import Console
from rich.table import Column, Table

from groupdetr_mmdet.io import write_atomically

from .cases import PARTS, Case, Shapes
from .measure import describe_machine
from .reach import Row
from .suite import Results

Record = Dict[str, Any]
SETTINGS = ('K', 'N', 'objects', 'attention dropout')
LAPS = ('backbone', 'encoder', 'decoder', 'criterion', 'matching', 'backward', 'optimizer',
        'total')


def report(results: Results, shapes: Shapes, device: torch.device, reach: Sequence[Row],
           json_file: Optional[Path], program: str) -> None:
    """Print all tables, and write everything as JSON where a file is named."""
    record = dict(
        machine=describe_machine(device), shapes=asdict(shapes),
        cases=[case_record(case, results, shapes) for case in results.runs],
        gemm_flops_per_second={amp or 'float32': results.gemm_rate(amp) for amp in results.gemm},
        reach=[row.record(results) for row in reach])
    print_record(record)
    if json_file:
        write_record(json_file, program, record)


def write_record(path: Path, program: str, record: Record) -> None:
    """Write a record as JSON, with the command that measured it."""
    command = shlex.join(['python', '-m', program, *sys.argv[1:]])
    write_atomically(path, json.dumps(dict(command=command, **record), indent=1).encode())


def case_record(case: Case, results: Results, shapes: Shapes) -> Record:
    """Return what was measured of a case."""
    seconds = results.seconds(case)
    first = baseline(case, results)
    return dict(
        asdict(case), name=case.name, seconds=seconds,
        runs=[run['total'] for run in results.runs[case]],
        images_per_second=shapes.batch_size / seconds['total'],
        peak_memory=results.peak.get(case), flops=results.flops.get(case),
        share_of_gemm_rate=results.share(case), difference=results.difference.get(case),
        ratio=first and results.ratio(first, case), ratio_to=first and first.name)


def baseline(case: Case, results: Results) -> Optional[Case]:
    """Return the case of the first mode that has the same settings; stock has one group."""
    first = next(x for x in results.runs if x.part == case.part)
    num_groups = 1 if first.mode == 'stock' else case.num_groups
    wanted = replace(case, mode=first.mode, amp=first.amp, num_groups=num_groups)
    return wanted if wanted in results.runs else None


def print_record(record: Record) -> None:
    """Print all tables."""
    console = open_console(record['machine'])
    parts = dict.fromkeys(case['part'] for case in record['cases'])
    console.print(describe_shapes(record['shapes'], parts))
    for part in parts:
        rows = [table_row(case) for case in record['cases'] if case['part'] == part]
        same = [name for name in SETTINGS if len({row[name] for row in rows}) == 1]
        shown = [name for name in rows[0] if name not in same and any(row[name] for row in rows)]
        console.print(make_table(
            shown, ([row[name] for name in shown] for row in rows),
            title='; '.join([PARTS[part], *(f'{name} {rows[0][name]}' for name in same)]),
            caption='Parts in ms. Matching is a part of the criterion. '
            'Ratio: time of the first mode to this one.'))
    for amp, rate in record['gemm_flops_per_second'].items():
        console.print(f"Matrix product of the decoder's FFN, {amp}: {rate / 1e9:.0f} GFLOP/s")
    if record['reach']:
        console.print(make_table(('what', 'to reach', 'measured', 'reached'), (
            (row['what'], f'{">=" if row["more_is_better"] else "<="} {row["bound"]:g}',
             f'{row["value"]:.2f}', 'yes' if row['reached'] else 'no')
            for row in record['reach']), title='Reach'))


def open_console(machine: Record) -> Console:
    """Print what was measured on, and return where tables are printed."""
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has no width
    console.print(say_machine(machine))
    return console


def say_machine(machine: Record) -> str:
    return ', '.join(f'{name}: {value}' for name, value in machine.items())


def describe_shapes(shapes: Record, parts: Iterable[str]) -> str:
    """Say the sizes of the inputs, and of the memory if a part is given one."""
    sizes = ['{} images of {} x {}'.format(shapes['batch_size'], *shapes['image_size'])]
    if 'decoder' in parts:  # a step and inference have that of the model's stride
        sizes.append('memory {} x {}'.format(*shapes['memory_size']))
    return ', '.join([*sizes, f'{"with" if shapes["padded"] else "without"} padding'])


def table_row(case: Record) -> Dict[str, str]:
    """Return the cells of a case by column, empty where nothing was measured."""

    def cell(value: Optional[float], text: str, scale: float = 1) -> str:
        return '' if value is None else text.format(value * scale)

    return {
        'mode': case['name'],
        'K': str(case['num_groups']),
        'N': str(case['num_queries']),
        'objects': str(case['num_objects']),
        'attention dropout': cell(case['attn_drop'], '{:g}') or 'of the config',
        **{name: cell(case['seconds'].get(name), '{:.1f}', 1e3) for name in LAPS},
        'images/s': cell(case['images_per_second'], '{:.3g}'),
        'peak MiB': cell(case['peak_memory'], '{:.0f}', 2**-20),
        'of GEMM': cell(case['share_of_gemm_rate'], '{:.0%}'),
        'difference': cell(case['difference'], '{:.1e}'),
        'ratio': cell(case['ratio'], '{:.2f}'),
    }


def make_table(header: Sequence[str], rows: Iterable[Sequence[str]], **kwargs) -> Table:
    """Make a table to print, of names in the first column and numbers in the others."""
    first, *others = header
    table = Table(Column(first, min_width=len('turns:bf16')), *(
        Column(name, justify='right', no_wrap=True) for name in others), **kwargs)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_lines(header: Sequence, rows: Iterable[Sequence]) -> Iterator[str]:
    """Write a table in Markdown, line by line."""
    for row in itertools.chain((header, ['---'] * len(header)), rows):
        yield f'| {" | ".join(map(str, row))} |'
