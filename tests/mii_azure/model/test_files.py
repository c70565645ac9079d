"""What a model folder names: files in it, or the model is refused and nothing is written anywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import mii_azure
from local_runner.bundle.manifest import MANIFEST
from mii_azure.bundle import writer as bundles
from mii_azure.bundle.manifest import load_manifest
from mii_azure.errors import NotWritten, OutsideFolder, WeightsCorrupt
from mii_azure.model.source import resolve

INDEX = "model.safetensors.index.json"
ODD = ["../evil.safetensors", "/evil.safetensors", "..", "a/b.safetensors", "..\\evil.safetensors", "a\0.safetensors"]
ODD += [
    "a\n.safetensors",
    "\ud800.safetensors",
    "a" * 300 + ".safetensors",
    "../../code/scoring/json.py",
    "x.bin",
    "",
    5,
]


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "in" / "model"))


def generate(model: Path, output: Path, **options) -> Path:
    return mii_azure.generate("question-answering", str(model), "my-qa", output=output, **options)


def sharded(model: Path, name: object) -> Path:
    """The folder with one shard, which its index calls `name`."""
    weights = load_file(model / "model.safetensors")
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    return model


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_index_that_names_a_file_elsewhere_is_refused_and_nothing_is_written(model, tmp_path, name):
    sharded(model, name)
    before = tree(tmp_path)
    with pytest.raises(WeightsCorrupt, match=r"no \.safetensors file beside it|half of a surrogate pair"):
        generate(model, tmp_path / "out" / "bundle")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../../victim.safetensors", "ABSOLUTE"])
def test_no_file_beside_the_output_is_overwritten_and_no_private_one_copied(model, tmp_path, name):
    (tmp_path / "victim.safetensors").write_bytes(b"precious")
    private = shutil.copy(model / "model.safetensors", tmp_path / "in" / "victim.safetensors")
    sharded(model, str(private) if name == "ABSOLUTE" else "../victim.safetensors")
    with pytest.raises(WeightsCorrupt):
        generate(model, tmp_path / "bundle")
    assert (tmp_path / "victim.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "bundle").exists()


def test_a_plain_shard_of_any_name_is_copied(model, tmp_path):
    (sharded(model, "weights ü.safetensors") / "model-00001-of-00001.safetensors").rename(
        model / "weights ü.safetensors"
    )
    assert "model/weights ü.safetensors" in load_manifest(generate(model, tmp_path / "b"))["files"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_out_of_the_folder_is_refused(model, tmp_path, file):
    (model / file).rename(tmp_path / "elsewhere")
    (model / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideFolder, match=f"{file} in the model's folder is a link to .*elsewhere") as caught:
        generate(model, tmp_path / "b")
    assert "cp -RL" in caught.value.hint


def test_a_link_that_stays_in_the_folder_is_copied_as_a_file(model, tmp_path):
    (model / "store").mkdir()
    (model / "model.safetensors").rename(model / "store" / "weights")
    (model / "model.safetensors").symlink_to("store/weights")
    bundle = generate(model, tmp_path / "b")
    assert not (bundle / "model" / "model.safetensors").is_symlink()


def cache(model: Path, place: Path) -> Path:
    """The files of a model as the hub client's cache keeps them; the folder of the snapshot."""
    repository = place / "models--owner--name"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        blob = f"{number:040x}" if path.suffix == ".json" else f"{number:064x}"
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_the_links_of_the_hub_clients_cache_are_followed(model, tmp_path):
    bundle = generate(cache(model, tmp_path / "hub"), tmp_path / "b")
    original = generate(model, tmp_path / "same")
    weights = "model/model.safetensors"
    assert load_manifest(bundle)["files"][weights] == load_manifest(original)["files"][weights]
    assert not any(path.is_symlink() for path in bundle.rglob("*"))


@pytest.mark.parametrize("target", ["other", "../models--b--c/blobs/" + "0" * 64, "blobs/private", "refs/" + "0" * 64])
def test_a_snapshot_links_to_blobs_of_its_own_repository_only(model, tmp_path, target):
    snapshot = cache(model, tmp_path / "hub")
    other = snapshot.parent.parent / target
    other.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "tokenizer.json", other)
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(other)
    with pytest.raises(OutsideFolder):
        generate(snapshot, tmp_path / "b")


