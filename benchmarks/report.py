"""Tables and JSON of what was measured."""
import itertools
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence

import torch

from groupdetr_mmdet.io import write_atomically

from .cases import PARTS, Case, Shapes
from .measure import describe_machine
from .suite import Results, Row

Record = Dict[str, Any]
LAPS = ('backbone', 'encoder', 'decoder', 'criterion', 'matching', 'backward', 'optimizer',
        'total')
HEADER = ('mode', 'K', 'N', 'objects', 'dropout', *(f'{lap} ms' for lap in LAPS), 'images/s',
          'peak MiB', 'ratio')


def report(results: Results, shapes: Shapes, device: torch.device, reach: Sequence[Row],
           json_file: Optional[Path], program: str) -> None:
    """Print all tables, and write everything as JSON where a file is named."""
    record = dict(
        machine=describe_machine(device), shapes=asdict(shapes),
        cases=[case_record(case, results, shapes) for case in results.runs],
        reach=[row.record(results) for row in reach])
    print_record(record)
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


def print_record(record: Record) -> None:
    """Print all tables."""
    print(f'{describe(record["machine"])}\n{describe(record["shapes"])}')
    for part in dict.fromkeys(case['part'] for case in record['cases']):
        rows = [table_row(case) for case in record['cases'] if case['part'] == part]
        shown = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
        print_table(f'{PARTS[part]}; matching is a part of the criterion',
                    [HEADER[i] for i in shown], ([row[i] for i in shown] for row in rows))
    if record['reach']:
        print_table('Reach', ('what', 'to reach', 'measured', 'reached'), (
            (row['what'], f'{">=" if row["more_is_better"] else "<="} {row["bound"]:g}',
             f'{row["value"]:.2f}', 'yes' if row['reached'] else 'no')
            for row in record['reach']))


def describe(values: Record) -> str:
    """Write names and values in a line."""
    return ', '.join(f'{name}: {value}' for name, value in values.items())


def table_row(case: Record) -> Sequence[str]:
    """Return the cells of a case, empty where nothing was measured."""

    def cell(value: Optional[float], text: str, scale: float = 1) -> str:
        return '' if value is None else text.format(value * scale)

    return (case['name'], case['num_groups'], case['num_queries'], case['num_objects'],
            cell(case['attn_drop'], '{:g}'),
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
