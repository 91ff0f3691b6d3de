"""The table of what the package is to reach."""
from dataclasses import dataclass, replace
from typing import Any, Dict, List

from .cases import Case
from .suite import Results


@dataclass(frozen=True)
class Row:
    """A ratio of two cases and its bound."""
    what: str  # in words, what is compared
    case: Case  # numerator
    other: Case  # denominator
    bound: float  # what the ratio is to reach: at least that where more is better, else at most
    more: bool = True  # is better
    memory: bool = False  # peak memory is compared, and not time
    factor: int = 1  # of the denominator

    def record(self, results: Results) -> Dict[str, Any]:
        """Return what was reached."""
        value = results.ratio(self.case, self.other) / self.factor
        if self.memory:
            value = results.peak[self.case] / results.peak[self.other]
        return dict(what=self.what, bound=self.bound, more_is_better=self.more, value=value,
                    reached=value >= self.bound if self.more else value <= self.bound)


def reach_table(num_groups: int, num_queries: int, num_objects: int) -> List[Row]:
    """Return the rows for K, N and objects per image."""
    criterion = Case('criterion', 'plain', None, num_groups, num_queries, num_objects)
    inference = replace(criterion, part='inference', mode='ours')
    plain = replace(criterion, part='decoder', attn_drop=0.)
    ours = replace(plain, mode='ours')
    step = 'decoder + head + criterion, forward + backward'
    k = num_groups
    return [
        Row('criterion forward + backward, plain / ours', criterion,
            replace(criterion, mode='ours'), 5.),
        Row(f'{step}, plain / ours, attention dropout 0', plain, ours, 1.5),
        Row('the same, plain in float32 / ours under bf16 autocast', plain,
            replace(ours, amp='bf16'), 3.),
        Row('the same in float32 with attention dropout 0.1, plain / ours',
            replace(plain, attn_drop=.1), replace(ours, attn_drop=.1), 1.25),
        Row('peak memory of that step, plain / ours, attention dropout 0', plain, ours, 2.,
            memory=True),
        Row(f'that step, ours, K = {k} / {k} x K = 1', ours, replace(ours, num_groups=1), .9,
            more=False, factor=k),
        Row('inference, ours / stock', inference, replace(inference, mode='stock', num_groups=1),
            1., more=False),
    ]
