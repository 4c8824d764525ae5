"""What a transfer actor hands to an engine so that it can map an arena. Crosses processes; owns nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

IPC_HANDLE_NBYTES = 64
"""sizeof(cudaIpcMemHandle_t)."""


class _Handle(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class HostArenaHandle(_Handle):
    """A memfd of another process on this node: opened through /proc/<pid>/fd/<fd>."""

    kind: Literal["host"] = "host"
    arena_id: str
    pid: int = Field(gt=0)
    fd: int = Field(ge=0)
    nbytes: int = Field(ge=0)
    tail_nbytes: int = Field(ge=0)


class DeviceArenaHandle(_Handle):
    """cudaMalloc memory of another process on the device `device_uuid`: opened with cudaIpcOpenMemHandle."""

    kind: Literal["device"] = "device"
    arena_id: str
    device_uuid: str
    ipc_handle: bytes = Field(min_length=IPC_HANDLE_NBYTES, max_length=IPC_HANDLE_NBYTES)
    nbytes: int = Field(ge=0)


ArenaHandle = Annotated[HostArenaHandle | DeviceArenaHandle, Field(discriminator="kind")]
