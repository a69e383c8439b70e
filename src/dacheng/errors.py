"""The errors a user sees. Each names what was wrong, the field, the value found, and what to do about it."""

from __future__ import annotations

_MAX_SHOWN = 200


class DachengError(Exception):
    """A failure with a remedy. The command line prints it without a traceback and exits with `exit_code`.

    `problem` says what went wrong; `field` names the recipe key, tensor, file or option; `value` is what was found
    there; `remedy` says what to change or run.
    """

    exit_code = 1

    def __init__(
        self, problem: str, *, field: str | None = None, value: object = None, remedy: str | None = None
    ) -> None:
        self.problem, self.field, self.value, self.remedy = problem, field, value, remedy
        super().__init__(str(self))

    def __reduce__(self) -> tuple:  # survives a trip through a worker process
        return (_rebuild, (type(self), self.problem, self.field, self.value, self.remedy))

    def __str__(self) -> str:
        lines = [self.problem]
        if self.field is not None:
            lines.append(f"  field:  {self.field}")
        if self.value is not None:
            shown = repr(self.value)
            lines.append(f"  value:  {shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '…'}")
        if self.remedy is not None:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


def _rebuild(
    cls: type[DachengError], problem: str, field: str | None, value: object, remedy: str | None
) -> DachengError:
    return cls(problem, field=field, value=value, remedy=remedy)


class UsageError(DachengError):
    """The command or the recipe is wrong: nothing was started. Exit code 2."""

    exit_code = 2


class DamagedFile(DachengError):
    """A file is truncated, altered or not what its name says."""


class Locked(DachengError):
    """Another process is writing the same output."""


class MissingExtra(DachengError):
    """An optional library is absent."""

    def __init__(self, library: str, extra: str) -> None:
        self._library, self._extra = library, extra
        super().__init__(
            f"{library} is not installed", field="extra", value=extra, remedy=f"pip install 'dacheng[{extra}]'"
        )

    def __reduce__(self) -> tuple:
        return (MissingExtra, (self._library, self._extra))
