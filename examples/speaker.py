"""Tell nine speakers apart by how they say two vowels, and lower eps when progress stops.

The data is Japanese Vowels from the UCI repository: 640 utterances of 7 to 29 frames, each frame 12
numbers. A gated recurrent unit in plain JAX reads the frames one after the other. Utterances are
padded to one length, and a mask keeps the padding out of the result.

As in ESPnet's recipes for speech recognition, the gradient is clipped, and eps is lowered when the
loss on validation data has stopped improving. The run then goes back to its best parameters so far.
The validation data is one fifth of the training utterances. The test utterances are used only once,
after training.

Needs: pip install -e ".[examples]"
"""

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import pooch
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from optax_adadelta import adadelta, clip_by_global_norm, reduce_eps_on_plateau
except ModuleNotFoundError as error:
    raise SystemExit(f'No {error.name}. Run: pip install -e ".[examples]"') from None

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/JapaneseVowels-mld/"
SHA256 = {
    "ae.train": "5c2741199dc360fff0c1a068f57060d2125b16a5cab46800913a79d62c4b1d65",
    "ae.test": "4d863f4f982b660c326250606cec2d03f40953870a22759a05a6b23917332356",
}
# The utterances of each speaker, in the order of the files.
TRAIN = (30,) * 9
TEST = (31, 35, 88, 44, 29, 24, 40, 50, 29)
FRAMES, WIDTH, BATCH, VALIDATION = 29, 64, 27, 6
NOISE = 0.3  # The standard deviation of what is added to each frame in training.
SMOKE_SEEDS, SMOKE_EPOCHS = 2, 2
OPTIMIZER = optax.chain(clip_by_global_norm(5.0), optax.inject_hyperparams(adadelta)(eps=1e-4))
PLATEAU = reduce_eps_on_plateau(0.1, patience=3, min_eps=1e-10, restore_best=True)


def load(folder: Path | None):
    """Returns (frames, lengths, speakers) to train on and to test on.

    Frames are [n, 29, 12], lengths and speakers are [n]. Over the training utterances, each of the
    12 numbers of a frame has mean 0 and standard deviation 1.
    """
    parts = [read("ae.train", TRAIN, folder), read("ae.test", TEST, folder)]
    frames, lengths, _ = parts[0]
    said = frames[np.arange(FRAMES) < lengths[:, None]]
    mean, deviation = said.mean(axis=0), said.std(axis=0)
    return tuple(((frames - mean) / deviation, *rest) for frames, *rest in parts)


def read(name: str, counts: tuple[int, ...], folder: Path | None):
    """Returns the frames, lengths and speakers in one file."""
    text = find(name, folder).read_text("ascii")
    rows = np.array([line.split() for line in text.splitlines() if line.strip()], np.float32)
    # A row of ones ends an utterance.
    ends = np.flatnonzero((rows == 1).all(axis=1))
    lengths = np.diff(ends, prepend=-1) - 1
    frames = np.zeros((len(ends), FRAMES, rows.shape[1]), np.float32)
    for utterance, end, length in zip(frames, ends, lengths, strict=True):
        utterance[:length] = rows[end - length : end]
    return frames, lengths, np.repeat(np.arange(len(counts)), counts)


def find(name: str, folder: Path | None) -> Path:
    """Returns the path of a file of data, with a verified checksum."""
    if folder is not None:
        path = folder / name
        if not path.is_file():
            raise SystemExit(f"There is no {name} in --data-dir {folder}.")
        if pooch.file_hash(path) != SHA256[name]:
            raise SystemExit(f"{path} is the wrong file: its SHA-256 is not {SHA256[name]}.")
        return path
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                URL + name,
                known_hash=f"sha256:{SHA256[name]}",
                fname=name,
                path=pooch.os_cache("optax_adadelta"),
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
            )
        )
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"Could not download {name}: {error}\n"
            "If you have the file, name its folder with --data-dir."
        ) from None


def split(data, seed: int):
    """Returns what to train on and, six utterances of each speaker, what to validate on."""
    order = np.random.default_rng(seed).permutation(TRAIN[0])
    held_back = np.tile(np.isin(np.arange(TRAIN[0]), order[:VALIDATION]), len(TRAIN))
    return tuple(tuple(x[chosen] for x in data) for chosen in (~held_back, held_back))


