"""placeholder: every verb takes the long way."""

from typing import Any


class Quick:
    def may_name(self, *args: Any) -> bool:
        return False

    may_change = may_change_entry = may_write = may_set_attributes = may_name

    def __init__(self, *args: Any) -> None: ...
    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError
