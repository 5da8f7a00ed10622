"""networkx, imported when one of its names is first used.

`import networkx` takes a fifth of the time of `import jax`. Programs that make no
graph, and tools that only read the names of djax, need not wait for it. The modules of
djax therefore say `from djax import _networkx as nx` in place of `import networkx`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from networkx import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Returns an attribute of networkx."""
    import networkx

    return getattr(networkx, name)
