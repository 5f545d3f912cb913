"""PlainMamba (arXiv 2403.17695)."""

from . import released  # noqa: F401 - registers the names
from .adapter import PlainMambaAdapter
from .backbone import PlainMamba
from .mixer import PlainMambaMixer

__all__ = ['PlainMamba', 'PlainMambaAdapter', 'PlainMambaMixer']
