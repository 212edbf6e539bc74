"""States from and to torch.optim.Adadelta: with NumPy arrays, and in torch itself."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scripts import numbers, run
from states import assert_agree, same_bits, same_types

from optax_adadelta import adadelta, convert
from optax_adadelta.diagnostics import averages

SHAPES = {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "fc.weight": (5, 16), "fc.scale": ()}


def arrays(seed, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.uniform(0.1, 1, s), dtype) for name, s in shapes.items()}


def saved(e_g, e_x, step=7.0, groups=None, **group):
    """The state dict of an optimizer; `groups` has the number of parameters in each."""
    given = {"lr": 0.5, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.01, **group}
    ends = np.cumsum(groups or [len(e_g)])
    return {
        "state": {
            i: {"step": step, "square_avg": e_g[name], "acc_delta": e_x[name]}
            for i, name in enumerate(e_g)
        },
        "param_groups": [
            {**given, "params": list(range(end - n, end))}
            for n, end in zip(groups or [len(e_g)], ends.tolist(), strict=True)
        ],
    }


def to_params(t):
    return {
        "conv": [jnp.asarray(t["conv.weight"].transpose(2, 3, 1, 0)), jnp.asarray(t["conv.bias"])],
        "fc": dict(zip("qk", jnp.split(jnp.asarray(t["fc.weight"].T), 2), strict=True)),
        "scale": t["fc.scale"],
    }


def to_tensors(params):
    return {
        "conv.weight": params["conv"][0].transpose(3, 2, 0, 1),
        "conv.bias": params["conv"][1],
        "fc.weight": np.concatenate([params["fc"]["q"], params["fc"]["k"]]).T,
        "fc.scale": params["scale"],
    }


def read(given=None, function=to_params, names=tuple(SHAPES)):
    """The state that a state dict becomes; that of `arrays(0)` and `arrays(1)` if none is given."""
    given = saved(arrays(0), arrays(1)) if given is None else given
    return convert.from_torch(given, function, names=names)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "kept"), [(np.float16, np.float32), (np.float64, np.float64)])
def test_the_averages_are_moved_like_the_weights_and_back(dtype, kept):
    e_g, e_x, weights = (arrays(seed, dtype) for seed in range(3))
    state = convert.from_torch(saved(e_g, e_x), to_params, names=weights)
    same_types(state, adadelta().init(jax.tree.map(kept, to_params(weights))))
    assert state.count == 7
    for found, given in ((state.e_g, e_g), (state.e_x, e_x)):
        same_bits(found, jax.tree.map(kept, to_params(given)))
    back = convert.to_torch(state, to_tensors, names=weights, learning_rate=0.5)
    again = saved(e_g, e_x)
    assert back["state"].keys() == again["state"].keys()
    for i, part in again["state"].items():
        assert back["state"][i]["step"] == part["step"]
        for field in ("square_avg", "acc_delta"):
            found = back["state"][i][field]
            np.testing.assert_array_equal(found, kept(part[field]))
            assert found.shape == part[field].shape
            assert found.flags.writeable
    (group,) = back["param_groups"]
    assert group == {
        **{"lr": 0.5, "rho": 0.95, "eps": 1e-6, "weight_decay": 0.0, "params": [0, 1, 2, 3]},
        **{"foreach": None, "maximize": False, "capturable": False, "differentiable": False},
    }


def test_codes_are_read():
    e_g, e_x = arrays(0), arrays(1)
    low = jax.jit(lambda state: convert.with_state_bits(state, 8, eps=1e-6))(read())
    back = convert.to_torch((optax.EmptyState(), low), to_tensors, names=e_g)
    found = [
        {name: back["state"][i][field] for i, name in enumerate(e_g)}
        for field in ("square_avg", "acc_delta")
    ]
    assert_agree(found, (e_g, e_x), 8)
    same_bits(found[0], jax.tree.map(np.asarray, to_tensors(averages(low).e_g)))


def test_a_model_may_be_of_lower_precision_and_have_many_elements_or_be_a_number():
    """More elements than one or two digits count; bfloat16 has every digit."""
    shapes = {"b": (2,), "w": (300, 301), "n": ()}
    e_g, e_x = (arrays(seed, shapes=shapes) for seed in range(2))

    def cast(t):
        arrays = {"w": jnp.asarray(t["w"].T, jnp.bfloat16), "b": jnp.asarray(t["b"], jnp.float16)}
        return {**arrays, "n": float(t["n"])}

    state = convert.from_torch(saved(e_g, e_x), cast, names=e_g)
    np.testing.assert_array_equal(state.e_g["w"], e_g["w"].T)
    np.testing.assert_array_equal(state.e_x["b"], e_x["b"])
    np.testing.assert_array_equal(state.e_x["n"], e_x["n"])
    # Or be one array.
    one = convert.from_torch(saved({"b": e_g["b"]}, {"b": e_x["b"]}), lambda t: t["b"], names=["b"])
    same_bits(one.e_x, jnp.asarray(e_x["b"]))


def complex_params(t):
    return {"z": jnp.asarray(t["z"].T), "r": jnp.asarray(t["r"])}


def test_complex_averages_are_those_of_two_parameters():
    rng = np.random.default_rng(0)

    def draw():
        parts = rng.uniform(0.1, 1, (2, 2, 3)).astype(np.float32)
        return {"z": parts[0] + 1j * parts[1], "r": np.ones(2, np.float32)}

    e_g, e_x, weights = draw(), draw(), draw()
    state = convert.from_torch(saved(e_g, e_x), complex_params, names=weights)
    optimizer = optax.contrib.split_real_and_imaginary(adadelta())
    wrapped = optax.contrib.SplitRealAndImaginaryState(state)
    same_types(wrapped, optimizer.init(complex_params(weights)))
    np.testing.assert_array_equal(state.e_g["z"].real, e_g["z"].real.T)
    np.testing.assert_array_equal(state.e_x["z"].imaginary, e_x["z"].imag.T)
    back = convert.to_torch(wrapped, lambda p: {"z": p["z"].T, "r": p["r"]}, names=weights)
    np.testing.assert_array_equal(back["state"][0]["square_avg"], e_g["z"])
    np.testing.assert_array_equal(back["state"][0]["acc_delta"], e_x["z"])
    # With |g|^2 there is nothing to tell the two parts from.
    real = adadelta().init(complex_params(weights))
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        convert.to_torch(real, lambda p: {"z": p["z"].T, "r": p["r"]}, names=weights)


def test_parameters_without_state_get_zeros_if_their_shapes_are_known():
    e_g, e_x, weights = arrays(0), arrays(1), arrays(2)
    given = saved(e_g, e_x)
    del given["state"][2]
    state = convert.from_torch(given, to_params, names=weights)
    assert not np.any(state.e_g["fc"]["q"])
    assert not np.any(state.e_x["fc"]["k"])
    same_bits(state.e_g["conv"], to_params(e_g)["conv"])
    with pytest.raises(ValueError, match=r"to_params asks for 'fc.weight'"):
        convert.from_torch(given, to_params, names=list(weights))
    # What has no averages may be left out, known or not, and given back as None.
    for names in (weights, list(weights)):
        part = convert.from_torch(
            given, lambda t: [t["conv.weight"], t["conv.bias"], t["fc.scale"]], names=names
        )
        assert len(jax.tree.leaves(part.e_g)) == 3
    back = convert.to_torch(
        part,
        lambda p: dict(zip(SHAPES, [p[0], p[1], None, p[2]], strict=True)),
        names=weights,
    )
    assert back["state"].keys() == {0, 1, 3}
    assert back["param_groups"][0]["params"] == [0, 1, 2, 3]
    # Before the first step nothing has a state.
    begun = convert.from_torch({**given, "state": {}}, to_params, names=weights)
    assert begun.count == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.e_g))


def test_the_count_is_the_largest_number_of_steps():
    given = saved(arrays(0), arrays(1))
    for i, step in enumerate([3, np.float32(9), np.array(5.0), 2.0**40]):
        given["state"][i]["step"] = step
        count = read(given).count
        assert (count.dtype, int(count)) == (jnp.int32, [7, 9, 9, 2**31 - 1][i])


def test_names_in_the_state_are_used():
    e_g, e_x, names = arrays(0), arrays(1), list(SHAPES)
    given, expected = saved(e_g, e_x, param_names=names), read()
    # Then the order of those that are given does not matter.
    for some in (None, dict(reversed(arrays(2).items()))):
        same_bits(read(given, names=some), expected)
    # Distributed state dicts have names in place of numbers.
    by_name = {
        "state": {name: given["state"][i] for i, name in enumerate(SHAPES)},
        "param_groups": [{**saved(e_g, e_x)["param_groups"][0], "params": names}],
    }
    same_bits(read(by_name, names=None), expected)
    for own, others, message in (
        (names, ["conv.weight", *names[2:], "other"], r"(?s)conv.bias: missing in names.*other: "),
        (None, None, r"names=model.named_parameters\(\)"),
        ([*names[:3], names[0]], None, r"conv.weight: is there more than once"),
        (names[:3], None, "4 parameters, but its state has 3 names"),
    ):
        given = saved(e_g, e_x, **({"param_names": own} if own else {}))
        with pytest.raises(ValueError, match=message):
            read(given, names=others)


def test_averages_are_tensors_if_torch_is_imported(monkeypatch):
    class Torch:
        @staticmethod
        def from_numpy(array):
            assert array.flags.writeable
            return Tensor(array)

    monkeypatch.setitem(sys.modules, "torch", Torch)

    def to_jax(params):
        return jax.tree.map(jnp.asarray, to_tensors(params))

    for function in (to_tensors, to_jax):
        found = convert.to_torch(read(), function, names=list(SHAPES))["state"]
        for i, expected in enumerate(arrays(1).values()):
            np.testing.assert_array_equal(found[i]["acc_delta"].array, expected)


def test_several_groups():
    e_g, e_x, weights = arrays(0), arrays(1), arrays(2)
    given = saved(e_g, e_x, groups=[2, 2])
    given["param_groups"][1]["lr"] = 0.1
    pairs = list(weights.items())
    for names in (weights, [dict(pairs[:2]), dict(pairs[2:])], [iter(pairs[:2]), list(SHAPES)[2:]]):
        state = read(given, names=names)
        same_bits(state, read())
    fast, slow = convert.hyperparameters_from_torch(given)
    assert (fast["learning_rate"], slow["learning_rate"]) == (0.5, 0.1)

    groups = {"fast": adadelta(**fast), "slow": adadelta(**slow)}
    optimizer = optax.multi_transform(groups, {"conv": "fast", "fc": "slow", "scale": "slow"})
    back = convert.to_torch(
        convert.carry_over(state, optimizer.init(to_params(weights))),
        to_tensors,
        names=[dict(pairs[:2]), list(SHAPES)[2:]],
        learning_rate=[0.5, 0.1],
        rho=lambda count: jnp.where(count == 7, 0.9, 0.0),
    )
    for i, part in given["state"].items():
        np.testing.assert_array_equal(back["state"][i]["acc_delta"], part["acc_delta"])
    assert [group["lr"] for group in back["param_groups"]] == [0.5, 0.1]
    assert [group["rho"] for group in back["param_groups"]] == pytest.approx([0.9, 0.9])
    assert [group["params"] for group in back["param_groups"]] == [[0, 1], [2, 3]]
    halves = [SHAPES.keys() - {"fc.scale"}, ["fc.scale"]]
    with pytest.raises(ValueError, match="rho has 3 values for 2 groups"):
        convert.to_torch(state, to_tensors, names=halves, rho=(0.9,) * 3)
    with pytest.raises(ValueError, match="2 AdadeltaStates"):
        convert.to_torch((state, state), to_tensors, names=weights)


def scaled(t):
    return to_params({name: 2 * array for name, array in t.items()})


# Each is a function in place of `to_params`, and what the error says.
WRONG = {
    "scales": (scaled, r"conv/0: has other values(?s:.*)scale: has other values"),
    "adds": (lambda t: {**to_params(t), "scale": t["fc.scale"] + 1}, "scale: has other values"),
    "large": (lambda t: {**to_params(t), "new": jnp.full(3, 1e9)}, "new: has other values"),
    "integers": (lambda t: {**to_params(t), "steps": jnp.int32(3)}, "steps: int32 is not float"),
    "functions": (lambda t: {**to_params(t), "f": len}, "f: object is not floating-point"),
    "clips": (
        lambda t: {**to_params(t), "conv": [t["conv.weight"], np.maximum(t["conv.bias"], 75)]},
        "conv/1: has other values",
    ),
    "repeats": (lambda t: {**to_params(t), "new": t["conv.bias"]}, "new: .* more than once"),
    "repeats itself": (lambda t: np.stack([t["conv.bias"]] * 2), "the top: .* more than once"),
    "leaves out": (
        lambda t: {"conv": t["conv.weight"][1:], "fc": t["fc.weight"], "scale": t["fc.scale"]},
        r"conv.weight: 18 of 72 elements are left out\n- conv.bias: 4 of 4",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_functions_that_do_more_than_move_elements_are_refused(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        read(function=wrong)


def test_an_error_in_the_function_says_with_what_it_was_called():
    with pytest.raises(AttributeError) as error:
        read(function=lambda t: t["fc.weight"].permute(1, 0))
    assert "to_params was called with" in error.value.__notes__[0]


def test_what_does_not_match_is_listed():
    given, weights = saved(arrays(0), arrays(1)), arrays(2)
    turned = weights | {"fc.weight": weights["fc.weight"].T, "conv.bias": np.ones(5)}
    names = list(SHAPES)
    for wrong, message in (
        (turned, r"(?s)conv.bias: .*\(5,\).*\(4,\).*fc.weight: .*\(16, 5\)"),
        (names[:3], r"4 parameters, but names has 3: conv.weight, conv.bias"),
        ([*names[1:], "fc.scale"], r"fc.scale: is there more than once"),
        (weights.values(), r"model.named_parameters\(\)"),
        ([("conv.bias", 1, 2)], r"model.named_parameters\(\)"),
        ([(weights["fc.weight"], "w")], r"model.named_parameters\(\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            read(given, names=wrong)
    given["state"][0]["acc_delta"] = np.ones((4, 2))
    given["state"][1] = {"step": 1.0, "exp_avg": np.ones(4), "exp_avg_sq": np.ones(4)}
    given["state"][9] = given["state"][3]
    message = r"(?s)state 9: .*conv.bias: .*exp_avg_sq.*conv.weight: .*\(4, 2, 3, 3\).*\(4, 2\)"
    with pytest.raises(ValueError, match=message):
        read(given)


@pytest.mark.parametrize("function", [read, convert.hyperparameters_from_torch])
def test_other_states_are_refused(function):
    adam = {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]}
    for given, message in (
        (adam, r"group 0: has \['betas', .* not eps, rho, weight_decay"),
        ({"model": {}, "optimizer": adam}, r"\['model', 'optimizer'\].*optimizer.state_dict\(\)"),
        ([], "got list"),
    ):
        with pytest.raises(ValueError, match=message):
            function(given)


def test_a_state_that_does_not_fit_the_model_is_not_written():
    weights = arrays(2)
    weights["fc.weight"] = weights["fc.weight"].T
    weights["new"] = weights.pop("conv.bias")
    mismatch = r"(?s)new: missing in what.*conv.bias: only in what.*fc.weight: .*16, 5.*5, 16"

    def negated(p):
        return {**to_tensors(p), "conv.bias": -p["conv"][1]}

    for state, function, names, message in (
        (read(), to_tensors, weights, mismatch),
        (read(), lambda p: [p], weights, r"to_tensors must return a mapping.*list"),
        (read(), negated, list(SHAPES), r"conv.bias: has other values"),
        (optax.sgd(0.1).init({}), to_tensors, weights, "There is no AdadeltaState"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            convert.to_torch(state, function, names=names)


def test_hyperparameters():
    given = saved(arrays(0), arrays(1), lr=np.float32(0.25))
    found = convert.hyperparameters_from_torch(given)
    assert found == {"learning_rate": 0.25, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.01}
    assert all(type(value) is float for value in found.values())
    for name, value, message in (
        ("maximize", True, r"optax.chain\(optax.scale\(-1.0\), adadelta\(learning_rate=0.25, rho="),
        ("rho", 1.0, "group 0: rho must be at least 0 and below 1; it is 1.0"),
        ("eps", 0.0, "group 0: eps must be positive"),
    ):
        given = saved(arrays(0), arrays(1), **{"lr": 0.25, name: value})
        with pytest.raises(ValueError, match=message):
            convert.hyperparameters_from_torch(given)


class BFloat16:
    def __str__(self):
        return "torch.bfloat16"


class Tensor:
    """A tensor that is not on the CPU, with torch's restrictions."""

    def __init__(self, array, dtype="torch.float32", steps=()):
        self.array, self.dtype, self.steps = array, dtype, steps
        self.shape = array.shape

    def _then(self, step, dtype=None):
        return Tensor(self.array, dtype or self.dtype, (*self.steps, step))

    def detach(self):
        return self._then("detach")

    def cpu(self):
        return self._then("cpu")

    def float(self):
        return self._then("float", "torch.float32")

    def __array__(self, dtype=None, copy=None):
        assert self.steps[:2] == ("detach", "cpu")
        assert not isinstance(self.dtype, BFloat16)
        return self.array


