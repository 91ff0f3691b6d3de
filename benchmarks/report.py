"""Tables and JSON of what was measured."""
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

import torch
from rich.console import Console
from rich.table import Table

from groupdetr_mmdet.host.files import write_atomically

from .cases import Case, Shapes
from .measure import describe_machine
from .reach import Row
from .suite import Results

SETTINGS = ('K', 'N', 'objects', 'attention dropout')
PARTS = ('backbone', 'encoder', 'decoder', 'criterion', 'matching', 'backward', 'optimizer')
TITLES = dict(
    step='Training step',
    decoder='Decoder, head and criterion, forward and backward',
    criterion='Criterion, forward and backward',
    inference='Inference')


def report(results: Results, shapes: Shapes, device: torch.device, reach: Sequence[Row],
           json_file: Optional[Path], program: str) -> None:
    """Print all tables, and write everything as JSON where a file is named."""
    machine = describe_machine(device)
    print_report(results, shapes, machine, reach)
    if json_file:
        write_record(json_file, program, make_record(results, shapes, machine, reach))


def write_record(path: Path, program: str, record: Dict[str, Any]) -> None:
    """Write a record as JSON, with the command that measured it."""
    command = shlex.join(['python', '-m', program, *sys.argv[1:]])
    write_atomically(path, json.dumps(dict(command=command, **record), indent=1).encode())


def open_console(machine: Dict[str, Any]) -> Console:
    """Print what was measured on, and return where tables are printed."""
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has no width
    console.print(say_machine(machine))
    return console


def to_markdown(header: Sequence, rows: Iterable[Sequence]) -> str:
    """Write a table in Markdown."""
    rows = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows)


def say_machine(machine: Dict[str, Any]) -> str:
    return ', '.join(f'{name}: {value}' for name, value in machine.items())


def print_report(results: Results, shapes: Shapes, machine: Dict[str, Any],
                 reach: Sequence[Row]) -> None:
    """Print all tables."""
    console = open_console(machine)
    parts = list(dict.fromkeys(case.part for case in results.runs))
    console.print(describe_shapes(shapes, parts))
    for part in parts:
        console.print(part_table(part, results, shapes))
    for amp in results.gemm:
        console.print(f"Matrix product of the decoder's FFN, {amp or 'float32'}: "
                      f'{results.gemm_rate(amp) / 1e9:.0f} GFLOP/s')
    if reach:
        console.print(reach_rows(results, reach))


def describe_shapes(shapes: Shapes, parts: Sequence[str]) -> str:
    """Say the sizes of the inputs, and of the memory if a part is given one."""
    height, width = shapes.image_size
    sizes = [f'{shapes.batch_size} images of {height} x {width}']
    if 'decoder' in parts:  # a step and inference have that of the model's stride
        sizes.append('memory ' + ' x '.join(map(str, shapes.memory_size)))
    return ', '.join([*sizes, f'{"with" if shapes.padded else "without"} padding'])


def part_table(part: str, results: Results, shapes: Shapes) -> Table:
    """Table of the medians of all cases of a part."""
    rows = [
        table_row(case_record(case, results, shapes)) for case in results.runs if case.part == part
    ]
    same = [name for name in SETTINGS if len({row[name] for row in rows}) == 1]
    table = Table(
        title='; '.join([TITLES[part], *(f'{name} {rows[0][name]}' for name in same)]),
        caption='Parts in ms. Matching is a part of the criterion. '
        'Ratio: time of the first mode to this one.')
    shown = [name for name in rows[0] if name not in same and any(row[name] for row in rows)]
    for name in shown:
        table.add_column(name, justify='left' if name == 'mode' else 'right', no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def table_row(record: Dict[str, Any]) -> Dict[str, str]:
    """Return the cells of a case by column, empty where nothing was measured."""

    def cell(value: Optional[float], text: str, scale: float = 1) -> str:
        return '' if value is None else text.format(value * scale)

    drop = record['attn_drop']
    return {
        'mode': record['name'],
        'K': str(record['num_groups']),
        'N': str(record['num_queries']),
        'objects': str(record['num_objects']),
        'attention dropout': 'of the config' if drop is None else f'{drop:g}',
        **{name: cell(record['seconds'].get(name), '{:.1f}', 1e3) for name in (*PARTS, 'total')},
        'images/s': cell(record['images_per_second'], '{:.3g}'),
        'peak MiB': cell(record['peak_memory'], '{:.0f}', 2**-20),
        'of GEMM': cell(record['share_of_gemm_rate'], '{:.0%}'),
        'difference': cell(record['difference'], '{:.1e}'),
        'ratio': cell(record['ratio'], '{:.2f}'),
    }


def mode_name(case: Case) -> str:
    return case.mode if case.amp is None else f'{case.mode}:{case.amp}'


def baseline(case: Case, results: Results) -> Optional[Case]:
    """Return the case of the first mode that has the same settings; stock has one group."""
    first = next(x for x in results.runs if x.part == case.part)
    num_groups = 1 if first.mode == 'stock' else case.num_groups
    wanted = replace(case, mode=first.mode, amp=first.amp, num_groups=num_groups)
    return wanted if wanted in results.runs else None


def case_record(case: Case, results: Results, shapes: Shapes) -> Dict[str, Any]:
    """Return what was measured of a case, for JSON."""
    seconds = results.seconds(case)
    first = baseline(case, results)
    return dict(
        asdict(case), name=mode_name(case), seconds=seconds,
        runs=[run['total'] for run in results.runs[case]],
        images_per_second=shapes.batch_size / seconds['total'],
        peak_memory=results.peak.get(case), flops=results.flops.get(case),
        share_of_gemm_rate=results.share(case), difference=results.difference.get(case),
        ratio=first and results.ratio(first, case), ratio_to=first and mode_name(first))


def reach_rows(results: Results, reach: Sequence[Row]) -> Table:
    table = Table(title='Reach')
    table.add_column('what')
    for name in ('to reach', 'measured', 'reached'):
        table.add_column(name, justify='right')
    for row in reach:
        table.add_row(row.what, f'{">=" if row.more else "<="} {row.bound:g}',
                      f'{row.value(results):.2f}', 'yes' if row.reached(results) else 'no')
    return table


def make_record(results: Results, shapes: Shapes, machine: Dict[str, Any],
                reach: Sequence[Row]) -> Dict[str, Any]:
    """Return everything that was measured, for JSON."""
    return dict(
        machine=machine,
        shapes=asdict(shapes),
        cases=[case_record(case, results, shapes) for case in results.runs],
        gemm_flops_per_second={amp or 'float32': results.gemm_rate(amp) for amp in results.gemm},
        reach=[
            dict(what=row.what, bound=row.bound, more_is_better=row.more,
                 value=row.value(results), reached=row.reached(results)) for row in reach
        ])
