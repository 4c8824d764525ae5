"""Deploys a Serve app from its YAML file, as `serve deploy` does for a user, and waits until it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo_support.cluster import REPOSITORY, LocalCluster

CPU_APP = REPOSITORY / "serve_apps" / "llm-cpu.yaml"


class AppFailed(RuntimeError):
    """The app will not come up by itself. The message has Serve's reason; the caller gives up."""


@dataclass(frozen=True, slots=True)
class ServeApp:
    """The values that the demo puts into the YAML file; everything else is deployed as it stands there."""

    checkpoint: Path
    http_port: int
    load_format: str | None = None
    """None: what the file says."""
    tensor_parallel_size: int = 1
    source: Path = CPU_APP

    @property
    def _config(self) -> dict[str, Any]:
        return yaml.safe_load(self.source.read_text())

    @property
    def effective_load_format(self) -> str:
        (llm,) = self._config["applications"][0]["args"]["llm_configs"]
        return self.load_format or llm["engine_kwargs"]["load_format"]

    @property
    def name(self) -> str:
        return self._config["applications"][0]["name"]

    @property
    def deployment(self) -> str:
        """The deployment whose replicas are engines. Serve's name for it: the server class, a colon, the model id."""
        return self._config["applications"][0]["deployments"][0]["name"]

    @property
    def model_id(self) -> str:
        return self.deployment.partition(":")[2]

    def deploy(self, cluster: LocalCluster, *, replicas: int, timeout_s: float = 60.0) -> None:
        """Returns when Serve has accepted the file; the replicas start afterwards."""
        config = self._config
        config["http_options"]["port"] = self.http_port
        (app,) = config["applications"]
        (llm,) = app["args"]["llm_configs"]
        llm["model_loading_config"]["model_source"] = str(self.checkpoint)
        llm["engine_kwargs"]["load_format"] = self.effective_load_format
        if self.tensor_parallel_size > 1:
            llm["engine_kwargs"]["tensor_parallel_size"] = self.tensor_parallel_size
        app["deployments"][0]["num_replicas"] = replicas
        file = cluster.directory / f"{self.source.stem}-{replicas}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        cluster.command("serve", "deploy", "--address", cluster.dashboard, str(file), timeout_s=timeout_s)

    def wait_until_running(
        self, *, replicas: int, timeout_s: float, on_poll: Callable[[str], None] | None = None
    ) -> None:
        """Waits for that many running replicas. Needs this process to be a driver of the cluster.

        on_poll is told the replicas' states twice a second.

        Serve starts a replica that failed again and again; the first failure ends the wait, with Serve's message.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            state = self._state()
            if on_poll is not None:
                on_poll(state.text)
            if state.failure:
                raise AppFailed(f"the Serve app {self.name!r} failed: {state.failure}")
            if state.running == replicas and state.total == replicas and state.settled:
                return
            if time.monotonic() >= deadline:
                raise AppFailed(f"{replicas} replicas were not up after {timeout_s:.0f} s: {state.text}")
            time.sleep(0.5)

    def _state(self) -> _State:
        from ray import serve

        app = serve.status().applications.get(self.name)
        if app is None:
            return _State(text="accepted")
        deployment = app.deployments.get(self.deployment)
        states: dict[str, int] = {}
        if deployment is not None:
            states = {str(state): count for state, count in deployment.replica_states.items()}
        failure = ""
        if app.status.value in ("DEPLOY_FAILED", "UNHEALTHY"):
            failure = app.message or app.status.value
        if deployment is not None and "failed to start" in deployment.message:
            failure = deployment.message
        return _State(
            text=", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items())) or "building the app",
            running=states.get("RUNNING", 0),
            total=sum(states.values()),
            settled=app.status.value == "RUNNING",
            failure=failure,
        )


@dataclass(frozen=True, slots=True)
class _State:
    text: str
    running: int = 0
    total: int = 0
    settled: bool = False
    failure: str = ""