def test_a_pickle_index_names_files_beside_it(model):
    (model / "model.safetensors").rename(model / "pytorch_model-1.bin")
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../pytorch_model-1.bin"}}))
    with pytest.raises(WeightsCorrupt, match=r"which is no \.bin file beside it"):
        resolve(str(model), allow_pickle=True)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", {"auto_map": {"AutoModel": "/tmp/evil.Model"}}),
        ("config.json", {"auto_map": {"AutoModel": "sub/evil.Model"}}),
        ("config.json", {"transformers_weights": "../other.safetensors"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "../evil.Tokenizer"]}}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../../tokenizer.1.json"]}),
        ("modules.json", [{"path": "../../Transformer", "type": "sentence_transformers.models.Transformer"}]),
    ],
)
def test_other_names_in_a_models_files_are_refused_where_they_lead_elsewhere(model, tmp_path, file, named):
    old = json.loads((model / file).read_text()) if (model / file).exists() else {}
    (model / file).write_text(json.dumps(named if isinstance(named, list) else old | named))
    with pytest.raises(OutsideFolder, match=f"in {file} names"):
        generate(model, tmp_path / "b")


def test_names_as_published_are_no_reason_to_refuse(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "owner/name--modeling_x.Model"}, "_name_or_path": "/home/me/model"}
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {
        "tokenizer_file": "/root/.cache/x",
        "fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"],
    }
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Normalize/"}]
    (model / "modules.json").write_text(json.dumps(modules))
    bundle = generate(model, tmp_path / "b")
    assert json.loads((bundle / "model" / "tokenizer_config.json").read_text()) == tokenizer


def test_a_diffusers_index_names_files_of_its_part(tiny, tmp_path):
    model = Path(shutil.copytree(tiny("stable-diffusion", "text-to-image"), tmp_path / "model"))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    index = weights.with_name(weights.name + ".index.json")
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    names = load_file(weights)
    weights.rename(weights.with_name(shard))
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    assert resolve(str(model)).weights.parameters
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, f"../unet/{shard}")}))
    with pytest.raises(WeightsCorrupt, match=r"no \.safetensors file beside it"):
        resolve(str(model))


@pytest.mark.parametrize("name", ["a\nb.json", "a\\b.json", "a\x1b[2Jb.json"])
def test_a_file_to_copy_whose_name_is_odd_is_refused(model, tmp_path, name):
    (model / name).write_text("{}")
    with pytest.raises(OutsideFolder, match="Rename or remove it") as caught:
        generate(model, tmp_path / "b")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "path", ["../x", "/tmp/x", "model/../../x", "model//x", "", "code/scoring/entry.py", "MODEL/a"]
)
def test_write_itself_refuses_a_target_that_is_elsewhere_or_twice(tmp_path, path):
    source = tmp_path / "source"
    source.write_text("x")
    with pytest.raises(NotWritten):
        bundles.write(
            tmp_path / "out" / "b",
            render_files=lambda hashes: {"code/score.py": "x"},
            weights={"model/a": source, path: source},
        )
    assert tree(tmp_path) == {str(source)}


def test_what_is_made_lies_in_staging_too(tmp_path):
    class Making:
        bytes = 1

        def make(self, target, progress):
            (target.parent / "stray").write_text("x")
            return {}

    with pytest.raises(NotWritten, match="not what the manifest lists"):
        bundles.write(tmp_path / "b", render_files=lambda hashes: {}, weights={}, making=Making())
    assert tree(tmp_path) == set()


def test_a_pipe_in_the_place_of_the_card_is_not_waited_for(model, tmp_path):
    os.mkfifo(model / "README.md")
    call = f"generate('question-answering', {str(model)!r}, 'qa', output={str(tmp_path / 'b')!r})"
    code = f"import mii_azure; mii_azure.{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b" / MANIFEST).is_file()
