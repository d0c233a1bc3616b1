"""Resident objects: numbers, types, and which go first when memory is short."""

from __future__ import annotations

import gc
import weakref

import pytest

from vortex_worker.errors import ObjectLost
from vortex_worker.executor.objects import ObjectTable


class Model:
    pass


def test_put_get_release() -> None:
    table, model = ObjectTable(), Model()
    number = table.put(model, "MODEL")
    assert number > 0
    assert table.get(number, "MODEL") is model
    assert len(table) == 1
    table.release([number, number, 999])
    assert len(table) == 0
    with pytest.raises(ObjectLost, match=f"MODEL object {number} is not in this worker") as caught:
        table.get(number, "MODEL")
    assert caught.value.code == "WK-012"
    assert caught.value.retryable


def test_numbers_are_never_used_again() -> None:
    table = ObjectTable()
    first = table.put(Model(), "MODEL")
    table.release([first])
    assert table.put(Model(), "MODEL") > first


def test_one_object_twice_is_released_twice() -> None:
    table, model = ObjectTable(), Model()
    first, second = table.put(model, "MODEL"), table.put(model, "MODEL")
    table.release([first])
    assert table.get(second, "MODEL") is model


def test_of_another_type() -> None:
    table = ObjectTable()
    number = table.put(Model(), "MODEL")
    with pytest.raises(ObjectLost, match="is a MODEL, not a VAE"):
        table.get(number, "VAE")


@pytest.mark.parametrize("number", [0, -1, 1 << 64])
def test_no_such_number(number: int) -> None:
    with pytest.raises(ObjectLost):
        ObjectTable().get(number, "MODEL")


def test_drop_idle_frees_memory() -> None:
    table = ObjectTable()
    model = Model()
    seen = weakref.ref(model)
    idle, used = table.put(model, "MODEL"), table.put(Model(), "MODEL")
    del model
    assert table.drop_idle([used, 12345]) == 1
    gc.collect()
    assert seen() is None
    table.get(used, "MODEL")
    with pytest.raises(ObjectLost):
        table.get(idle, "MODEL")
    assert table.drop_idle([]) == 1
    assert table.drop_idle([]) == 0
