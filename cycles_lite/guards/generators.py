"""Work that is done after its function has returned: generators and streams carry their guard from step to step;
coroutines, which this library cannot wait for, are refused."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Callable, Generator, Generic, Iterable, Iterator, TypeVar

from ..background.worker import left_over
from ..transport.turns import Turns
from .costs import settle_by_estimate
from .current import inside

if TYPE_CHECKING:
    from ..guard import ReservationGuard

T = TypeVar("T")

#: What a function returns whose work has not been done yet. `isinstance` takes longer with the classes of `typing`.
_ASYNCHRONOUS = (collections.abc.Coroutine, collections.abc.AsyncGenerator)
UNDONE: Any = (collections.abc.Generator, *_ASYNCHRONOUS)


def is_generator_function(fn: Any) -> bool:
    return inspect.isgeneratorfunction(_innermost(fn))


def refuse_asynchronous(decorator: str, fn: Any) -> None:
    """Refuse coroutine functions, asynchronous generators and what cannot be called."""
    inner = _innermost(fn)
    if any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in (fn, inner)):
        raise _asynchronous(decorator, fn)
    if not callable(fn):
        raise TypeError(f"@{decorator}: {fn!r} is not callable; is it used without its parentheses?")


def refuse_unawaited(decorator: str, fn: Any, result: Any) -> None:
    """Refuse a coroutine that another decorator hid until the call, because nothing will await it."""
    if isinstance(result, _ASYNCHRONOUS):
        if isinstance(result, collections.abc.Coroutine):
            result.close()
        raise _asynchronous(decorator, fn)


def goes_on(steps: Any) -> bool:
    """Whether a generator can still be stepped. After an exception this means that the step was refused, not made."""
    return getattr(steps, "gi_frame", None) is not None


def _asynchronous(decorator: str, fn: Any) -> TypeError:
    name = getattr(fn, "__qualname__", repr(fn))
    return TypeError(
        f"@{decorator}: {name} is asynchronous, and cycles_lite is blocking; use the SDK runcycles for asyncio"
    )


def _innermost(fn: Any) -> Any:
    """The function in a partial, and in an object that is called."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    is_plain = inspect.isfunction(fn) or inspect.ismethod(fn) or inspect.isclass(fn)
    return fn if is_plain else getattr(fn, "__call__", fn)  # noqa: B004


class _InTurns:
    """Steps that are made one at a time. Who comes meanwhile, from another thread, gets the `ValueError` that
    generators raise, and the step that is under way goes on."""

    #: What a `ValueError` calls it.
    _what = "generator"

    def __init__(self) -> None:
        #: There is one turn: whoever has it steps, closes and settles.
        self._turns = Turns(1)

    def _in_turn(self, step: Callable[..., Any], *given: Any) -> Any:
        turn = self._turns.take(0)
        if turn is None:
            raise ValueError(f"{self._what} already executing")
        try:
            return step(*given)
        finally:
            turn.give_back()


class GuardedStream(_InTurns, Generic[T]):
    """The items of an iterable, each made with the guard as the current one; whatever ends them settles the guard. It
    is what `ReservationGuard.stream` gives."""

    _what = "the stream is"

    def __init__(self, guard: ReservationGuard, iterable: Iterable[T]) -> None:
        super().__init__()
        self._guard, self._source = guard, iterable
        self._items = iter(iterable)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item: T = self._in_turn(self._ending, next, self._items)
        return item

    def close(self) -> None:
        """Close the iterable, where it can be closed, and settle: what was metered is committed, else it is released.

        Servers call this (PEP 3333) however a response ends.
        """
        self._in_turn(self._close)

    def _close(self) -> None:
        for closed in (self._items, self._source):
            close: Any = getattr(closed, "close", None)
            if close is not None:
                self._ending(close)
        self._guard.end(None)

    def _ending(self, step: Callable[..., Any], *given: Any) -> Any:
        """What a step gives. An exception that comes out of it ends the guard."""
        with inside(self._guard):
            try:
                return step(*given)
            except StopIteration:
                self._guard.end(None)
                raise
            except BaseException as e:
                self._guard.end(e)
                raise


