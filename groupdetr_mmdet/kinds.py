"""Kinds of the values in a config, against what annotations and defaults say."""
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Set, Union

from .errors import ConfigError

NoneType = type(None)
KINDS = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a text',
         dict: 'a dict', list: 'a list', NoneType: 'None'}
BASES = {bool: bool, int: int, float: float, str: str, dict: Mapping, list: Sequence,
         NoneType: NoneType}
WRITTEN = dict(bool=bool, int=int, float=float, str=str)  # annotations that are not evaluated
# A config writes objects of these classes as a dict with a type.
BUILT = ('mmengine.', 'mmdet.', 'mmcv.', 'torch.nn.', 'torch.utils.', 'torch.optim.')
BY_DEFAULT = {  # what a parameter without annotation takes, by the kind of its default
    bool: {bool, int, NoneType}, int: {int, float, list, NoneType},
    float: {int, float, list, NoneType}, list: {list, dict, int, float, NoneType}}


def require(fits: bool, key: str, value: Any, what: str) -> None:
    """Raise a ConfigError that says what a value must be, unless it fits."""
    if not fits:
        raise ConfigError(f'{key}={value!r} must be {what}.')


def check_number(key: str, value: Any, least: float, above: bool = False) -> None:
    """Check that a value is a finite number of at least ``least``, or above it."""
    fits = kind_of(value) in (int, float) and least <= value < math.inf
    require(fits and not (above and value == least), key, value,
            f'a number {"above" if above else "of at least"} {least}')


def check_integer(key: str, value: Any, least: int) -> None:
    """Check that a value is an integer of at least ``least``."""
    require(kind_of(value) is int and value >= least, key, value,
            f'an integer of at least {least}')


def kind_of(value: Any) -> Optional[type]:
    """Kind of a plain value; None for any other object, such as a class."""
    return kind_of_class(type(value))


def kind_of_class(cls: type) -> Optional[type]:
    """Kind of the values of a class."""
    return next((kind for kind, base in BASES.items() if issubclass(cls, base)), None)


def kinds_of(annotation: Any) -> Set[Optional[type]]:
    """Kinds of the values that an annotation allows, None among them where it allows others."""
    annotation = WRITTEN.get(annotation, annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin in (Union, getattr(types, 'UnionType', Union)):
        return set().union(*map(kinds_of, typing.get_args(annotation)))
    if origin is Literal:
        return set(map(kind_of, typing.get_args(annotation)))
    if origin is float:
        return {int, float}
    if not inspect.isclass(origin):
        return {None}
    return {dict if origin.__module__.startswith(BUILT) else kind_of_class(origin)}


def check_kind(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check the kind of a value against the annotation of its parameter, or against its default.

    Raises:
        ConfigError: If it is, say, a text where the class takes numbers, or is NaN.
    """
    require(value == value, key, value, 'a number')
    kinds = kinds_of(parameter.annotation)
    shown = kinds - {int} if float in kinds else kinds
    kind, kind_of_default = kind_of(value), kind_of(parameter.default)
    if parameter.annotation is parameter.empty and parameter.default is not None:
        shown = {kind_of_default}
        kinds = BY_DEFAULT.get(kind_of_default, {None})
    if {dict, list, int, float} & kinds:  # libraries write one and take others, too
        kinds = kinds | {dict, list}
    require(None in kinds or kind is None or kind in kinds or kind is kind_of_default or
            kind is int and bool in kinds or
            kind is float and int in kinds and value.is_integer(),
            key, value, ' or '.join(KINDS[x] for x in KINDS if x in shown))
