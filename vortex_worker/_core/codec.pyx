"""The hot messages, between bytes and Python: job submissions, progress, results, releases."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t, uint64_t

from vortex_worker._core.handle cimport TensorHandle

from collections.abc import Mapping


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1


cdef class ObjectHandle:
    """``ObjectHandle(id, type)``: an object that stays in the worker that made it."""

    def __init__(self, uint64_t id, str type not None):
        self.id = id
        self.type = type

    def __eq__(self, other):
        if type(other) is not ObjectHandle:
            return NotImplemented
        return self.id == other.id and self.type == other.type

    def __hash__(self):
        return hash((self.id, self.type))

    def __repr__(self):
        return f"ObjectHandle({self.id}, {self.type!r})"


cdef class JobSubmit:
    """A job to run."""

    def __init__(self, job_id, op_type, dict inputs, dict params, deadline=0, malformed=None):
        self.job_id = job_id
        self.op_type = op_type
        self.inputs = inputs
        self.params = params
        self.deadline = deadline
        self.malformed = malformed


cdef class JobProgress:
    """How far a job is."""

    def __init__(self, job_id, step, total, message, preview=None, malformed=None):
        self.job_id = job_id
        self.step = step
        self.total = total
        self.message = message
        self.preview = preview
        self.malformed = malformed


cdef class JobResult:
    """What came of a job: outputs, or an error."""

    def __init__(self, job_id, dict outputs, error, tuple timings, malformed=None):
        self.job_id = job_id
        self.outputs = outputs
        self.error = error
        self.timings = timings
        self.malformed = malformed


cdef class Release:
    """Handles, by their offset, and objects, by id, that are no longer needed."""

    def __init__(self, list offsets, list objects):
        self.offsets = offsets
        self.objects = objects


# ---- bytes → messages


def decode(bytes body not None):
    """One frame's body → a hot message; None: it is something else, malformed, or for the protobuf runtime."""
    cdef vw_packet packet
    if not vw_packet_read(&packet, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)):
        return None
    if packet.body == VW_JOB_SUBMIT:
        return submit_of(&packet)
    if packet.body == VW_JOB_RESULT:
        return result_of(&packet)
    if packet.body == VW_RELEASE:
        return release_of(&packet)
    return progress_of(&packet)


cdef JobSubmit submit_of(vw_packet *packet):
    cdef JobSubmit submit = JobSubmit.__new__(JobSubmit)
    submit.job_id = packet.job_id
    submit.deadline = packet.deadline
    submit.op_type = text_of(packet.text)
    submit.inputs = {}
    submit.params = {}
    cdef uint32_t i = 0
    while i < packet.count:
        values = submit.inputs if packet.nodes[i].part == VW_FIRST else submit.params
        values[text_of(packet.nodes[i].key)] = value_of(packet, i)
        i = packet.nodes[i].end
    return submit


cdef JobResult result_of(vw_packet *packet):
    cdef JobResult result = JobResult.__new__(JobResult)
    result.job_id = packet.job_id
    result.outputs = {}
    result.timings = (packet.timings[0], packet.timings[1], packet.timings[2], packet.timings[3])
    cdef uint32_t i = 0
    while i < packet.count:
        result.outputs[text_of(packet.nodes[i].key)] = value_of(packet, i)
        i = packet.nodes[i].end
    return result


cdef JobProgress progress_of(vw_packet *packet):
    cdef JobProgress progress = JobProgress.__new__(JobProgress)
    progress.job_id = packet.job_id
    progress.step = packet.step
    progress.total = packet.total
    progress.message = text_of(packet.text)
    if packet.preview.at != NULL:
        progress.preview = handle_of(packet.preview)
    return progress


cdef Release release_of(vw_packet *packet):
    cdef Release release = Release.__new__(Release)
    cdef uint32_t i
    release.offsets = []
    release.objects = []
    for i in range(packet.count):
        numbers = release.offsets if packet.nodes[i].part == VW_FIRST else release.objects
        numbers.append(packet.nodes[i].number.natural)
    return release


cdef str text_of(vw_span span):
    return PyUnicode_DecodeUTF8(<const char *>span.at, span.size, "strict") if span.size else ""


cdef TensorHandle handle_of(vw_span span):
    cdef TensorHandle handle = TensorHandle.__new__(TensorHandle, 0, 0, 0)
    vw_handle_read(&handle.c, span)  # was read once, so it can be
    return handle