def init(key: jax.Array) -> dict:
    """Returns the weights of the recurrent unit and of the layer that names the speaker."""

    def normal(key, inputs, outputs):
        return jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs)

    keys = jax.random.split(key, 3)
    return {
        "from frame": normal(keys[0], 12, 3 * WIDTH),
        "from state": normal(keys[1], WIDTH, 3 * WIDTH),
        "bias": jnp.zeros(3 * WIDTH),
        "out": normal(keys[2], WIDTH, len(TRAIN)),
        "out bias": jnp.zeros(len(TRAIN)),
    }


def logits(params: dict, frames: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the scores of the speakers, from the mean state over the frames that were said."""

    def step(state, frame):
        of_frame = jnp.split(frame @ params["from frame"] + params["bias"], 3, axis=-1)
        of_state = jnp.split(state @ params["from state"], 3, axis=-1)
        keep, reset = (jax.nn.sigmoid(of_frame[i] + of_state[i]) for i in (0, 1))
        new = jnp.tanh(of_frame[2] + reset * of_state[2])
        state = keep * state + (1 - keep) * new
        return state, state

    start = jnp.zeros((len(frames), WIDTH))
    _, states = jax.lax.scan(step, start, jnp.swapaxes(frames, 0, 1))
    said = jnp.arange(FRAMES)[:, None] < lengths
    mean = jnp.sum(jnp.where(said[:, :, None], states, 0.0), axis=0) / lengths[:, None]
    return mean @ params["out"] + params["out bias"]


def loss(params: dict, frames: jax.Array, lengths: jax.Array, speakers: jax.Array) -> jax.Array:
    """Returns the mean cross entropy."""
    scores = logits(params, frames, lengths)
    return optax.softmax_cross_entropy_with_integer_labels(scores, speakers).mean()


@partial(jax.jit, donate_argnums=(0, 1))
def step(params: dict, state: optax.OptState, key: jax.Array, batch):
    """Makes one training step on noisy frames, in the memory of the old parameters and state."""
    frames, lengths, speakers = batch
    noisy = frames + NOISE * jax.random.normal(key, frames.shape)
    value, grads = jax.value_and_grad(loss)(params, noisy, lengths, speakers)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


validation_loss = jax.jit(loss)


@jax.jit
def name(params: dict, frames: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the speaker that the model names for each utterance."""
    return logits(params, frames, lengths).argmax(axis=-1)


def fit(train, validation, epochs: int, seed: int, bar: tqdm) -> tuple[dict, dict]:
    """Trains, and returns the parameters of the best validation loss and what happened."""
    first, *keys = jax.random.split(jax.random.key(seed), epochs + 1)
    params = init(first)
    state = OPTIMIZER.init(params)
    watch = PLATEAU.init((params, state))
    shuffle = np.random.default_rng(seed)
    steps = len(train[0]) // BATCH
    history = {"train": [], "validation": [], "eps": []}
    for key in keys:
        losses = []
        batches = shuffle.permutation(steps * BATCH).reshape(steps, BATCH)
        for chosen, noise in zip(batches, jax.random.split(key, steps), strict=True):
            batch = tuple(x[chosen] for x in train)
            params, state, value = step(params, state, noise, batch)
            losses.append(value)
        value = validation_loss(params, *validation)
        history["train"].append(float(np.mean(losses)))
        history["validation"].append(float(value))
        history["eps"].append(float(optax.tree.get(state, "eps")))
        (params, state), watch = PLATEAU.update((params, state), watch, value=value)
        bar.update()
    best, _ = watch.best
    return best, history


def draw(histories: list[dict], confusion: np.ndarray, output: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(10, 3.4), dpi=130, layout="constrained")
    losses, eps, matrix = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for i, history in enumerate(histories):
        epochs = np.arange(1, len(history["eps"]) + 1)
        for part, color, line in (("train", "#0072B2", "-"), ("validation", "#D55E00", "--")):
            label = None if i else {"train": "training, with noise"}.get(part, part)
            losses.semilogy(epochs, history[part], line, color=color, lw=1, label=label)
        eps.step(epochs, history["eps"], where="mid", lw=1.2, label=f"seed {i}")
    losses.set(title="Loss", ylabel="mean cross entropy (nats)")
    eps.set(title="eps, lowered on a plateau", ylabel="eps", yscale="log")
    for axes in (losses, eps):
        axes.set_xlabel("epochs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    percent = 100 * confusion / confusion.sum(axis=1, keepdims=True)
    matrix.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(percent):
        if value >= 1:
            style = {"color": "white" if value > 50 else "black", "fontsize": 8}
            matrix.text(j, i, f"{value:.0f}", ha="center", va="center", **style)
    ticks = np.arange(len(TEST))
    matrix.set_xticks(ticks, ticks + 1)
    matrix.set_yticks(ticks, ticks + 1)
    matrix.set(title="Answers on test data, %", xlabel="answer of the model", ylabel="speaker")
    figure.savefig(output)


def check_writable(path: Path, option: str) -> None:
    """Makes the file's folder, and exits if the file cannot be written."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise SystemExit(f"Cannot write {option} {path}: {error.strerror}.") from None
    if new:
        path.unlink()


def main() -> None:
    """Reads the options, trains, draws, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "passes over the training utterances (default: %(default)s)"
    add("--epochs", type=int, default=60, help=text)
    text = "how many models to train, each with its own seed (default: %(default)s)"
    add("--seeds", type=int, default=5, help=text)
    text = "where to write the picture (default: %(default)s)"
    add("--output", type=Path, default=Path("speaker.png"), help=text)
    text = "where to write the numbers, as JSON (default: nowhere)"
    add("--results", type=Path, help=text)
    text = "folder that already has the data (default: download into a cache folder)"
    add("--data-dir", type=Path, help=text)
    text = f"quick check: at most {SMOKE_SEEDS} seeds and {SMOKE_EPOCHS} epochs (default: off)"
    add("--smoke", action="store_true", help=text)
    options = parser.parse_args()
    if options.epochs < 1 or options.seeds < 1:
        parser.error("--epochs must be at least 1 and --seeds at least 1")
    if options.output.suffix not in (".png", ".pdf", ".svg"):
        parser.error("--output must end in .png, .pdf or .svg")
    check_writable(options.output, "--output")
    if options.results is not None:
        check_writable(options.results, "--results")
    epochs = min(options.epochs, SMOKE_EPOCHS) if options.smoke else options.epochs
    seeds = min(options.seeds, SMOKE_SEEDS) if options.smoke else options.seeds

    data, (frames, lengths, speakers) = load(options.data_dir)
    start = time.perf_counter()
    histories, accuracies = [], []
    confusion = np.zeros((len(TEST), len(TEST)), int)
    # Compiles before the bar starts its clock, so that its first estimate is right.
    fit(*split(data, 0), 1, 0, tqdm(disable=True))
    with tqdm(total=seeds * epochs, desc="Training", unit="epoch") as bar:
        for seed in range(seeds):
            params, history = fit(*split(data, seed), epochs, seed, bar)
            named = np.asarray(name(params, frames, lengths))
            np.add.at(confusion, (speakers, named), 1)
            histories.append(history)
            accuracies.append(float(np.mean(named == speakers)))
    seconds = time.perf_counter() - start
    draw(histories, confusion, options.output)
    if options.results is not None:
        results = {"epochs": epochs, "accuracies": accuracies}
        options.results.write_text(json.dumps(results) + "\n", encoding="utf-8")

    for seed, (history, accuracy) in enumerate(zip(histories, accuracies, strict=True)):
        best, eps = np.nanargmin(history["validation"]), history["eps"][-1]
        print(
            f"Seed {seed}: test accuracy {accuracy:.2%}, last eps {eps:.0e}, best epoch {best + 1}"
        )
    mean, lowest = np.mean(accuracies), min(accuracies)
    print(f"Test accuracy of {len(speakers)} utterances: mean {mean:.2%}, lowest {lowest:.2%}.")
    print(f"Training time: {seconds:.1f} s, compilation included.")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
