"""``EpochLoader``: a loader that can be looped over again and again, each time another epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from penstock.errors import ConfigError
from penstock.loader.loader import Loader
from penstock.order.state import LoaderState
from penstock.sizes import whole_number
from penstock.torch.maker import Maker
from penstock.torch.position import Position
from penstock.torch.ranks import Place
from penstock.torch.tensors import map_tensors, pinned, require_pinning, tensors_of

__all__ = ["EpochLoader"]

P = ParamSpec("P")
T = TypeVar("T")


class EpochLoader(Generic[T]):
    """Batches for a training loop that runs over the data more than once, without worker processes.

    ::

        loader = EpochLoader(ImageFolderLoader, "photos-packed", resize_hw=(224, 224), shuffle=True)
        for epoch in range(loader.epoch, 90):
            for images, labels in loader:
                ...

    Every ``iter()``, so every loop, is the next epoch, in its own order; a loop that took nothing is not counted, one
    that was left early is. There is one loader, and one budget, at a time. What a batch is, and how long it may be
    held, is the loader's own matter.

    ``len()`` is the number of batches of an epoch, ``state_dict()`` and ``load_state_dict()`` are exact, so progress
    bars and Lightning's ``Trainer.fit(model, loader)``, mid-epoch checkpoints included, work.

    Args:
        make: what makes a loader: ``penstock.load``, ``penstock.vision.ImageFolderLoader``, or a function that passes
            the keywords on which it doesn't know.
        args: what that takes: the dataset link,
        arguments: and its arguments. ``epoch`` is the first epoch, ``resume`` a state to go on from. Without
            ``rank`` and ``world_size`` they are torch.distributed's where it is initialised when a loop begins, else
            the environment's ``RANK`` and ``WORLD_SIZE``, else 0 and 1. With ``persistent_workers=True`` one loader
            is kept for all epochs, with its threads and memory.

    Raises:
        ConfigError: there is no loader to be made of this.
    """

    def __init__(self, make: Callable[P, Loader[T]], *args: P.args, **arguments: P.kwargs) -> None:
        self._maker = Maker.of(make, args, arguments)
        self._pins = bool(self._maker.asked("pin_memory"))
        if self._pins:
            require_pinning()
        self._position = self._maker.start  # where the loader begins, or will
        self._loader: Loader[T] | None = None
        self._place: Place | None = None  # that the loader was made for
        self._looped = False  # whether the loader was given to a loop
        self._whole: int | None = None  # batches of an epoch

    @property
    def loader(self) -> Loader[T]:
        """The loader of the loop that is under way, or of the next one: for ``stats()``, ``trace()`` or ``classes``."""
        if self._loader is not None and not self._looped and self._place != self._maker.place():
            self._drop()  # the process group came after it
        if self._loader is None:
            self._open()
        assert self._loader is not None
        return self._loader

    @property
    def non_blocking(self) -> bool:
        """Whether its arguments ask for copies beside the computation, which a ``DeviceLoader`` over it makes."""
        return bool(self._maker.asked("non_blocking"))

    @property
    def epoch(self) -> int:
        """Which epoch the loop that is under way is of; between loops, the next one."""
        loader = self.loader
        return self._position.epoch + bool(self._looped and _is_over(loader))

    def __iter__(self) -> Iterator[T]:
        """Begin the next epoch, or the rest of the one that a state was loaded of."""
        if self._looped and self._loader is not None:
            self._turn_to(self._position.next() if self._taken() else self._position)
        loader = self.loader
        self._looped = True
        return map(_pinned, loader) if self._pins else loader

    def __getitem__(self, index: object) -> NoReturn:
        """For torch's DataLoader, which takes what it is given for a list of samples.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"item {index!r} of an EpochLoader was asked for, and it is no dataset but a loader: loop over it, or give "
            "torch's DataLoader an EpochDataset, with batch_size=None"
        )

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        """Batches of an epoch, or of the one that is being resumed where those are more, as on fewer ranks before.

        Raises:
            TypeError: batches are cut by bytes, so that their number isn't known.
        """
        left = len(self.loader)
        if self._position.loader is None:
            self._whole = left
        if self._whole is None:
            with self._maker.open(Position(self._position.epoch), self._place) as whole:
                self._whole = len(whole)
        return max(self._whole, self._position.batches + left)

    def set_epoch(self, epoch: int) -> None:
        """Have the next loop be of this epoch; without it every loop is of the next one.

        From its beginning, unless a state in that very epoch was loaded and nothing taken since. So it does no harm
        where a trainer calls it for every epoch, the resumed one included.

        Raises:
            ConfigError: that is no epoch.
        """
        position = Position(whole_number("epoch", epoch, least=0))
        if self._taken():
            self._turn_to(position)
        elif self._position.epoch != epoch:
            if self._looped and self._loader is not None:
                self._loader.set_epoch(epoch)  # a loop has it in hand
                self._position = position
            else:
                self._turn_to(position)

    @property
    def sampler(self) -> EpochLoader[T]:
        """Who is told of a new epoch: Lightning calls ``loader.sampler.set_epoch(n)``, as of a DistributedSampler."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is, as a small dict for JSON; what was only read ahead doesn't count.

        It holds the loader's own ``state_dict()`` as ``"loader"``, which is None at the beginning of an epoch; its end
        is the beginning of the next. Where ranks step together any rank's state will do; otherwise merge those of
        ``self.loader``.
        """
        if self._loader is None or not self._taken():
            return self._position.to_dict()
        if _is_over(self._loader):
            return self._position.next().to_dict()
        return self._position.after(self._taken(), self._loader.state_dict()).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next loop go on where this state was saved, on any number of ranks.

        Where nothing was left of its epoch, that loop is of the next one.

        Args:
            state: what ``state_dict()`` of this class or of a loader, or ``merge_states``, returned.

        Raises:
            ResumeError: it is no such state. That it is of other samples or another order shows when a loop begins.
        """
        self._turn_to(Position.from_dict(state))

    def close(self) -> None:
        """Let go of threads, files and memory. The next loop goes on where this one is."""
        position = Position.from_dict(self.state_dict())
        self._drop()
        self._position = position

    def __enter__(self) -> EpochLoader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Make the loader of the position; where that epoch is at its end, of the next one."""
        self._place = self._maker.place()
        self._loader = self._made()
        if self._position.loader is not None and _is_over(self._loader):
            self._drop()
            self._position = self._position.next()
            self._loader = self._made()

    def _made(self) -> Loader[T]:
        return self._maker.open(self._position, self._place)

    def _turn_to(self, position: Position) -> None:
        """The next loop begins there."""
        kept, same_place = self._loader, self._place == self._maker.place()
        # One that was given a state and has handed out nothing since goes on there when it is told its own epoch.
        turns = kept is not None and (bool(kept.delivered_batches) or kept.epoch != position.epoch)
        self._position, self._looped = position, False
        if kept is not None and kept.options.persistent_workers and position.loader is None and same_place and turns:
            kept.set_epoch(position.epoch)
        else:
            self._drop()

    def _drop(self) -> None:
        loader, self._loader, self._looped = self._loader, None, False
        if loader is not None:
            loader.close()

    def _taken(self) -> int:
        """Batches that the loader has handed out."""
        return 0 if self._loader is None else self._loader.delivered_batches


def _is_over(loader: Loader[Any]) -> bool:
    """Whether a loader has handed out everything."""
    try:
        return len(loader) == loader.delivered_batches
    except TypeError:  # cut by bytes: nobody knows how many there are, but all samples are done
        state = LoaderState.from_dict(loader.state_dict())
        return sum(end - start for start, end in state.done()) == state.epoch.count


def _pinned(batch: Any) -> Any:
    return map_tensors(tensors_of(batch), pinned)
