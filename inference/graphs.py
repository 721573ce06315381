"""The step that writes, recorded once for each shape and replayed: a GPU then waits for no kernel to be started.

At one text a layer's dozen kernels take a few microseconds each, and starting one from Python takes longer than that.
Source: "CUDA semantics", the notes on CUDA graphs in PyTorch's documentation.
"""

import warnings
from functools import partial

import torch

SPAN = 128  # positions that are looked at come in multiples of it, so that few shapes have to be recorded


def record_cuda(run):
    """Records what run() does on the GPU → (replay, what run returned); replay() writes the result anew into that.

    Raises:
        RuntimeError: it does something that cannot be recorded, such as waiting for the GPU.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles, and takes the memory that libraries keep
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the server's other threads go on
        found = run()
    return graph.replay, found


class Recorded:
    """Takes the place of inference.engine.next_logits for one model and one SlotCache.

    Texts are padded to the next power of two, in slots that nobody uses: what is read there goes to the last position,
    from which no text is ever taken over. A step writes to it also while it is recorded. One that cannot be recorded is
    taken as it is from then on.

    Args:
        step: next_logits, compiled or not. cache: the SlotCache.
        record: see record_cuda.
    """

    def __init__(self, step, cache, record=record_cuda):
        self.step, self.cache, self.record = step, cache, record
        self.kept = {}  # (rows, positions): (tokens, positions, replay, logits)

    def __call__(self, model, tokens, keys, values, positions, longest):
        """As next_logits; the logits are overwritten by the next call."""
        if self.record is None:
            return self.step(model, tokens, keys, values, positions, longest)
        count, capacity = len(tokens), self.cache.capacity
        rows = min(1 << (count - 1).bit_length(), len(self.cache.texts))
        shape = rows, min(-(-longest // SPAN) * SPAN, capacity)
        if shape not in self.kept:
            own = tokens.new_zeros(rows, 1), positions.new_full((rows, 1), capacity - 1)
            try:
                self.kept[shape] = *own, *self.record(partial(self.step, model, own[0], keys, values, own[1], shape[1]))
            except RuntimeError as error:
                self.record = None
                warnings.warn(f"the step cannot be recorded as a CUDA graph ({error}); going on without", stacklevel=2)
                return self.step(model, tokens, keys, values, positions, longest)
        own_tokens, own_positions, replay, logits = self.kept[shape]
        own_tokens[:count], own_positions[:count], own_positions[count:] = tokens, positions, capacity - 1
        replay()
        return logits[:count]
