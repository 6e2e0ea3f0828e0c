"""A guard that lives as long as an iterator: `ReservationGuard.stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Generic, Iterable, Iterator, TypeVar

from .current import inside

if TYPE_CHECKING:
    from ..guard import ReservationGuard

T = TypeVar("T")


class GuardedStream(Generic[T]):
    """The items of an iterable, each made with the guard as the current one; whatever ends them settles the guard.

    One step runs at a time: who comes meanwhile, from another thread, gets the `ValueError` that generators raise, and
    the step that is under way goes on.
    """

    def __init__(self, guard: ReservationGuard, iterable: Iterable[T]) -> None:
        self._guard, self._source = guard, iterable
        self._items = iter(iterable)
        #: Who is within a step. Putting oneself there is atomic.
        self._inside: dict[str, object] = {}

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item: T = self._alone(self._advance)
        return item

    def close(self) -> None:
        """Close the iterable, where it can be closed, and settle: what was metered is committed, else it is released.

        Servers call this (PEP 3333) however a response ends.
        """
        self._alone(self._close)

    def _advance(self) -> T:
        try:
            return next(self._items)
        except StopIteration:
            self._guard.end(None)
            raise
        except BaseException as e:
            self._guard.end(e)
            raise

    def _close(self) -> None:
        try:
            for closed in (self._items, self._source):
                close: Any = getattr(closed, "close", None)
                if close is not None:
                    close()
        except BaseException as e:
            self._guard.end(e)
            raise
        self._guard.end(None)

    def _alone(self, step: Callable[[], Any]) -> Any:
        me = object()
        try:
            if self._inside.setdefault("step", me) is not me:
                raise ValueError("the stream is already executing")
            with inside(self._guard):
                return step()
        finally:
            if self._inside.get("step") is me:
                del self._inside["step"]