cdef object value_of(vw_packet *packet, uint32_t index):
    cdef vw_node *node = &packet.nodes[index]
    cdef ObjectHandle ref
    cdef uint32_t i = index + 1
    if node.kind == VW_TENSOR:
        return handle_of(node.bytes)
    if node.kind == VW_INT64:
        return node.number.integer
    if node.kind == VW_FLOAT64:
        return node.number.real
    if node.kind == VW_TEXT:
        return text_of(node.bytes)
    if node.kind == VW_BOOLEAN:
        return node.number.natural != 0
    if node.kind == VW_NULL:
        return None
    if node.kind == VW_UINT64:
        return node.number.natural
    if node.kind == VW_DATA:
        return PyBytes_FromStringAndSize(<const char *>node.bytes.at, node.bytes.size)
    if node.kind == VW_OBJECT:
        ref = ObjectHandle.__new__(ObjectHandle)
        ref.id = node.number.natural
        ref.type = text_of(node.bytes)
        return ref
    if node.kind == VW_LIST:
        items = []
        while i < node.end:
            items.append(value_of(packet, i))
            i = packet.nodes[i].end
        return items
    entries = {}
    while i < node.end:
        entries[text_of(packet.nodes[i].key)] = value_of(packet, i)
        i = packet.nodes[i].end
    return entries


# ---- messages → bytes


cdef vw_out start(uint64_t seq) noexcept:
    cdef vw_out out = vw_out(NULL, 0, 0, False)
    vw_out_nonzero(&out, 1, seq)
    return out


cdef bytes finish(vw_out *out):
    if out.failed:
        raise MemoryError("no memory for a message")
    return PyBytes_FromStringAndSize(<const char *>out.data, out.size)


cdef int write_text(vw_out *out, uint32_t field, str text) except -1:
    cdef Py_ssize_t size = 0
    cdef const char *utf8 = PyUnicode_AsUTF8AndSize(text, &size)  # a lone surrogate: UnicodeEncodeError, a ValueError
    vw_out_bytes(out, field, utf8, size)
    return 0


cdef int write_numbers(vw_out *out, uint32_t field, list numbers) except -1:
    cdef uint64_t number
    if numbers:
        packed = vw_out_begin(out, field)
        for number in numbers:
            vw_out_varint(out, number)
        vw_out_end(out, packed)
    return 0


cdef int write_entry(vw_out *out, uint32_t field, key, value, save, int depth) except -1:
    """An entry of a map of values."""
    if not isinstance(key, str):
        raise TypeError(f"a dict's keys must be str, not {type(key).__name__} ({key!r:.40})")
    entry = vw_out_begin(out, field)
    write_text(out, 1, key)
    inner = vw_out_begin(out, 2)
    write_value(out, value, save, depth)
    vw_out_end(out, inner)
    vw_out_end(out, entry)
    return 0


