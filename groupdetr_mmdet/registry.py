"""The scope of this package, which a config gets that inherits ``groupdetr_mmdet::NAME``.

mmengine builds what comes from ``PACKAGE::`` in the registries of that package. Those of this one
are empty children of mmdet's, where all its classes are registered.
"""
from mmdet import registry as mmdet_registry
from mmengine.registry import Registry

SCOPE = 'groupdetr_mmdet'
# Whose import registers what may be asked for: a registry does not import for its children.
LOCATIONS = [SCOPE, *(f'mmdet.{x}' for x in ('datasets', 'engine', 'evaluation', 'visualization'))]

REGISTRIES = [
    Registry(parent.name, parent=parent, scope=SCOPE, locations=LOCATIONS)
    for parent in vars(mmdet_registry).values()
    if isinstance(parent, Registry) and parent.scope == 'mmdet'
]
