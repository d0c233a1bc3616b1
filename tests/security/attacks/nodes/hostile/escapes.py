"""Public ways in Python round an import hook, and tampering with bytecode. The hook is a courtesy and no boundary:
each of these gets hold of the real ``os`` (or something as good), and then meets the layers below.
"""

from __future__ import annotations

import builtins
import ctypes
import marshal
import sys
import types
from typing import Any

from vortex_worker.executor import AbstractExecutor

from .registry import FILTER, LANDLOCK, attack


def harm(world: Any, os: Any) -> None:
    """What one does with ``os``: write a file, start a program."""
    os.close(os.open(f"{world.outside}/escaped", os.O_CREAT | os.O_WRONLY, 0o600))
    os.system(f": > {world.outside}/escaped-too")


def source(world: Any) -> str:
    """The same, as text, given ``os``."""
    path = f"{world.outside}/escaped"
    return f"os.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY, 0o600)); os.system(': > {path}-too')"


escape = attack("files", FILTER, LANDLOCK)


@escape
def by_the_table_of_modules(world: Any) -> None:
    """`sys.modules["os"]`."""
    harm(world, sys.modules["os"])


@escape
def by_an_attribute(world: Any) -> None:
    """Another module's import of it: `inspect.os`."""
    import inspect

    harm(world, inspect.os)  # type: ignore[attr-defined]


@escape
def by_an_attribute_of_torch(world: Any) -> None:
    """torch's import of it: `torch.os`."""
    import torch

    harm(world, torch.os)  # type: ignore[attr-defined]


@escape
def by_the_module_below(world: Any) -> None:
    """`import posix`."""
    import posix

    harm(world, posix)


@escape
def by_subclasses(world: Any) -> None:
    """`object.__subclasses__()`, from a tuple, to a class whose globals have it: the classic of template engines."""
    classes = ().__class__.__base__.__subclasses__()
    found = next(c for c in classes if c.__name__ == "_wrap_close").__init__.__globals__
    harm(world, types.SimpleNamespace(**{k: v for k, v in found.items() if isinstance(k, str)}))


@escape
def by_warnings(world: Any) -> None:
    """`warnings.catch_warnings()._module`, and from there to builtins."""
    module = next(c for c in object.__subclasses__() if c.__name__ == "catch_warnings")()._module
    harm(world, module.sys.modules["os"])


@escape
def by_a_frame(world: Any) -> None:
    """The frames of its callers, whose globals have it."""
    frame: Any = sys._getframe()
    while "os" not in frame.f_globals:
        frame = frame.f_back
    harm(world, frame.f_globals["os"])


@escape
def by_a_traceback(world: Any) -> None:
    """The frame of an exception that was raised in other code."""
    import pathlib

    try:
        pathlib.Path("/nowhere/at/all").read_bytes()
    except OSError as error:
        trace: Any = error.__traceback__
        while "os" not in trace.tb_frame.f_globals:
            trace = trace.tb_next
        harm(world, trace.tb_frame.f_globals["os"])


@escape
def by_a_generator(world: Any) -> None:
    """`gi_frame.f_back` of a running generator."""

    def generator() -> Any:
        yield running.gi_frame.f_back

    running: Any = generator()
    frame = next(running)
    while frame and "sys" not in frame.f_globals:
        frame = frame.f_back
    harm(world, frame.f_globals["sys"].modules["os"])


@escape
def by_a_loader(world: Any) -> None:
    """`importlib.util.find_spec`, a module made of it, and its loader run on that."""
    import importlib.util

    spec: Any = importlib.util.find_spec("os")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    harm(world, module)


@escape
def by_the_import_systems_own_import(world: Any) -> None:
    """`importlib._bootstrap._gcd_import`, below what the hook replaced."""
    import importlib

    harm(world, importlib._bootstrap._gcd_import("os"))  # type: ignore[attr-defined]


@escape
def by_the_builtin_importer(world: Any) -> None:
    """`BuiltinImporter.load_module`, from `object.__subclasses__()`."""
    importer = next(c for c in object.__subclasses__() if c.__name__ == "BuiltinImporter")
    harm(world, importer.load_module("posix"))


@escape
def by_reloading(world: Any) -> None:
    """`importlib.reload` of a module that was there already."""
    import importlib

    harm(world, importlib.reload(sys.modules["posixpath"]).os)  # type: ignore[attr-defined]


@escape
def by_another_file_name(world: Any) -> None:
    """Code compiled as if it came from the standard library."""
    namespace: dict[str, Any] = {"__builtins__": builtins}
    exec(compile("import os", "/usr/lib/python3/innocent.py", "exec"), namespace)
    harm(world, namespace["os"])


@escape
def by_a_forged_function(world: Any) -> None:
    """A function of its own code with another module's globals."""
    code = compile("def f():\n    import os\n    return os", "/usr/lib/x.py", "exec").co_consts[0]
    harm(world, types.FunctionType(code, vars(sys.modules["json"]))())


@escape
def by_the_hooks_insides(world: Any) -> None:
    """The real import, which the hook keeps."""
    harm(world, builtins.__import__.__self__._import("os"))  # type: ignore[attr-defined]


@escape
def by_removing_the_hook(world: Any) -> None:
    """Take the hook out of `sys.meta_path` and `builtins`, then an import statement."""
    builtins.__import__.__self__.uninstall()  # type: ignore[attr-defined]
    import os

    harm(world, os)


