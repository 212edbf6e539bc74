"""Parameter trees to measure, as the shapes of their leaves."""

Shape = tuple[int, ...]


def _resnet_50() -> list[Shape]:
    shapes: list[Shape] = [(7, 7, 3, 64), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            kernels = [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                kernels.append((1, 1, inputs, 4 * width))
            for kernel in kernels:
                shapes += [kernel, kernel[-1:], kernel[-1:]]
            inputs = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


def _transformer() -> list[Shape]:
    width, words, length = 768, 50257, 1024
    norm: list[Shape] = [(width,), (width,)]
    layer: list[Shape] = [
        *norm,
        *((width, 3 * width), (3 * width,), (width, width), (width,)),
        *norm,
        *((width, 4 * width), (4 * width,), (4 * width, width), (width,)),
    ]
    return [(words, width), (length, width), *12 * layer, *norm]


MLP: list[Shape] = [(784, 500), (500,), (500, 300), (300,), (300, 10), (10,)]

CASES: dict[str, list[Shape]] = {
    "2 leaves of 8M": 2 * [(8_000_000,)],
    "128 leaves, 16.8M": 8 * [(1024, 1024)] + 32 * [(512, 512)] + 40 * [(1024,)] + 48 * [(64,)],
    "784-500-300-10": MLP,
    "500 leaves of 4096": 500 * [(4096,)],
    "500 leaves of 1": 500 * [(1,)],
    "1 leaf of 100M": [(100_000_000,)],
    "ResNet-50": _resnet_50(),
    "12-layer transformer": _transformer(),
}

SMOKE: dict[str, list[Shape]] = {
    "2 leaves of 1000": 2 * [(1000,)],
    "8-6-4": [(8, 6), (6,), (6, 4), (4,)],
}
