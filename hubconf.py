"""The models for ``torch.hub.load("<repository>", "mobilenet_v1", width_mult=0.5)``."""

from functools import partial as _partial

from dwsep_zoo import create_model as _create_model
from dwsep_zoo import list_models as _list_models

dependencies = ["torch", "timm"]

# torch.hub takes every callable without a leading underscore for a model.
for _name in _list_models():
    globals()[_name] = _entry = _partial(_create_model, _name)
    _entry.__doc__ = f"``{_name}``; arguments are those of create_model:\n\n{_create_model.__doc__}"