cdef int write_value(vw_out *out, value, save, int depth) except -1:
    """The one field of a Value, whose message was begun."""
    kind = type(value)
    if kind is TensorHandle:
        vw_out_handle(out, VW_TENSOR, &(<TensorHandle>value).c)
    elif value is None:
        vw_out_number(out, VW_NULL, 1)
    elif kind is bool:
        vw_out_number(out, VW_BOOLEAN, value is True)
    elif kind is int:
        write_int(out, value)
    elif kind is float:
        vw_out_real(out, VW_FLOAT64, value)
    elif kind is str:
        write_text(out, VW_TEXT, value)
    elif kind is bytes:
        vw_out_bytes(out, VW_DATA, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    elif kind is list or kind is tuple:
        require_depth(depth)
        inner = vw_out_begin(out, VW_LIST)
        for item in value:
            element = vw_out_begin(out, 1)
            write_value(out, item, save, depth + 1)
            vw_out_end(out, element)
        vw_out_end(out, inner)
    elif kind is dict or is_mapping(kind, value):
        require_depth(depth)
        inner = vw_out_begin(out, VW_MAP)
        for key, item in value.items():
            write_entry(out, 1, key, item, save, depth + 1)
        vw_out_end(out, inner)
    elif kind is ObjectHandle:
        inner = vw_out_begin(out, VW_OBJECT)
        vw_out_nonzero(out, 1, (<ObjectHandle>value).id)
        if (<ObjectHandle>value).type:
            write_text(out, 2, (<ObjectHandle>value).type)
        vw_out_end(out, inner)
    elif isinstance(value, (bool, int, float, str, bytes)):  # subclasses, such as an IntEnum or numpy.float64
        base = next(base for base in (bool, int, float, str, bytes) if isinstance(value, base))
        write_value(out, base(value), save, depth)
    elif isinstance(value, (list, tuple)):
        write_value(out, list(value), save, depth)
    elif isinstance(value, (bytearray, memoryview)):
        write_value(out, bytes(value), save, depth)
    else:
        saved = save(value)
        if type(saved) is not TensorHandle and type(saved) is not ObjectHandle:
            raise TypeError(f"a {kind.__name__} was saved as a {type(saved).__name__}: it takes a handle")
        write_value(out, saved, save, depth)
    return 0


cdef bint is_mapping(kind, value) except -1:
    # Asking the abstract class takes as long as all the rest of a tensor's way.
    return not hasattr(kind, "__dlpack__") and isinstance(value, Mapping)


cdef int write_int(vw_out *out, value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if not overflow:
        vw_out_signed(out, VW_INT64, number)
    elif 0 <= value < 1 << 64:
        vw_out_number(out, VW_UINT64, value)
    else:
        raise ValueError(f"{value} does not fit in 64 bits")
    return 0


cdef int require_depth(int depth) except -1:
    if depth >= VW_VALUE_DEPTH:
        raise ValueError(f"lists and dicts are nested deeper than {VW_VALUE_DEPTH}")
    return 0


def encode_submit(uint64_t seq, uint64_t job_id, str op_type not None, dict inputs, dict params, uint64_t deadline, save):
    """A JobSubmit as a frame's body. ``save``, and errors, as in ``pack``."""
    cdef vw_out out = start(seq)
    try:
        body = vw_out_begin(&out, VW_JOB_SUBMIT)
        vw_out_nonzero(&out, 1, job_id)
        if op_type:
            write_text(&out, 2, op_type)
        for port, value in inputs.items():
            write_entry(&out, 3, port, value, save, 0)
        for name, value in params.items():
            write_entry(&out, 4, name, value, save, 0)
        vw_out_nonzero(&out, 5, deadline)
        vw_out_end(&out, body)
        return finish(&out)
    finally:
        vw_out_free(&out)


def encode_result(uint64_t seq, uint64_t job_id, dict outputs, timings):
    """A JobResult without an error. ``outputs``: by port, each as ``pack`` gave it."""
    cdef vw_out out = start(seq)
    cdef uint32_t i
    try:
        body = vw_out_begin(&out, VW_JOB_RESULT)
        vw_out_nonzero(&out, 1, job_id)
        for port, value in outputs.items():
            entry = vw_out_begin(&out, 2)
            write_text(&out, 1, port)
            vw_out_bytes(&out, 2, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
            vw_out_end(&out, entry)
        inner = vw_out_begin(&out, 4)
        for i in range(4):
            vw_out_nonzero(&out, i + 1, timings[i])
        vw_out_end(&out, inner)
        vw_out_end(&out, body)
        return finish(&out)
    finally:
        vw_out_free(&out)


def encode_progress(uint64_t seq, uint64_t job_id, uint32_t step, uint32_t total, str message not None, TensorHandle preview=None):
    """A JobProgress."""
    cdef vw_out out = start(seq)
    try:
        body = vw_out_begin(&out, VW_JOB_PROGRESS)
        vw_out_nonzero(&out, 1, job_id)
        vw_out_nonzero(&out, 2, step)
        vw_out_nonzero(&out, 3, total)
        if message:
            write_text(&out, 4, message)
        if preview is not None:
            vw_out_handle(&out, 5, &preview.c)
        vw_out_end(&out, body)
        return finish(&out)
    finally:
        vw_out_free(&out)


def encode_release(uint64_t seq, list offsets not None, list objects not None):
    """A Release."""
    cdef vw_out out = start(seq)
    try:
        body = vw_out_begin(&out, VW_RELEASE)
        write_numbers(&out, 1, offsets)
        write_numbers(&out, 2, objects)
        vw_out_end(&out, body)
        return finish(&out)
    finally:
        vw_out_free(&out)


def pack(value, save):
    """A Python value as the bytes of a Value.

    None, bool, int (64-bit, signed or unsigned), float, str, bytes, list, tuple and dict with str
    keys are plain data, and TensorHandle and ObjectHandle themselves; for anything else, ``save`` gives
    one of those two, or raises TypeError.

    Raises:
        TypeError, ValueError: it can't travel; the message says what it is.
    """
    cdef vw_out out = vw_out(NULL, 0, 0, False)
    try:
        write_value(&out, value, save, 0)
        return finish(&out)
    finally:
        vw_out_free(&out)


# ---- values on their way


def stage(value, place):
    """A copy of ``value`` to be sent later, in which all that is no plain data is what ``place`` gives for it.

    Raises:
        ValueError: lists and dicts are nested too deeply.
        Whatever ``place`` raises.
    """
    return staged(value, place, 0)


cdef object staged(value, place, int depth):
    kind = type(value)
    if value is None or kind is bool or kind is int or kind is float or kind is str or kind is bytes:
        return value
    if kind is dict or kind is list or kind is tuple or isinstance(value, (list, tuple)) or is_mapping(kind, value):
        if depth > VW_VALUE_DEPTH:
            raise ValueError(f"lists and dicts are nested deeper than {VW_VALUE_DEPTH}")
        if kind is dict or is_mapping(kind, value):
            return {key: staged(item, place, depth + 1) for key, item in value.items()}
        return [staged(item, place, depth + 1) for item in value]
    if isinstance(value, (bool, int, float, str, bytes, bytearray, memoryview)):
        return value
    return place(value)


def resolve(dict values not None, tensor, object):
    """``values`` as received, each handle in them as what ``tensor(handle)`` or ``object(id, type)`` gives."""
    return {key: resolved(value, tensor, object) for key, value in values.items()}


cdef object resolved(value, tensor, object):
    kind = type(value)
    if kind is TensorHandle:
        return tensor(value)
    if kind is ObjectHandle:
        return object((<ObjectHandle>value).id, (<ObjectHandle>value).type)
    if kind is list:
        return [resolved(item, tensor, object) for item in <list>value]
    if kind is dict:
        return {key: resolved(item, tensor, object) for key, item in (<dict>value).items()}
    return value
