"""What is in a .tflite file: its buffers, and a plan of where LiteRT Micro shall put each map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from redistill_lib.memory.arena import Block, height, live, pack_tightly

ALIGNMENT = 16  # of what LiteRT Micro puts into its arena
PLAN = b"OfflineMemoryAllocation"  # where its interpreter looks for a plan that was made beforehand
TRANSPOSED = 67  # a transposed convolution, among the file's operators
# Bytes of an element by the number of its type in the file: float32, float16, int32, uint8, int64, bool, int16, int8.
_WIDTHS = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1}


def read(content: bytes) -> Any:
    """The file as objects, its weights inside."""
    from ai_edge_litert.schema_py_generated import Model, ModelT

    model = ModelT.InitFromObj(Model.GetRootAs(content, 0))
    inline(model.buffers, content)
    return model


def write(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def inline(buffers: list[Any], content: bytes) -> None:
    """Put what buffers refer to, by its offset in the file, into them.

    ai-edge-quantizer 0.10 stores weights so in all but small files. LiteRT reads them; LiteRT Micro computes with
    whatever it finds instead, and says nothing.
    """
    for buffer in buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0


def blocks_of(graph: Any, alignment: int = 1) -> dict[int, Block]:
    """By tensor, what LiteRT Micro has to keep while it executes the operators in order, one after the other.

    Inputs are there from before the first operator, outputs until after the last.
    """
    lives = {int(index): [0, 0] for index in graph.inputs}
    for k, operator in enumerate(graph.operators, 1):
        for index in operator.inputs if operator.inputs is not None else ():
            if index in lives:  # it is no weight
                lives[index][1] = k
        lives |= {int(index): [k, k] for index in operator.outputs}
    for index in graph.outputs:
        lives[index][1] = len(graph.operators)
    taken = {index: -(-_bytes(graph.tensors[index]) // alignment) * alignment for index in lives}
    return {index: Block(taken[index], *life) for index, life in lives.items()}


def _bytes(tensor: Any) -> int:
    shape = tensor.shape if tensor.shape is not None else ()
    return math.prod(map(int, shape)) * _WIDTHS[tensor.type]


def sums_of(model: Any, alignment: int = 1) -> list[Block]:
    """What kernels take for themselves: transposed convolutions of int8 keep the sums of their output in int32."""
    graph, sums = model.subgraphs[0], []
    for k, operator in enumerate(graph.operators, 1):
        code, made = model.operatorCodes[operator.opcodeIndex], graph.tensors[operator.outputs[0]]
        if TRANSPOSED in (code.builtinCode, code.deprecatedBuiltinCode) and _WIDTHS[made.type] == 1:
            sums.append(Block(-(-4 * _bytes(made) // alignment) * alignment, k, k))
    return sums


def alive(model: Any) -> int:
    """The most bytes that are there at once."""
    return live([*blocks_of(model.subgraphs[0]).values(), *sums_of(model)])


def plan_of(model: Any) -> tuple[np.ndarray, int]:
    """The plan as LiteRT Micro reads it, and the bytes of its arena.

    A version, the graph, how many tensors there are, and of each its place in the arena, or −1 for a weight. What
    kernels take for themselves finds the room that is left for it. Without a plan the interpreter packs the largest
    first: a quarter more than is alive in the ×4 student of ResNet-18.
    """
    blocks = blocks_of(model.subgraphs[0], ALIGNMENT)
    packed = [*blocks.values(), *sums_of(model, ALIGNMENT)]
    offsets = pack_tightly(packed)
    places = np.full(len(model.subgraphs[0].tensors), -1, np.int32)
    places[[*blocks]] = offsets[: len(blocks)]
    return np.concatenate([np.array([0, 0, len(places)], np.int32), places]), height(packed, offsets)


def add_plan(model: Any) -> None:
    """Into the file's metadata; a file with several graphs, as of a loop, keeps the interpreter's own packing."""
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT

    if len(model.subgraphs) == 1:
        plan, _ = plan_of(model)
        model.buffers.append(BufferT(data=plan.view(np.uint8)))
        model.metadata = [*(model.metadata or ()), MetadataT(name=PLAN, buffer=len(model.buffers) - 1)]
