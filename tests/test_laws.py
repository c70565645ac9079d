"""The laws of DESIGN.md that a test can hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mii_azure
from mii_azure.bundle.carried import SCORING_FILES
from tests import assertions, module_graph

ROOT = Path(__file__).resolve().parent.parent

# What breaks a structural law today. An entry that is no longer needed fails its test: the lists only shrink.
IN_CYCLES: list[list[str]] = []
ABOVE: set[tuple[str, str]] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
SAME_NAMES: set[str] = set()

# Names that several modules of a package bear, and how their rooms differ. Any other name is borne once.
TIERS = "of the fused and of the generic tier of decoders"
A_KERNEL = "a kernel, and what launches it"
TREE = "the package's tree of errors, and the errors of another party translated"
SHARED_MODULE_NAMES = {
    "local_runner.errors": TREE,
    "local_runner.metrics": "of one process, and summed over replicas",
    "local_runner.options": "of replicas on this machine, and on Ray",
    "local_runner.pool": "of replicas, its two implementations, and of front ends",
    "local_runner.server": "uvicorn alone, and the process of both protocols",
    "local_runner.worker": "a replica on this machine, and on Ray",
    "mii_azure.causes": "of Azure's refusals, and of tokens that differ",
    "mii_azure.errors": TREE,
    "mii_azure.files": "of a model folder, and rules on a bundle's",
    "mii_azure.serving": "rules on it, and flags of the command line",
    "mii_azure.writer": "of a bundle, and of quantised weights",
    "scoring.all_reduce": A_KERNEL,
    "scoring.base": "of tasks, and of passes",
    "scoring.cuda_backend": TIERS,
    "scoring.cuda_graphs": "of encoders, and of diffusion",
    "scoring.decoder": "on one device, and over the slices of several",
    "scoring.fixed_order": A_KERNEL,
    "scoring.loading": "of adapters, and of quantised weights",
    "scoring.low_rank": A_KERNEL,
    "scoring.model": TIERS,
    "scoring.registry": "of tasks, and of passes",
    "scoring.torch_backend": TIERS,
    "scoring.verify": "of decoders, encoders and diffusion",
}

# Sleeps of the tests beside `tests/waiting.py`: none of them decides that something has come. By file and function.
PACE = "sends, reads or asks at a pace, which is what is tested"
NOTHING_COMES = "looks for a while whether what must not happen does not"
SLEEPS = {
    "local_runner/replicas/test_ray.py:__anext__": "gives way, or hangs until it is cancelled",
    "local_runner/replicas/test_ray.py:test_a_replica_that_answers_runs_whatever_the_last_look_said": "a task begins",
    "local_runner/replicas/test_replicas.py:test_a_slow_reader_holds_the_replica_back": "looks again until it rests",
    "local_runner/replicas/test_replicas.py:test_sigterm_finishes_what_was_taken_and_ends_the_replicas": NOTHING_COMES,
    "local_runner/stub/scoring/entry.py:_wait": "waits for a condition; a bundle holds no file of the tests",
    "local_runner/test_lifecycle.py:test_the_drain_has_a_budget_and_a_second_signal_no_patience": PACE,
    "mii_azure/azure/fake_arm/azurite.py:_wait": "waits for a condition, its process too",
    "mii_azure/sdk/test_deployment_processes.py:test_a_deployment_outlives_the_process_that_made_it": NOTHING_COMES,
    "scenarios/faults/test_connections.py:test_a_reader_that_stops_is_let_go": NOTHING_COMES,
    "scenarios/faults/test_connections.py:test_a_slow_body_that_goes_on_is_read": PACE,
    "scenarios/faults/test_connections.py:test_an_answer_that_nobody_reads_waits_at_the_server": PACE,
    "scenarios/faults/test_limits.py:flood": PACE,
    "scenarios/faults/test_limits.py:test_a_body_that_comes_by_drops_is_ended": PACE,
    "scenarios/faults/test_limits.py:test_a_reader_by_drops_is_let_go_and_a_slow_one_is_not": PACE,
    "scenarios/faults/test_limits.py:test_watches_of_health_are_counted": "waits for a condition that is awaited",
    "scenarios/faults/test_limits.py:test_what_is_sent_as_a_websocket_is_answered_over_http": NOTHING_COMES,
    "scenarios/faults/test_load.py:ask": PACE,
    "scenarios/faults/test_load.py:test_a_signal_under_load_loses_nothing_that_was_taken": NOTHING_COMES,
    "scenarios/faults/test_orphans.py:test_nohup_outlives_its_terminal_and_reloads": NOTHING_COMES,
    "scenarios/faults/test_surroundings.py:test_a_certificate_that_expires_meanwhile_is_told_by_the_client": (
        "lets a certificate's time pass"
    ),
    "scenarios/faults/test_surroundings.py:test_a_jump_of_the_clock_changes_no_deadline": NOTHING_COMES,
    "scenarios/ray/conftest.py:until": "waits for a condition and tells how long it took",
    "scenarios/ray/conftest.py:wait": "waits for a condition",
    "scenarios/ray/test_front.py:test_a_signal_drains": NOTHING_COMES,
    "scenarios/soak/soak.py:_work": PACE,
    "scenarios/soak/soak.py:soaked": PACE,
    "test_packaged_models.py:convert": "makes two at once meet",
}

# First words of docstrings that are neither.
NEITHER_NOUN_NOR_VERB = """
    what whatever whether how where wherever when whenever why which whichever who whoever whose that this these those
    it its itself he they them their such so as at by for from in into of off on onto out over under up upon with within
    without about above after against among before behind below beneath beside between beyond during since than through
    to toward until while if unless though although because and but or nor yet both either neither also always never
    often only just here there then thus twice is are was were be been does did has had can could may might must shall
    should will would not
