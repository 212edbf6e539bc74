"""Train on several processes and devices, save checkpoints, and go on after a failure.

A network of three layers learns to read scikit-learn's 1797 digits of 8 x 8 pixels. Parameters and
optimizer state are sharded over all devices of all processes (FSDP). Each process reads only its
own rows of each minibatch. All processes write the checkpoints together. After a failure, run the
same command again: it goes on from the newest checkpoint, also with another number of processes.

One process:              python examples/distributed.py
Two processes here:       python examples/distributed.py --local 2
A TPU pod, on each host:  python examples/distributed.py --cluster --folder SHARED_FOLDER
Slurm, a task per GPU:    srun python examples/distributed.py --cluster --folder SHARED_FOLDER
Other hosts, on each:     python examples/distributed.py --coordinator HOST:PORT --processes N
                            --process I --folder SHARED_FOLDER

Needs: pip install -e ".[frameworks]"
"""

import argparse
import math
import signal
import socket
import subprocess
import sys

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from etils.epath import Path  # also for folders like gs://bucket/run
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    from optax_adadelta import adadelta, clip_by_global_norm
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[frameworks]"') from None

LAYERS = {"hidden 1": (64, 256), "hidden 2": (256, 128), "output": (128, 10)}
BATCH = 32


def load():
    """Returns (images, labels) to train on and to test on."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        np.float32(images / 16), labels, test_size=0.25, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


def split(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array: split along its longest axis that the devices divide."""
    spec = [None] * len(shape)
    if axes := [axis for axis, size in enumerate(shape) if size % mesh.size == 0]:
        spec[max(axes, key=lambda axis: shape[axis])] = "data"
    return NamedSharding(mesh, PartitionSpec(*spec))


def init(key: jax.Array) -> dict:
    """Returns He-normal weights and zero biases."""
    keys = jax.random.split(key, len(LAYERS))
    return {
        name: {
            "w": math.sqrt(2 / inputs) * jax.random.normal(key, (inputs, outputs)),
            "b": jnp.zeros(outputs),
        }
        for key, (name, (inputs, outputs)) in zip(keys, LAYERS.items(), strict=True)
    }


