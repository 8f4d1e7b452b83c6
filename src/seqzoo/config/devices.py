"""Devices that can be refused without loading torch."""

from __future__ import annotations

from importlib.metadata import version

from seqzoo.config.schema import check_value
from seqzoo.config.values import Device
from seqzoo.errors import UserError


def check_device(option: str, name: object) -> None:
    """Refuse what is no device, and CUDA with a torch that is built without.

    Raises:
        UserError: names `option`, the device given and those allowed.
    """
    check_value(option, name, Device)
    if str(name).startswith("cuda") and version("torch").endswith("+cpu"):
        raise UserError(
            f"{option}={name}: not on this machine, whose torch is built for CPUs: use cpu or auto"
        )