"""

FILE_LINES = 400
FUNCTION_LINES = 50
# What a package may import of the others, as the beginnings of module names.
MAY_IMPORT = {
    "mii_azure": ("templates", "local_runner", "scoring"),
    "local_runner": ("scoring.errors", "scoring.host_api"),
    "templates": (),
    "scoring": (),
}
# The rooms of a package from the lowest to the highest: folders, and modules that stand beside them. A package without
# a table is not divided yet.
ROOMS: dict[str, tuple[str, ...]] = {
    "scoring": (
        "errors",
        "strict_json",
        "config",
        "telemetry",
        "limits",
        "schema",
        "model_files",
        "sentence",
        "kernels",
        "quantization",
        "lora",
        "passes.families",
        "distributed",
        "decoder",
        "engine",
        "generation",
        "tensor_parallel",
        "model.loaded",
        "passes.base",
        "encoder",
        "diffusion",
        "passes",
        "tasks",
        "model",
        "api",
        "front_ends",
        "entry",
        "batch_files",
        "host_api",
    ),
    "mii_azure": (
        "own_packages",
        "notebook",
        "errors",
        "version",
        "platform",
        "spec",
        "hardware",
        "model",
        "quantize",
        "planning",
        "bundle",
        "azure",
        "preflight",
        "checks",
        "verdict",
        "reports",
        "operations",
        "mlops",
        "sdk",
        "cli",
    ),
    "local_runner": (
        "errors",
        "flags",
        "protos",
        "protocol",
        "bundle",
        "telemetry",
        "host",
        "http",
        "grpc",
        "access",
        "page",
        "process",
        "client",
        "targets",
        "replicas",
        "doors",
        "front_ends",
        "server",
        "container",
        "__main__",
    ),
}

HEAVY = {"torch", "transformers", "deepspeed", "azure", "grpc", "fastapi", "azureml_inference_server_http"}


# Deciding on paper must not wait for torch.
DECISIONS = "from scoring.passes.registry import encoder_passes, decoder_passes; from scoring.config import Limits; "
DECISIONS += "encoder_passes(); decoder_passes(Limits())"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_scoring_imports_none_of_the_other_packages() -> None:
    others = {"mii_azure", "templates", "local_runner", "tests", "benchmarks", "tools"}
    paths = sorted((ROOT / "scoring").rglob("*.py"))
    assert len(paths) > 100
    assert [path.relative_to(ROOT).as_posix() for path in paths if imported(path) & others] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert module_graph.cycles(module_graph.module_graph()) == IN_CYCLES


def test_no_package_imports_one_above_it() -> None:
    found = {
        (name, other)
        for name, others in module_graph.module_graph().items()
        for other in others
        if other.split(".")[0] != name.split(".")[0] and not _allowed(name, other)
    }
    assert found == ABOVE


def _allowed(name: str, other: str) -> bool:
    return any(f"{other}.".startswith(f"{start}.") for start in MAY_IMPORT[name.split(".")[0]])


def test_rooms_import_only_downwards() -> None:
    graph = module_graph.module_graph()
    found = {package: module_graph.upward(graph, package, rooms) for package, rooms in ROOMS.items()}
    assert found == {package: [] for package in ROOMS}


def test_files_are_short() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in module_graph.sources().items()}
    assert {name for name, count in lines.items() if count > FILE_LINES} == LONG_FILES


def test_functions_are_short() -> None:
    found = {
        f"{name}:{function}"
        for name, path in module_graph.sources().items()
        for function, count in module_graph.functions(path)
        if count > FUNCTION_LINES
    }
    assert found == LONG_FUNCTIONS


def test_no_two_public_classes_have_one_name() -> None:
    names = [name for path in module_graph.sources().values() for name in module_graph.public_classes(path)]
    assert {name for name in names if names.count(name) > 1} == SAME_NAMES


def test_no_two_modules_of_a_package_have_one_name_unless_their_rooms_differ_in_subject() -> None:
    assert module_graph.shared_names(module_graph.sources()) == set(SHARED_MODULE_NAMES)


def test_what_ships_of_the_scoring_package_is_declared() -> None:
    """Declared, not found: whoever adds a file there says that bundles carry it."""
    there = [path for path in (ROOT / "scoring").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert list(SCORING_FILES) == sorted(path.relative_to(ROOT / "scoring").as_posix() for path in there)


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    """Held by what is neither: words of questions and relations, pronouns, prepositions, conjunctions."""
    neither = NEITHER_NOUN_NOR_VERB.split()
    found = {
        f"{name}: {text.splitlines()[0]}"
        for name, path in module_graph.sources().items()
        for text in module_graph.docstrings(path)
        if re.split(r"\W", text, maxsplit=1)[0].lower() in neither
    }
    assert found == set()


def test_nothing_is_planted_on_a_model_for_others_to_find() -> None:
    """What passes make beside a model is in `Loaded.runtime`; on the model they only replace what it has already."""
    own = {"forward", "denoise", "decode", "embed", "name_or_path", "generation_config"}
    planted = {
        f"{name}: model.{target.attr}"
        for name, path in module_graph.sources().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for target in (node.targets if isinstance(node, ast.Assign) else [])
        for target in (target.elts if isinstance(target, ast.Tuple) else [target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
        if target.value.id in ("model", "hf_model") and target.attr not in own
    }
    assert planted == set()


def test_the_laws_see_what_breaks_them(tmp_path: Path) -> None:
    """Lazy imports, imports for types alone, relative ones, and a room that looks up."""
    files = {
        "scoring/__init__.py": "",
        "scoring/low.py": "def f() -> None:\n    from scoring.room.high import g\n",
        "scoring/room/__init__.py": "",
        "scoring/room/high.py": "if TYPE_CHECKING:\n    from ..low import f\nclass C:\n    def m():\n        pass\n",
        "scoring/template/no_module.py": "import scoring.low\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    graph = module_graph.module_graph(tmp_path)
    assert module_graph.cycles(graph) == [["scoring.low", "scoring.room.high"]]
    assert module_graph.upward(graph, "scoring", ("low", "room")) == ["scoring.low → scoring.room.high"]
    assert module_graph.upward(graph, "scoring", ("room", "low")) == ["scoring.room.high → scoring.low"]
    with pytest.raises(ValueError, match=r"in no room: scoring\.low$"):
        module_graph.upward(graph, "scoring", ("room",))
    high = module_graph.sources(tmp_path)["scoring.room.high"]
    assert list(module_graph.functions(high)) == [("C.m", 2)]
    assert module_graph.public_classes(high) == ["C"]
    (tmp_path / "scoring/room/low.py").write_text('"""One."""\nclass C:\n    def f(self):\n        """Two."""\n')
    assert list(module_graph.docstrings(tmp_path / "scoring/room/low.py")) == ["One.", "Two."]
    assert module_graph.shared_names(module_graph.sources(tmp_path)) == {"scoring.low"}


@pytest.mark.parametrize(
    "statement", ["import mii_azure", "import mii_azure.cli.app", "import scoring.schema.registry", DECISIONS]
)
def test_heavy_packages_wait_until_they_are_needed(statement: str) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in modules}


def test_public_names() -> None:
    assert sorted(mii_azure.__all__) == [
        "DeploymentType",
        "MiiAzureError",
        "Spec",
        "__version__",
        "async_client",
        "bench",
        "check",
        "client",
        "deploy",
        "diff",
        "generate",
        "package",
        "parity",
        "plan",
        "prepare",
        "sweep",
        "terminate",
        "verify",
    ]
    for name in mii_azure.__all__:
        assert getattr(mii_azure, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mii_azure.nonsense


def test_every_flag_of_a_verb_has_an_environment_twin() -> None:
    import typer

    from mii_azure.cli.app import app

    command = typer.main.get_command(app)
    for verb, sub in command.commands.items():  # type: ignore[attr-defined]
        for parameter in sub.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                twin = parameter.opts[0].removeprefix("--").replace("-", "_").upper()
                assert parameter.envvar == f"MII_AZURE_{twin}", (verb, parameter.name)


def test_no_two_meanings_share_an_environment_variable() -> None:
    import typer

    from mii_azure.cli.app import app

    kinds: dict[str, set[str]] = {}
    for sub in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in sub.params:
            if parameter.envvar:
                kinds.setdefault(str(parameter.envvar), set()).add(str(parameter.bare_type()))
    assert {name: types for name, types in kinds.items() if len(types) > 1} == {}


def test_every_sleep_has_a_reason() -> None:
    """What is waited for is waited for by its condition: `tests.waiting.until`."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "waiting.py"]
    names = {path: path.relative_to(ROOT / "tests").as_posix() for path in paths}
    found = {f"{names[path]}:{function}" for path in paths for function in assertions.sleepers(path)}
    assert found == set(SLEEPS)


def test_every_test_asserts_something() -> None:
    assert assertions.tests_without(ROOT / "tests") == []


def test_the_law_on_assertions_sees_what_breaks_it(tmp_path: Path) -> None:
    """A helper that asserts counts, by whatever way it is called; one of the same name that only runs does not."""
    (tmp_path / "helpers.py").write_text(
        "def checked(x):\n    assert x\ndef run(x):\n    checked(x)\ndef idle(): ...\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import subprocess, pytest\n"
        "from tests.helpers import idle, run\n"
        "from scoring import checked\n"
        "def test_nothing(): idle()\n"
        "def test_a_module(): subprocess.run(['x'])\n"
        "def test_another_one_of_that_name(): checked(1)\n"
        "def test_helper(): run(1)\n"
        "def test_error():\n    with pytest.raises(ValueError): int('x')\n"
    )
    found = ["test_a_module", "test_another_one_of_that_name", "test_nothing"]
    assert sorted(assertions.tests_without(tmp_path)) == [f"test_it.py::{name}" for name in found]


def test_version_is_stated_once_more_only() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{mii_azure.__version__}"' in text