@escape
def by_the_collector(world: Any) -> None:
    """`gc.get_referents` of something harmless."""
    import gc

    known = gc.get_referents(vars(sys.modules["posixpath"]))
    harm(world, next(m for m in known if isinstance(m, types.ModuleType) and m.__name__ == "os"))


@escape
def by_pickle(world: Any) -> None:
    """A pickle that calls `os.system` when it is loaded."""
    import pickle

    command = f": > {world.outside}/escaped".encode()
    pickle.loads(b"cposix\nsystem\n(S" + repr(command.decode()).encode() + b"\ntR.")


@escape
def by_a_class_that_reduces(world: Any) -> None:
    """`copy.copy` of an object whose `__reduce__` names another function."""
    import copy

    class Innocent:
        def __reduce__(self) -> Any:
            return sys.modules["os"].system, (f": > {world.outside}/escaped",)

    copy.copy(Innocent())


@escape
def by_the_codecs(world: Any) -> None:
    """A source file in an encoding of its own, whose decoder runs code."""
    import codecs

    harm(world, codecs.sys.modules["os"])  # type: ignore[attr-defined]


@escape
def by_the_logging_module(world: Any) -> None:
    """A handler of `logging` that opens a file."""
    import logging

    logging.FileHandler(f"{world.outside}/escaped").emit(logging.makeLogRecord({"msg": "x"}))


@escape
def by_runpy(world: Any) -> None:
    """`runpy.run_path` of a script of its own."""
    namespace = sys.modules["importlib"]._bootstrap._gcd_import("runpy").run_path(f"{world.models}/script.py")
    harm(world, namespace["os"])


@escape
def by_a_code_console(world: Any) -> None:
    """`code.InteractiveInterpreter`, whose code has no file."""
    import code

    code.InteractiveInterpreter({"__name__": "x"}).runsource(f"import os; {source(world)}", "<input>", "exec")


@escape
def by_timeit(world: Any) -> None:
    """`timeit`, which compiles and runs text."""
    import timeit

    timeit.timeit(source(world), setup="import os", number=1)


@escape
def by_ctypes(world: Any) -> None:
    """`ctypes.CDLL(None)`: the C library, without Python's `os`."""
    libc = ctypes.CDLL(None)
    libc.creat(f"{world.outside}/escaped".encode(), 0o600)
    libc.system(f": > {world.outside}/escaped-too".encode())


@escape
def by_pythons_c_interface(world: Any) -> None:
    """`PyRun_SimpleString`, by `ctypes.pythonapi`."""
    ctypes.pythonapi.PyRun_SimpleString(f"import os; {source(world)}".encode())


@escape
def by_cffi(world: Any) -> None:
    """`cffi.FFI().dlopen(None)`."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int creat(const char *, unsigned); int system(const char *);")
    library = ffi.dlopen(None)
    library.creat(f"{world.outside}/escaped".encode(), 0o600)
    library.system(f": > {world.outside}/escaped-too".encode())


@escape
def by_a_trace_function(world: Any) -> None:
    """`sys.settrace`: wait until other code runs that has it in its globals."""
    found: list[Any] = []

    def look(frame: Any, event: str, argument: Any) -> None:
        found.extend([frame.f_globals["os"]] if "os" in frame.f_globals else [])

    sys.settrace(look)
    try:
        sys.modules["posixpath"].realpath("/")
    finally:
        sys.settrace(None)
    harm(world, found[0])


@escape
def by_a_finalizer(world: Any) -> None:
    """`__del__`, run by the collector when the job is over."""

    class Later:
        def __del__(self) -> None:
            harm(world, sys.modules["os"])

    later = Later()
    later.self = later  # type: ignore[attr-defined]
    del later
    import gc

    gc.collect()


# Bytecode


@escape
def by_changed_code_of_the_hook(world: Any) -> None:
    """`__code__` of the hook's own method, replaced by one that refuses nothing."""
    method: Any = type(builtins.__import__.__self__)._why  # type: ignore[attr-defined]
    method.__code__ = (lambda self, name: None).__code__
    import os

    harm(world, os)


@escape
def by_changed_constants(world: Any) -> None:
    """`code.replace`: another name among the names of an import statement that was allowed."""

    def innocent() -> Any:
        import math

        return math

    changed = innocent.__code__.replace(co_names=("os",), co_filename="/usr/lib/x.py")
    harm(world, types.FunctionType(changed, {"__builtins__": builtins})())


@escape
def by_marshalled_code(world: Any) -> None:
    """Code that came as bytes: `marshal.loads`, then `exec`."""
    data = marshal.dumps(compile(f"import os; {source(world)}", "/usr/lib/x.py", "exec"))
    exec(marshal.loads(data), {"__builtins__": builtins})


@escape
def by_replaced_functions(world: Any) -> None:
    """Replace the sandbox's own functions in this process, as if that undid what they did."""
    lockdown = sys.modules["vortex_worker._core.lockdown"]
    lockdown.install_filter = lambda *a, **k: None  # type: ignore[attr-defined]
    lockdown.isolate = lambda *a, **k: None  # type: ignore[attr-defined]
    harm(world, sys.modules["os"])


@escape
def by_a_poisoned_base_class(world: Any) -> None:
    """Replace a method that every node has: it runs again when the next job is somebody else's."""
    inner = AbstractExecutor.validate

    def validate(self: Any, inputs: Any, params: Any) -> list[str]:
        harm(world, sys.modules["os"])
        return []

    AbstractExecutor.validate = validate  # type: ignore[method-assign]
    try:
        world.node.validate({}, {})
    finally:
        AbstractExecutor.validate = inner  # type: ignore[method-assign]