def logits(params: dict, x: jax.Array) -> jax.Array:
    """Returns the scores of the ten digits for each image."""
    for name in ("hidden 1", "hidden 2"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
    return x @ params["output"]["w"] + params["output"]["b"]


@jax.jit
def accuracy(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the share of digits that are read correctly."""
    return jnp.mean(logits(params, x).argmax(axis=-1) == y)


def step_with(optimizer: optax.GradientTransformation, shardings):
    """Returns a training step that works in the memory of the old parameters and state."""

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)


def rows_of(step: int, count: int, seed: int) -> np.ndarray:
    """Returns which examples make the minibatch of a step: a new order in each epoch.

    It depends on nothing else, so a resumed run takes the same ones, on any number of processes.
    """
    epoch, batch = divmod(step, count // BATCH)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[batch * BATCH : (batch + 1) * BATCH]


def minibatch(arrays, rows: np.ndarray, mesh: Mesh):
    """Returns the rows of the arrays, split over the devices. A process reads only its own."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return tuple(
        jax.make_array_from_callback(
            (len(rows), *array.shape[1:]), sharding, lambda part, array=array: array[rows[part[0]]]
        )
        for array in arrays
    )


def train(options: argparse.Namespace) -> None:
    """Trains from the newest checkpoint, or from the start, and saves every few steps."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    if BATCH % mesh.size:
        raise SystemExit(
            f"{mesh.size} devices cannot share {BATCH} rows: use 1, 2, 4, 8, 16 or 32."
        )
    optimizer = optax.chain(clip_by_global_norm(1.0), adadelta(state_bits=options.state_bits))
    key = jax.random.key(options.seed)
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=split(p.shape, mesh)),
        jax.eval_shape(init, key),
    )
    # The parameters are only described so far. The state is there, with their shardings.
    state = optimizer.init(params)
    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    settings = {"seed": options.seed, "state_bits": options.state_bits}
    first = jax.process_index() == 0

    saving = ocp.CheckpointManagerOptions(
        save_interval_steps=options.save_every,
        max_to_keep=3,
        # Removes what a killed run has left half-written.
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    with ocp.CheckpointManager(
        options.folder.resolve(), options=saving, item_handlers=ocp.StandardCheckpointHandler()
    ) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            params, state = restore(checkpoints, start, settings, (params, state))
        else:
            params = jax.jit(init, out_shardings=shardings[0])(key)
        train_set, test_set = load()
        rows = rows_of(start, len(train_set[1]), options.seed)
        # Compiles before the bar starts its clock, so that its first estimate is right.
        step = step_with(optimizer, shardings)
        step = step.lower(params, state, *minibatch(train_set, rows, mesh)).compile()
        if first:
            print(
                f"Processes: {jax.process_count()}, devices: {mesh.size}, first step: {start}",
                flush=True,
            )
        for t in tqdm(
            range(start, options.steps),
            "Training",
            total=options.steps,
            initial=start,
            unit="step",
            mininterval=1,
            disable=not first,
        ):
            rows = rows_of(t, len(train_set[1]), options.seed)
            params, state = step(params, state, *minibatch(train_set, rows, mesh))
            if jax.default_backend() == "cpu":
                # Two steps at once may wait for each other for ever if a process has several CPUs.
                jax.block_until_ready(params)
            # Saves after the first step, then every few, at the end, and when asked to stop.
            save(checkpoints, t + 1, (params, state), settings, last=t + 1 == options.steps)
            if checkpoints.reached_preemption(t + 1):
                checkpoints.wait_until_finished()
                raise SystemExit(f"Asked to stop. Step {t + 1} is saved.")
        share = float(accuracy(params, *test_set))
    if first:
        print(f"Test accuracy: {share:.2%} after {max(start, options.steps)} steps.")
        print(f"Checkpoints: {options.folder}")


def save(checkpoints: ocp.CheckpointManager, step: int, tree, settings: dict, last: bool) -> None:
    """Saves the tree and the settings if a checkpoint is due."""
    args = ocp.args.StandardSave(tree)
    try:
        checkpoints.save(step, args=args, custom_metadata=settings, force=last)
    except Exception as error:
        raise SystemExit(
            f"Cannot save step {step}: {error}\nOlder checkpoints in {checkpoints.directory} are"
            " intact. Mend the cause and run the same command again."
        ) from None


def restore(checkpoints: ocp.CheckpointManager, step: int, settings: dict, like):
    """Returns the parameters and the state of a checkpoint, with the shardings of `like`."""
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    path = checkpoints.directory / str(step)
    try:
        saved = checkpoints.metadata(step).custom_metadata
        if saved == settings:
            return checkpoints.restore(step, args=ocp.args.StandardRestore(target))
    except Exception as error:
        raise SystemExit(
            f"Cannot read {path}: {error}\nOlder checkpoints are intact: to go on from those, move"
            f" {path} away and run the same command again."
        ) from None
    # With another storage, Orbax would cast the codes, and the averages would be wrong.
    raise SystemExit(
        f"{path} is of a run with {saved}, not {settings}:"
        " give the same options or another --folder."
    )


def launch(options: argparse.Namespace) -> int:
    """Starts the processes on this machine, and returns 0 if all of them succeed."""
    # As long as this is bound, no other program is given the port. Process 0 may share it.
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port.bind(("", 0))
    address = f"localhost:{port.getsockname()[1]}"
    options.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--coordinator", address]
    processes = []
    for i in range(options.local):
        # The first process prints here, the others into files.
        log = (options.folder / f"process_{i}.log").open("w") if i else None
        arguments = ["--processes", str(options.local), "--process", str(i)]
        processes.append(
            subprocess.Popen(
                command + arguments, stdout=log or subprocess.PIPE, stderr=log, text=True
            )
        )
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    try:
        for line in processes[0].stdout:
            if not line.startswith("[Gloo]"):
                print(line, end="", flush=True)
    finally:
        for process in processes:
            try:
                process.wait(2 * options.timeout)
            except subprocess.TimeoutExpired:
                process.kill()
    codes = [process.wait() for process in processes]
    if not any(codes):
        return 0
    ends = ", ".join(f"process {i}: {ending(code)}" for i, code in enumerate(codes))
    print(f"Not all processes succeeded ({ends}).", file=sys.stderr)
    print(f"Their messages are above and in {options.folder}/process_*.log.", file=sys.stderr)
    print("Run the same command again to go on from the newest checkpoint.", file=sys.stderr)
    return 1


def ending(code: int) -> str:
    """Returns how a process ended, in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main() -> None:
    """Reads the options, joins the other processes, and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "optimizer steps in all, those before a checkpoint included (default: %(default)s)"
    add("--steps", type=int, default=600, help=text)
    text = "steps between two checkpoints (default: %(default)s)"
    add("--save-every", type=int, default=50, help=text)
    text = "for the checkpoints; all processes must see it (default: %(default)s)"
    add("--folder", type=Path, default=Path("checkpoints/distributed"), help=text)
    text = "sets the initial weights and the batch order (default: %(default)s)"
    add("--seed", type=int, default=0, help=text)
    text = "bits of each stored average (default: full precision)"
    add("--state-bits", type=int, choices=(16, 8), help=text)
    text = "devices of each process, if they are CPUs (default: 1)"
    add("--cpu-devices", type=int, metavar="N", help=text)
    text = "seconds without a sign of life until a process counts as dead (default: %(default)s)"
    add("--timeout", type=int, default=60, help=text)
    add("--local", type=int, metavar="N", help="start N processes here, on CPUs or N GPUs")
    add(
        "--cluster", action="store_true", help="ask a TPU pod, Slurm or MPI for the other processes"
    )
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--processes", type=int, help="how many there are, with --coordinator")
    add("--process", type=int, help="which one this is, from 0, with --coordinator")
    options = parser.parse_args()
    counts = (
        options.steps,
        options.save_every,
        options.timeout,
        options.cpu_devices,
        options.local,
    )
    if any(count is not None and count < 1 for count in counts) or options.seed < 0:
        parser.error("--seed must be at least 0, all other numbers at least 1")
    if options.coordinator and None in (options.processes, options.process):
        parser.error("--coordinator needs --processes and --process")
    if options.local and not options.coordinator:
        sys.exit(launch(options))

    if options.cpu_devices:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if options.coordinator or options.cluster:
        try:
            jax.distributed.initialize(
                options.coordinator,
                options.processes,
                options.process,
                # On a machine with several GPUs, each process that --local starts takes one.
                local_device_ids=options.process if options.local else None,
                heartbeat_timeout_seconds=options.timeout,
                shutdown_timeout_seconds=options.timeout,
            )
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"Cannot find the other processes: {error}") from None
    train(options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