def test_tensors_come_from_their_device():
    tensors = [
        {name: Tensor(a, dtype) for name, a in arrays(seed).items()}
        for seed, dtype in ((0, "torch.float32"), (1, BFloat16()))
    ]
    same_bits(read(saved(*tensors, step=Tensor(np.array(7.0)))), read())


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.peers
def test_states_of_torch_in_every_dtype_return_bit_by_bit(torch):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.complex64):
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(3, 2).to(dtype))
        theirs = torch.optim.Adadelta([("w", w)])
        for _ in range(5):
            theirs.zero_grad()
            (w.abs() ** 2).sum().backward()
            theirs.step()
        before = theirs.state_dict()
        state = convert.from_torch(before, lambda t: jnp.asarray(t["w"].T), names=[("w", w)])
        after = convert.to_torch(state, lambda p: {"w": p.T}, names=[("w", w)], rho=0.9)
        other = torch.optim.Adadelta([("w", w)])
        other.load_state_dict(after)
        for field in ("step", "square_avg", "acc_delta"):
            expected, found = (s.state_dict()["state"][0][field] for s in (theirs, other))
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


@pytest.mark.peers
def test_a_run_goes_on_in_jax_and_again_in_torch(torch):
    """The example compares the weights in both after each part."""
    printed = run("from_torch", "--smoke", "--steps", "20", "--seed", "3")
    there, back = (
        numbers(rf"^(?s:.*){where}: 10 steps, largest difference of a weight (\S+)\.\n", printed)
        for where in ("On in both", "Back in PyTorch")
    )
    assert 0 < there[0] < 1e-12
    assert 0 < back[0] < 1e-12
    assert numbers(r"Steps counted: (\d+)\.", printed) == [30]
    (begun,), (ended,) = (
        numbers(pattern, printed) for pattern in (r", loss ([\d.]+)\.\n", r"Loss: ([\d.]+)\.\n")
    )
    assert ended < begun
