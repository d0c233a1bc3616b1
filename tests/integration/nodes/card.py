"""A node that does this and that on an NVIDIA card, for test_cuda.py."""

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port

_MAP_MEMORY = 0xC038464E  # NV_ESC_RM_MAP_MEMORY, which nobody needs once the context is there


class OnCard(AbstractExecutor):
    op_type = "OnCard"
    input_ports = (Port("tensor", "TENSOR", optional=True),)
    output_ports = (Port("value", "*"),)
    params = (Param("how", "STRING"), Param("size", "INT", default=0))

    def execute(self, inputs, params):
        return {"value": getattr(self, params["how"])(inputs.get("tensor"), params["size"])}

    def where(self, tensor, size):
        return str(self.context.device)

    def product(self, tensor, size):
        there = tensor.to(self.context.device)
        return there @ there

    def whole(self, tensor, size):
        """A tensor that is on the card."""
        return tensor.to(self.context.device)

    def drawn(self, tensor, size):
        return torch.randn(size, device=self.context.device)

    def images(self, tensor, size):
        """What networks for images do, in the types that they do it in."""
        total = 0.0
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for channels, kernel, side in ((4, 3, 64), (64, 3, 48), (320, 1, 32), (96, 7, 64)):
                image = torch.randn(2, channels, side, side, device=self.context.device, dtype=dtype)
                weight = torch.randn(channels, channels, kernel, kernel, device=self.context.device, dtype=dtype)
                image = torch.nn.functional.conv2d(image, weight, stride=2, padding=kernel // 2)
                image = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
                image = torch.nn.functional.group_norm(torch.nn.functional.silu(image), 2)
                total += float(image.float().abs().mean().isfinite())
            heads = torch.randn(2, 8, 512, 80, device=self.context.device, dtype=dtype)
            heads = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            total += float(heads.float().mean().isfinite())
        return total

    def mathematics(self, tensor, size):
        there = torch.randn(256, 256, device=self.context.device)
        done = [
            *torch.linalg.svd(there), torch.linalg.inv(there), *torch.linalg.qr(there), torch.linalg.eigvalsh(there),
            torch.fft.fft2(there), torch.special.i0(there), there.double() @ there.double(), torch.unique(there > 0),
        ]  # fmt: skip
        return len(done)

    def streams(self, tensor, size):
        streams = [torch.cuda.Stream() for _ in range(size)]
        for stream in streams:
            with torch.cuda.stream(stream):
                _ = torch.ones(64, 64, device=self.context.device) @ torch.ones(64, 64, device=self.context.device)
        torch.cuda.synchronize()
        return len(streams)

    def graph(self, tensor, size):
        there, graph = torch.zeros(8, device=self.context.device), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            there += 1
        for _ in range(3):
            graph.replay()
        return there.cpu()

    def exhaust(self, tensor, size):
        return [torch.empty(16 << 30, dtype=torch.uint8, device=self.context.device) for _ in range(64)]

    def astray(self, tensor, size):
        """A kernel that reads out of bounds: the context is lost."""
        torch.zeros(4, device=self.context.device)[torch.tensor([10**6], device=self.context.device)]
        torch.cuda.synchronize()

    def reopen(self, tensor, size):
        try:
            torch.os.open("/dev/nvidia0", torch.os.O_RDWR)
        except OSError as error:
            return error.errno
        return 0

    def new_word(self, tensor, size):
        """A word of ioctl(2) that is not for jobs, on every descriptor there is."""
        libc = torch.ctypes.CDLL(None)
        for fd in range(3, 128):
            libc.ioctl(fd, torch.ctypes.c_ulong(_MAP_MEMORY), torch.ctypes.create_string_buffer(0x38))
