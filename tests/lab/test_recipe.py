from pathlib import Path

import pytest

from torchcbl.lab.recipe import Recipe, differences, load_recipe, read_recipe, recipe_names
from torchcbl.lab.sources import SOURCES


def test_the_cifar10_recipe_is_the_papers_protocol() -> None:
    recipe = load_recipe("cifar10")
    assert recipe == Recipe(
        name="cifar10",
        data="cifar10",
        arms=("standard", "cbl", "cbl-gate"),
        seeds=5,
        epochs=20,
        batch_size=128,
        learning_rate=1e-3,
        halve_every=5,
        validation_size=5000,
        augment=False,
        width=16,
        steps=2,
        alpha=0.0,
        context_dim=64,
    )


def test_every_recipe_that_comes_along_loads_and_is_named_like_its_file() -> None:
    cifar10 = ["cifar10", "cifar10-augmented", "cifar10-controls", "cifar10-released"]
    assert recipe_names() == [
        "audio",
        *cifar10,
        "demo",
        "digits-controls",
        "images",
        "speech-commands",
        "speech-five-words",
    ]
    assert [load_recipe(name).name for name in recipe_names()] == recipe_names()


def test_a_saved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe("demo", {"learning_rate": "1e-05", "alpha": "0.1", "augment": "true", "arms": '["cbl"]'})
    (tmp_path / "recipe.toml").write_text(recipe.as_toml())
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe


def test_plain_values_rebuild_the_recipe() -> None:
    recipe = load_recipe("demo")
    values = recipe.as_dict()
    assert isinstance(values["arms"], list)
    assert Recipe(**values) == recipe  # type: ignore[arg-type]


def test_overrides_are_toml_and_strings_need_no_quotes() -> None:
    recipe = load_recipe("demo", {"alpha": "0", "data": "cifar10", "name": '"other"', "augment": "true"})
    assert (recipe.alpha, recipe.data, recipe.name, recipe.augment) == (0.0, "cifar10", "other", True)
    assert isinstance(recipe.alpha, float)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("epochs", "1.5", "'epochs' must be a whole number, got 1.5"),
        ("epochs", "many", "'epochs' must be a whole number, got \"many\""),
        ("epochs", "true", "'epochs' must be a whole number, got true"),
        ("epochs", "2\nseeds = 9", "'epochs' must be a whole number"),
        ("alpha", "'high'", "'alpha' must be a number, got \"high\""),
        ("augment", "1", "'augment' must be true or false, got 1"),
        ("data", "3", "'data' must be a string, got 3"),
        ("arms", "cbl", "'arms' must be a list of strings, got \"cbl\""),
        ("arms", "[1]", r"'arms' must be a list of strings, got \[1\]"),
    ],
)
def test_a_value_of_the_wrong_type_names_key_value_and_expectation(key: str, text: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        load_recipe("demo", {key: text})


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("name", "../up", "'name' must be letters"),
        ("data", "mnist", "'data' must be one of digits, cifar10, speech-commands, .*, got \"mnist\""),
        ("arms", "[]", "'arms' must be at least one arm"),
        ("arms", '["cbl", "cbl"]', "none twice"),
        ("arms", '["cbll"]', "unknown arm 'cbll': did you mean 'cbl'"),
        ("seeds", "0", "'seeds' must be >= 1, got 0"),
        ("epochs", "0", "'epochs' must be >= 1, got 0"),
        ("batch_size", "0", "'batch_size' must be >= 1, got 0"),
        ("learning_rate", "nan", "'learning_rate' must be > 0 and finite, got nan"),
        ("learning_rate", "-0.1", "'learning_rate' must be > 0"),
        ("halve_every", "-1", "'halve_every' must be >= 0"),
        ("validation_size", "-1", "'validation_size' must be >= 0"),
        ("width", "0", "'width' must be >= 1"),
        ("steps", "0", "'steps' must be >= 1"),
        ("alpha", "1.0", r"'alpha' must be in \[0, 1\)"),
        ("alpha", "-0.1", r"'alpha' must be in \[0, 1\)"),
        ("context_dim", "0", "'context_dim' must be >= 1"),
    ],
)
def test_a_value_out_of_range_names_key_value_and_range(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("demo", {key: text})


def test_an_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'cifar': did you mean 'cifar10'\?"):
        load_recipe("cifar")


def test_an_unknown_key_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe key 'epoch': did you mean 'epochs'\?"):
        load_recipe("demo", {"epoch": "3"})


def test_a_recipe_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe nowhere/x.toml is not there; .* demo"):
        load_recipe("nowhere/x.toml")


def test_a_recipe_file_that_lacks_a_key_or_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n')
    with pytest.raises(ValueError, match="lacks data, arms, seeds"):
        load_recipe(path)
    path.write_text("epochs = = 3\n")
    with pytest.raises(ValueError, match=r"mine.toml is not valid TOML"):
        load_recipe(path)


def test_the_forms_are_those_of_the_data() -> None:
    from torchcbl.lab.data import DATASETS, load_data

    assert tuple(name for name, source in SOURCES.items() if source.shape) == DATASETS
    digits = load_data("digits", validation_size=100)
    assert (SOURCES["digits"].shape, SOURCES["digits"].classes) == (digits.form.shape, digits.form.classes)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("speech-five-words", "augment", "true"),
        ("demo", "noise", "0.8"),
        ("demo", "masking", "true"),
        ("cifar10", "image_size", "64"),
        ("images", "seconds", "2"),
        ("cifar10", "damaged", "skip"),
        ("speech-commands", "validation_size", "100"),
    ],
)
def test_what_the_data_do_not_read_is_refused(name: str, key: str, value: str) -> None:
    """A record that said "with random crop and flip" of sound would not be true."""
    with pytest.raises(ValueError, match=f"recipe key '{key}' must be left at .*: data = \"[a-z0-9-]+\" does not read"):
        load_recipe(name, {key: value})


def test_options_that_are_not_used_leave_no_trace() -> None:
    plain = load_recipe("speech-commands")
    assert not {"masking", "noise", "seconds", "image_size"} & set(plain.as_dict())
    noisy = load_recipe("speech-commands", {"noise": "0.5", "masking": "true"})
    assert noisy.as_dict()["noise"] == 0.5
    assert differences(noisy.as_dict(), plain) == ["masking is true there, false here", "noise is 0.5 there, 0.0 here"]
    assert differences(plain.as_dict(), noisy) == ["masking is false there, true here", "noise is 0.0 there, 0.5 here"]


def test_a_key_that_this_version_does_not_know_is_a_difference() -> None:
    recipe = load_recipe("demo")
    found = differences({**recipe.as_dict(), "dropout": 0.5}, recipe)
    assert found == ["dropout is 0.5 there, unknown to this version of torchcbl"]


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + load_recipe("demo").as_toml().encode())
    assert read_recipe(path) == load_recipe("demo")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ValueError, match=r"mine\.toml is not valid TOML: .*utf-8"):
        read_recipe(path)
