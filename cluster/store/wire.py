"""Packing commands in C: redis-py does so for its blocking client, and in Python for the asyncio one."""

from typing import Any

import hiredis


class Packing:
    """Mixed in before a connection class of redis-py. A commit of a hundred tasks has four thousand arguments."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """The bytes of one command."""
        name = args[0]
        return [hiredis.pack_command((*name.split(), *args[1:]) if " " in name else args)]  # "SCRIPT LOAD" is two words


def packed(pool: Any) -> None:
    """Have the pool make its connections so."""
    pool.connection_class = type("Packed", (Packing, pool.connection_class), {})
