"""``DeviceLoader``: batches on a GPU, copied while the step before runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from penstock.errors import BudgetHeld, ConfigError, ResumeError
from penstock.sizes import whole_number
from penstock.torch.ranks import local_rank
from penstock.torch.tensors import map_tensors, pinned, require_pinning, tensors_of

__all__ = ["Ahead", "DeviceLoader"]

S = TypeVar("S")
R = TypeVar("R")


class DeviceLoader:
    """The batches of another loader with their tensors on a device.

    On a GPU the next batch is on its way while the step before runs: its tensors are copied into page-locked memory
    and from there, on a stream of their own, to the device. What they were copied from goes back to the loader's
    budget when nothing reads it any more; the page-locked memory is torch's, beyond the cap: about as much as
    ``ahead + 1`` batches. On a CPU batches come as they are, at no cost.

    ``len()``, ``set_epoch``, ``epoch``, ``state_dict`` and ``load_state_dict`` are the loader's; the state counts what
    was handed out, not what was copied ahead.

    Args:
        loader: ``EpochLoader``, torch's DataLoader, or anything else that can be iterated. Tuples, lists and dicts of
            tensors or arrays are known; batches of ``penstock.load`` become the tensors of
            ``to_torch_with_labels()``, or of ``to_torch()`` where there are no labels.
        device: where to; by default the GPU whose number is ``LOCAL_RANK``, or the CPU where there is none.
        pin_memory: copy through page-locked memory; by default on a GPU.
        non_blocking: copy beside the computation; by default on a GPU, and where the ``EpochLoader`` was asked to.
            False copies each batch when it is asked for.
        ahead: how many batches are copied ahead.

    Raises:
        ConfigError: there is no such device, or ``pin_memory`` or ``non_blocking`` would have nothing to act on.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str | None = None,
        *,
        pin_memory: bool | None = None,
        non_blocking: bool | None = None,
        ahead: int = 1,
    ) -> None:
        self._loader: Any = loader
        self.device = _device(device)
        on_gpu = self.device.type == "cuda"
        if non_blocking is None and getattr(loader, "non_blocking", False):
            non_blocking = True
        if pin_memory:
            require_pinning()
        for name, asked in (("pin_memory", pin_memory), ("non_blocking", non_blocking)):
            if asked and not on_gpu:
                raise ConfigError(f"{name} is True, and batches stay on {self.device}; leave it out, or give a GPU")
        self._pin = on_gpu if pin_memory is None else pin_memory
        self.non_blocking = on_gpu if non_blocking is None else non_blocking
        self._ahead = whole_number("ahead", ahead, least=1)
        self._loop: Ahead[Any, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """The loader's next loop."""
        source = iter(self._loader)
        self._loop = None
        if not self.non_blocking:
            return map(self._at_once, source)
        copier = _Copier(self.device, pin=self._pin)
        self._loop = Ahead(
            source,
            start=copier.start,
            finish=copier.finish,
            ahead=self._ahead,
            snapshot=self._snapshot(),
            let_go=copier.let_go,
        )
        return self._loop

    def __len__(self) -> int:
        """Batches of an epoch, as the loader has it."""
        return len(self._loader)

    def __bool__(self) -> bool:
        return True

    @property
    def epoch(self) -> int:
        """See the loader's; while a loop copies ahead, of what was handed out."""
        return int(self._loader.epoch if self._loop is None else self._loop.state["epoch"])

    def set_epoch(self, epoch: int) -> None:
        """Have the next loop be of this epoch."""
        self._loop = None
        self._loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is: after the batch that was handed out last.

        Raises:
            ResumeError: the loader has no state.
        """
        state: dict[str, Any] | None = self._snapshot()() if self._loop is None else self._loop.state
        if state is None:
            raise ResumeError(
                f"{type(self._loader).__name__} has no state_dict(); use EpochLoader, or StatefulDataLoader"
            )
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next loop go on where this state was saved."""
        self._loop = None
        self._loader.load_state_dict(state)

    def _snapshot(self) -> Callable[[], Any]:
        return getattr(self._loader, "state_dict", _no_state)

    def _at_once(self, batch: Any) -> Any:
        batch = tensors_of(batch)
        if self.device.type == "cpu":
            return batch
        if self._pin:
            batch = map_tensors(batch, pinned)
        return map_tensors(batch, lambda tensor: tensor.to(self.device))


class Ahead(Iterator[R], Generic[S, R]):
    """Items of an iterator, each started some items before it is asked for, and finished when it is.

    An error of the iterator is raised in its turn, after the items before it.

    Args:
        source: of the items.
        start: begins what is done with one.
        finish: ends it, in order, when it is handed out.
        ahead: how many are started before the one that is handed out.
        snapshot: the state of the source, taken after each item.
        let_go: frees what can be freed: at the end, and when the source says that too much is held.
    """

    def __init__(
        self,
        source: Iterator[Any],
        *,
        start: Callable[[Any], S],
        finish: Callable[[S], R],
        ahead: int,
        snapshot: Callable[[], Any],
        let_go: Callable[[], None],
    ) -> None:
        self._source, self._start, self._finish = source, start, finish
        self._ahead, self._snapshot, self._let_go = ahead, snapshot, let_go
        self._started: deque[tuple[S, Any]] = deque()
        self._ended: Exception | None = None
        self.state = snapshot()  # after what was handed out

    def __next__(self) -> R:
        while self._ended is None and len(self._started) <= self._ahead:
            try:
                self._started.append((self._start(self._pull()), self._snapshot()))
            except Exception as error:
                self._ended = error
        if not self._started:
            assert self._ended is not None
            self._let_go()
            ended, self._ended = self._ended, StopIteration()
            raise ended
        started, self.state = self._started.popleft()
        return self._finish(started)

    def _pull(self) -> Any:
        try:
            return next(self._source)
        except BudgetHeld:
            self._let_go()
        return next(self._source)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A batch on its way.

    Attributes:
        batch: on the device.
        sources: what it is copied from.
        done: when that has been read.
    """

    batch: Any
    sources: list[torch.Tensor]
    done: torch.cuda.Event


class _Copier:
    """Copies batches to a GPU on a stream of its own. Used by one thread."""

    def __init__(self, device: torch.device, *, pin: bool) -> None:
        self._device, self._pin = device, pin
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._read_still: deque[_Copy] = deque()  # handed out; their sources may be read still

    def start(self, batch: Any) -> _Copy:
        """Put the copies of a batch on the stream."""
        sources: list[torch.Tensor] = []

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            sources.append(pinned(tensor) if self._pin else tensor)
            return sources[-1].to(self._device, non_blocking=True)

        with torch.cuda.stream(self._stream):
            return _Copy(map_tensors(tensors_of(batch), copied), sources, self._stream.record_event())

    def finish(self, copy: _Copy) -> Any:
        """The batch, for the stream that is current now: what that does with it waits for the copies."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        map_tensors(copy.batch, lambda tensor: _used_on(tensor, current))
        self._read_still.append(copy)
        while self._read_still and self._read_still[0].done.query():  # type: ignore[no-untyped-call]
            self._read_still.popleft()
        return copy.batch

    def let_go(self) -> None:
        """Wait until no source is read any more, and let go of them."""
        self._stream.synchronize()
        self._read_still.clear()


def _used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    tensor.record_stream(stream)  # its memory isn't given away before that stream is done with it
    return tensor


def _device(asked: torch.device | str | None) -> torch.device:
    if asked is None:
        asked = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    device = torch.device(asked)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"the device is {device}, and there are {torch.cuda.device_count()} CUDA devices; give another device, or "
            "set LOCAL_RANK to a number below that"
        )
    return device


def _no_state() -> None:
    return None
