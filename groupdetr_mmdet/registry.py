"""The scope ``groupdetr_mmdet`` of configs that inherit from ``groupdetr_mmdet::NAME``.

mmengine builds such a config in registries of this scope. They are empty children of mmdet's
registries, where all classes of this package are registered.
"""
from mmdet import registry as mmdet_registry
from mmengine.registry import Registry

SCOPE = 'groupdetr_mmdet'
# Modules to import before a lookup: a registry of mmdet does not import them for its children.
LOCATIONS = [SCOPE, *(f'mmdet.{x}' for x in ('datasets', 'engine', 'evaluation', 'visualization'))]

REGISTRIES = [
    Registry(parent.name, parent=parent, scope=SCOPE, locations=LOCATIONS)
    for parent in vars(mmdet_registry).values()
    if isinstance(parent, Registry) and parent.scope == 'mmdet'
]
