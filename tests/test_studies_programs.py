"""Programs for GPUs and TPUs: their bounds, and what was found."""

import functools

import pytest
from scripts import module

pytestmark = pytest.mark.scripts

WORKERS = module("studies._lib.workers")
ACCELERATORS, MANY = module("studies.accelerators"), module("studies.many_devices")
RESULTS, PROBLEM = module("studies._lib.results"), module("studies._lib.cards").problem
CARDS = ("H100", "TPU v5e")
# Bytes per float32 parameter: gradient, parameter and state are read, the last two are written.
FLOORS = {"float32": 28, "16 bits": 20, "8 bits": 16}
STATE = {storage: (floor - 12) // 2 for storage, floor in FLOORS.items()}
ON_H100 = {"float32": 28.1, "16 bits": 20.1, "8 bits": 16.5}


@pytest.fixture(params=CARDS)
def card(request):
    """The name of a card whose compiler is installed."""
    if problem := PROBLEM(request.param):
        pytest.skip(problem)
    return request.param


def compiled(cases):
    return WORKERS.compiled("accelerators", cases, together=True)


@functools.cache
def programs(card, setting):
    """What is compiled for a setting with each storage."""
    setting = ACCELERATORS.SETTINGS[setting]
    return dict(zip(FLOORS, compiled([(card, rule, *setting) for rule in FLOORS]), strict=True))


def check_bounds(card, setting, rule, facts):
    """Checks kernels, bytes and copies of a program of float32 leaves."""
    assert facts["kernels on leaves"] <= facts["leaves"]
    assert facts["copies"] == facts["collectives"] == 0
    if card == "H100":
        bound = ON_H100[rule]
    else:
        bound = FLOORS[rule] * (1.05 if setting.startswith("(4096, 2048)") else 1.1)
    assert FLOORS[rule] <= facts["bytes"] / facts["parameters on a device"] <= bound


@pytest.mark.accelerators
@pytest.mark.slow
@pytest.mark.parametrize("rule", FLOORS)
@pytest.mark.parametrize("setting", ["(784, 500)", "(4096, 2048)", "(4096, 2048), four devices"])
def test_a_step_is_one_kernel_per_leaf_and_moves_little_more_than_it_must(card, setting, rule):
    check_bounds(card, setting, rule, programs(card, setting)[rule])


@pytest.mark.accelerators
@pytest.mark.slow
def test_nadadelta_moves_the_bytes_of_its_trace_more_and_no_others(card):
    rules = {f"nadadelta, {name}": FLOORS[name] + STATE[name] for name in FLOORS}
    found = compiled([(card, rule, [ACCELERATORS.LARGE]) for rule in rules])
    for floor, facts in zip(rules.values(), found, strict=True):
        assert facts["bytes"] / facts["parameters on a device"] <= 1.01 * floor
        assert facts["copies"] == facts["collectives"] == 0
        # A TPU makes two of the float32 step, and keeps what is between them in its vector memory.
        assert facts["kernels on leaves"] <= (1 if card == "H100" else 2)


@pytest.mark.accelerators
def test_leaves_with_equally_many_columns_exchange_nothing(card):
    shapes = [(512,), (128, 512)]
    cases = [(card, rule, shapes, "float32", "alone", 4) for rule in FLOORS]
    assert [facts["collectives"] for facts in compiled(cases)] == [0, 0, 0]


@pytest.mark.accelerators
@pytest.mark.slow
@pytest.mark.parametrize("rule", FLOORS)
def test_every_shape_compiles(card, rule):
    cases = [(card, rule, [shape]) for shape in ACCELERATORS.ODD]
    found = zip(ACCELERATORS.ODD, compiled(cases), strict=True)
    assert {shape: facts["failed"] for shape, facts in found if "failed" in facts} == {}


def committed(name):
    return RESULTS.load_all(name)[name]["cards"]


@pytest.mark.parametrize("card", CARDS)
def test_the_committed_results_are_of_every_case_and_none_failed(card):
    found = committed("accelerators")[card]
    assert list(found["cases"]) == list(ACCELERATORS.SETTINGS)
    assert list(found["odd shapes"]) == list(map(str, ACCELERATORS.ODD))
    for section, rules in (("cases", ACCELERATORS.RULES), ("odd shapes", ACCELERATORS.STORAGES)):
        for case in found[section].values():
            assert list(case) == list(rules)
            assert not any("failed" in facts for facts in case.values())


BOUNDED = ["(8192,)", "(784, 500)", "(3, 3, 64, 128)", "(50304, 768)", "(4096, 2048)"]


@pytest.mark.parametrize("rule", FLOORS)
@pytest.mark.parametrize("setting", [*BOUNDED, "(4096, 2048), four devices"])
@pytest.mark.parametrize("card", CARDS)
def test_the_committed_results_are_within_the_bounds(card, setting, rule):
    check_bounds(card, setting, rule, committed("accelerators")[card]["cases"][setting][rule])


@pytest.mark.parametrize(("rule", "most"), [("16 bits", 2.5), ("8 bits", 4)])
@pytest.mark.parametrize("setting", ["(784, 500)", "(4096, 2048)"])
def test_quantized_state_takes_the_tpu_compiler_a_few_times_as_long(setting, rule, most):
    case = committed("accelerators")["TPU v5e"]["cases"][setting]
    assert case[rule]["compile"] < most * case["float32"]["compile"]


@pytest.mark.parametrize("way", MANY.WAYS)
@pytest.mark.parametrize("card", CARDS)
def test_in_the_committed_results_no_step_moves_more_between_devices_than_sgd(card, way):
    case = committed("many_devices")[card][way]
    assert list(case) == list(MANY.RULES)
    mixed = card == "H100" and way == "fully sharded and tensor parallel"
    for storage, size in STATE.items():
        facts, sgd = case[storage], case["sgd"]
        assert facts["collectives"] == sgd["collectives"] != {}
        assert facts["stored"] == size * facts["on a device"]
        more = (facts["moved"] - sgd["moved"]) / facts["on a device"]
        # There the layouts of gradients and updates differ. Elsewhere at most the updates are
        # stored once more.
        assert more <= 2 * size + (18 if mixed else 8.2)
        assert facts["copies"] <= sgd["copies"] + (2 if mixed else 0)


def test_the_estimate_for_many_devices_is_what_one_computes_by_hand():
    page = (RESULTS.DOCS / "scaling.md").read_text(encoding="utf-8")
    for storage, state in STATE.items():
        moved, held = 3 * 2 + 2 * state, 70e9 / 256
        cells = f"{state * held / 1e9:.2f} | {moved} | {1e3 * moved * held / 3.35e12:.2f} ms"
        assert f"| {storage} | {cells} |" in page


@pytest.mark.parametrize("storage", STATE)
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_compiled_programs_move_the_bytes_that_the_page_counts(dtype, size, storage):
    counted = 3 * size + 2 * STATE[storage]
    case = "four devices" if dtype == "float32" else "bfloat16, stochastic_round"
    for card in CARDS:
        facts = committed("accelerators")[card]["cases"][f"(4096, 2048), {case}"][storage]
        assert facts["bytes"] / facts["parameters on a device"] == pytest.approx(counted, rel=2e-3)