#: The guards of generators under way, by the `id` of the generator. They are kept here because objects that are
#: collected together are finalized in any order: the guard could be released before its generator commits its cost.
_under_way: dict[int, ReservationGuard] = {}


class GuardedGenerator(_InTurns, Generator[Any, Any, Any]):
    """A generator whose guard lives from its first step to its last, and is current inside each step alone.

    how it ends                                     what is committed
    ----------------------------------------------  --------------------------------------------------
    it is exhausted                                 what `settle(guard, its result)` says
    `close()`, GeneratorExit, collected unfinished  the meter if there is one, else the estimate, marked
    any other exception                             the meter if there is one, else it is released

    It behaves as the generator in it does, also for wrong uses: those change nothing, because its work goes on.
    """

    _guard: ReservationGuard | None = None
    _is_collected = False

    def __init__(
        self,
        steps: Any,
        settle: Callable[[ReservationGuard, Any], None],
        reserve: Callable[[], ReservationGuard] | None = None,
        guard: ReservationGuard | None = None,
    ) -> None:
        """`reserve` is called before the first step and returns the guard; without it, `guard` is given."""
        super().__init__()
        self._steps, self._settle, self._reserve = steps, settle, reserve
        if guard is not None:
            self._begin(guard)

    def _begin(self, guard: ReservationGuard) -> None:
        self._guard = _under_way[id(self)] = guard

    @property
    def gi_frame(self) -> Any:
        """The frame, as every generator has it; None once the generator is over."""
        return getattr(self._steps, "gi_frame", None)

    def send(self, value: Any) -> Any:
        return self._in_turn(self._send, value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        # Python 3.12 warns where more than one argument is given.
        given = (kind,) if value is None and traceback is None else (kind, value, traceback)
        return self._in_turn(self._advance, self._steps.throw, *given)

    def close(self) -> Any:
        return self._in_turn(self._close)

    def __del__(self) -> None:
        # A finalizer may run while any lock is held, so the worker does the sending. The `finally` blocks of the
        # generator run here, as those of every generator do, and what they meter still counts.
        guard = _under_way.pop(id(self), None)
        if guard is not None and guard.is_active and not sys.is_finalizing():
            self._is_collected = True
            self._close()

    def _send(self, value: Any) -> Any:
        if self._guard is None and value is None and self._reserve is not None and self._is_unrun():
            self._begin(self._reserve())
        return self._advance(self._steps.send, value)

    def _is_unrun(self) -> bool:
        return self._reserve is not None and inspect.getgeneratorstate(self._steps) == inspect.GEN_CREATED

    def _close(self) -> Any:
        if self._guard is not None and self._is_unrun():  # its first step was interrupted before it began
            self._failed(self._guard, GeneratorExit())
            return self._steps.close()
        try:
            result = self._advance(self._steps.close)
        except RuntimeError:
            if goes_on(self._steps):  # the generator has ignored GeneratorExit and yielded again
                self._closed_early()
            raise
        self._closed_early()
        return result

    def _advance(self, advance: Callable[..., Any], *given: Any) -> Any:
        guard = self._guard
        if guard is None:  # the generator has not begun, so there is nothing to settle
            return advance(*given)
        with inside(guard):
            try:
                return advance(*given)
            except StopIteration as stop:
                self._settle(guard, stop.value)
                raise
            except GeneratorExit:
                self._closed_early()
                raise
            except BaseException as e:
                if not goes_on(self._steps):
                    self._failed(guard, e)
                raise

    def _closed_early(self) -> None:
        guard = self._guard
        if guard is None:
            return
        if self._is_collected:
            left_over.append(functools.partial(settle_by_estimate, guard, waits=False))
        else:
            settle_by_estimate(guard)

    def _failed(self, guard: ReservationGuard, error: BaseException) -> None:
        if self._is_collected:
            left_over.append(guard.settle_abandoned)
        else:
            guard.end(error)
