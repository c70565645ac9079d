"""Journal of completed steps, so that a failure or Ctrl-C can report what exists and how to continue."""

from collections.abc import Iterator
from contextlib import contextmanager

from mii_azure.azure.client import Say
from mii_azure.azure.errors import translated
from mii_azure.errors import AzureError, Interrupted


class Journal:
    """Steps of one command; an error that ends a step early is raised with an account of all of them."""

    def __init__(self, say: Say, again: str) -> None:
        self.say = say
        self.done: list[str] = []
        self._again = again

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce and run one step. Raises AzureError and Interrupted with what exists by then."""
        self.say(what)
        try:
            with translated():
                yield
        except AzureError as error:
            if self._again not in error.hint:  # an inner step may have said so
                error.hint = f"{error.hint} {self.account(what)}".strip()
            raise
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped while at: {what}. Azure finishes what it was given already.", self.account(what)
            ) from None
        self.done.append(what)

    def account(self, at: str) -> str:
        """Account of what exists and how to continue, in one sentence each."""
        exists = f"Done before: {', '.join(self.done)}." if self.done else "Nothing was created before."
        return f"{exists} {self._again} goes on from: {at}."
