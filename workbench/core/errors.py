"""One tree of errors, each telling what went wrong, where, and what to do next.

A person meets these in a notebook cell, under a widget or on standard error; a pipeline meets their exit code. So an
error carries its parts as data and renders them in one order everywhere.

Example:
    >>> raise SiteError("no site 'resdi.2'", where="subject 'organism'", hint="did you mean 'resid.2'?")
    Traceback (most recent call last):
    workbench.core.errors.SiteError: no site 'resdi.2' [subject 'organism']; did you mean 'resid.2'?
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Anything this software refuses or cannot do.

    Args:
        message: What happened: got and expected.
        where: Site, field, file or object it concerns.
        hint: The next step for the person.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None):
        self.message, self.where, self.hint = message, where, hint
        super().__init__(message)

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f" [{self.where}]"
        if self.hint:
            text += f"; {self.hint}"
        return text


class InputError(WorkbenchError):
    """A value that a caller gave cannot be used."""


class SubjectError(WorkbenchError):
    """A model cannot be opened, or is not the one that was meant."""


class SiteError(WorkbenchError):
    """A site name resolves to nothing in this subject."""


class DictionaryError(WorkbenchError):
    """An SAE or transcoder cannot be read, or does not fit the subject."""


class PromptError(WorkbenchError):
    """A prompt is empty, too long or malformed."""


class EditError(WorkbenchError):
    """An edit is contradictory, not finite, or cannot be applied exactly."""


class FiringError(WorkbenchError):
    """An edit never fired, or fired where it should not have."""


class AxisError(WorkbenchError):
    """A risk axis is empty, has one cluster, or lacks what was asked of it."""


class TrialError(WorkbenchError):
    """A plan or its run breaks a promise that the evidence stands on."""


class BundleError(WorkbenchError):
    """A spec bundle is refused.

    Args:
        message: What was found and what was expected.
        check: Identifier of the check that refused it.
        path: File inside the bundle.
        hint: The next step for the person.
    """

    def __init__(self, message: str, *, check: str, path: str | None = None, hint: str | None = None):
        super().__init__(message, where=path, hint=hint)
        self.check, self.path = check, path


class JournalError(WorkbenchError):
    """The record of what was tried cannot be read or written."""


class Cancelled(WorkbenchError):
    """A person stopped the work; what was finished before is kept."""
