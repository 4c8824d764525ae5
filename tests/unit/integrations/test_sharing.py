"""Loading a model as origin or receiver, against a session that keeps its arenas in this process."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ray_weights.actors.session import Arrived, ToLoad
from ray_weights.core.layout import Layout
from ray_weights.core.manifest import Manifest
from ray_weights.errors import ArenaGone, CaptureUnsupported, DeadlineExceeded, VersionConflict
from ray_weights.integrations.vllm.sharing import load_shared
from ray_weights.memory.host import HostArena
from ray_weights.schemas.keys import ModelKey, ShardKey

SHARD = ShardKey(model=ModelKey(model="toy"))
CPU = torch.device("cpu")


class LocalSession:
    """The session's interface over one arena: the first to open it fills it, the next ones get it."""

    def __init__(self, *, seal_error: Exception | None = None) -> None:
        self.arena: HostArena | None = None
        self.manifest: Manifest | None = None
        self.failures: list[str] = []
        self._layout: Layout | None = None
        self._seal_error = seal_error

    def open(self, shard, layout, *, version, may_load, timeout, on_progress):
        if self.manifest is not None:
            return Arrived(self.arena.handle(), 1, self.manifest, "it is here", None)
        self._layout = layout
        self.arena = HostArena.create("toy", layout.nbytes, 4096)
        return ToLoad(self.arena.handle(), 1, "nobody has it")

    def seal(self, shard, version, *, attributes, seconds, from_storage, timeout):
        if self._seal_error is not None:
            raise self._seal_error
        self.arena.seal()
        digest = self.arena.digest(0, self._layout.nbytes)
        self.manifest = Manifest(
            layout=self._layout,
            chunk_nbytes=self._layout.nbytes,
            digest_algorithm=self.arena.digest_algorithm,
            digests=(digest,),
            attributes=attributes,
        )
        return self.manifest

    def fail(self, shard, version, error):
        self.failures.append(f"{type(error).__name__}: {error}")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("cache", torch.rand(4), persistent=False)
        self.owns_embeddings = False


def filler(model: Model, value: float = 5.0):
    def load() -> None:
        with torch.no_grad():
            model.layer.weight.fill_(value)
            model.layer.bias.data = torch.full((3,), value)
        model.owns_embeddings = True

    return load


def share(model, session, load):
    return load_shared(
        model,
        SHARD,
        session,
        device=CPU,
        load=load,
        version=None,
        timeout=1.0,
        log=logging.getLogger("test"),
    )


def never() -> None:
    raise AssertionError("a receiver reads no storage")


def test_a_receiver_gets_what_the_origin_loaded():
    session, origin, receiver = LocalSession(), Model(), Model()
    first = share(origin, session, filler(origin))
    second = share(receiver, session, never)
    assert (first.role, second.role) == ("origin", "receiver")
    assert torch.equal(receiver.layer.weight, torch.full((3, 3), 5.0))
    assert torch.equal(receiver.layer.bias, torch.full((3,), 5.0))
    assert receiver.owns_embeddings is True


def test_a_receiver_keeps_the_buffers_that_it_computed_itself():
    session, origin, receiver = LocalSession(), Model(), Model()
    own = receiver.cache.clone()
    share(origin, session, filler(origin))
    share(receiver, session, never)
    assert torch.equal(receiver.cache, own)


@pytest.mark.parametrize("writer", ["origin", "receiver"])
def test_no_engine_can_damage_what_others_read(writer):
    session, models = LocalSession(), {"origin": Model(), "receiver": Model()}
    share(models["origin"], session, filler(models["origin"]))
    share(models["receiver"], session, never)
    with torch.no_grad():
        models[writer].layer.weight.zero_()
    assert session.arena.digest(0, session.manifest.nbytes) == session.manifest.digests[0]


def test_an_error_of_the_loader_passes_through_and_waiting_replicas_are_released():
    session, model = LocalSession(), Model()

    def load() -> None:
        raise RuntimeError("Cannot find any model weights")

    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        share(model, session, load)
    assert session.failures == ["RuntimeError: Cannot find any model weights"]


@pytest.mark.parametrize("error", [VersionConflict("other bytes"), ArenaGone("the actor ended")])
def test_an_origin_that_cannot_share_keeps_its_weights_in_memory_of_its_own(error):
    session, model = LocalSession(seal_error=error), Model()
    loaded = share(model, session, filler(model))
    assert (loaded.not_shared, loaded.mapped) == (error, None)
    session.arena.tensor().zero_()
    assert torch.equal(model.layer.weight, torch.full((3, 3), 5.0))
    assert len(session.failures) == 1


def test_a_loader_that_changes_a_tensors_form_loads_well_but_is_no_source():
    session, model = LocalSession(), Model()

    def load() -> None:
        model.layer.weight = nn.Parameter(torch.ones(5, 5))

    loaded = share(model, session, load)
    assert isinstance(loaded.not_shared, CaptureUnsupported)
    assert torch.equal(model.layer.weight, torch.ones(5, 5))
    assert session.manifest is None


def test_a_model_that_cannot_be_captured_is_not_touched_and_nobody_is_asked():
    session, model = LocalSession(), Model()
    model.shortcut = model.layer.weight.data[0]
    with pytest.raises(CaptureUnsupported, match="shortcut"):
        share(model, session, never)
    assert session.arena is None


def test_a_model_is_not_touched_when_the_weights_do_not_arrive():
    class Late(LocalSession):
        def open(self, *args, **kwargs):
            raise DeadlineExceeded("1 s passed")

    model = Model()
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    with pytest.raises(DeadlineExceeded):
        share(model, Late(), never)
    assert before == {n: p.data_ptr() for n, p in model.named_parameters()}


def test_a_model_is_not_touched_when_the_owner_of_the_memory_is_gone():
    session, origin, receiver = LocalSession(), Model(), Model()
    share(origin, session, filler(origin))
    session.arena.close()
    before = {n: p.data_ptr() for n, p in receiver.named_parameters()}
    with pytest.raises(ArenaGone):
        share(receiver, session, never)
    assert before == {n: p.data_ptr() for n, p in receiver.named_parameters()}
    assert receiver.owns_embeddings is False
