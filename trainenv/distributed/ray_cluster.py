"""The connection to a Ray cluster: one for each process, made on first use.

A Ray that starts here listens on the loopback address alone, has no dashboard, and sends no usage
statistics.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from types import ModuleType
from typing import Any

from trainenv.distributed.executors import address_of
from trainenv.tools.error_text import describe_error
from trainenv.tools.optional import require
from trainenv.types import UserError

_PATIENCE = 5.0  # seconds that a cluster has to answer
# How HTTP/2 begins: Ray's servers speak it. A server answers with its own settings, frame type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_FRAME_HEADER = 9  # bytes: length, type, flags, stream


def connected(executor: str, *, workers: int) -> ModuleType:
    """Return the module `ray`, connected to a cluster.

    A connection that is there already is used, whatever made it.

    Args:
        executor: `ray` or `ray://HOST:PORT`.
        workers: Number of cores that a Ray which starts here is to offer.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """
    require("ray", f"executor {executor}")
    address = _address(executor)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        # Read when Ray is imported: its servers then keep to the loopback address, on Linux too.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Its agents import for half a minute on a busy machine, after which a node would give up.
        os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    import ray

    module: ModuleType = ray
    if ray.is_initialized():
        return module
    if address is None:
        how: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        if address != "auto":  # Ray then looks for a cluster on this machine, which is quick
            _check_answers(address)
        how = {"address": address}
    try:
        ray.init(**how, configure_logging=False, log_to_driver=False)
    except Exception as error:  # Ray has many
        raise UserError(
            f"expected a Ray cluster that can be joined{_at(address)}, found: "
            f"{describe_error(error)}; see if this machine is one of its nodes (`ray start "
            "--address=HOST:PORT`) and has the same versions of ray and Python"
        ) from None
    return module


def cores(executor: str, *, workers: int) -> int:
    """Return the number of cores of a cluster, those of lost nodes left out."""
    return int(connected(executor, workers=workers).cluster_resources().get("CPU", 0))


def _address(executor: str) -> str | None:
    """Return the address of the cluster to join; None to start a Ray here."""
    address = address_of(executor) or os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):  # as Ray reads RAY_ADDRESS
        return None
    return address


def _at(address: str | None) -> str:
    if address is None:
        return ""
    return f" at {address}"


def _check_answers(address: str) -> None:
    """Check that something at an address speaks as Ray does.

    Ray itself waits for minutes.

    Raises:
        UserError: Nothing answers, or something else does.
    """
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # it does not answer those without a certificate
        return
    host, _, port = address.rpartition(":")
    why = "no answer"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE) as connection:
            connection.settimeout(_PATIENCE)
            connection.sendall(_PREFACE)
            header = b""
            while len(header) < _FRAME_HEADER and (more := connection.recv(_FRAME_HEADER)):
                header += more
        if len(header) >= _FRAME_HEADER and header[3] == _SETTINGS:
            return
        why = "something else that answers"
    except (OSError, ValueError, OverflowError) as error:
        with suppress(AttributeError):
            why = error.strerror or why  # type: ignore[union-attr]
    raise UserError(
        f"expected a Ray cluster at {address}, found {why}; see `ray status`, or start one with "
        "`ray start --head`"
    )
