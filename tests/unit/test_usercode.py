"""Code beside a recipe: located and digested without being run, loaded without name collisions."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlflowkit import usercode
from mlflowkit.errors import UserCodeError


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


TREE = {
    "datasets.py": """
        import numpy as np
        from helpers import clean
        def table():
            from late.deep import inner
            return inner(clean())
        raise RuntimeError("closure must not execute this")
        """,
    "helpers.py": "import datasets, json\nfrom sklearn.base import clone\ndef clean(): return 1\n",
    "late/__init__.py": "from . import sibling\n",
    "late/sibling.py": "from ..top import THING\n",
    "late/deep.py": "from .other import *\n",
    "late/other/__init__.py": "__all__ = ['named']\n",
    "late/other/named.py": "import importlib\nx = importlib.import_module('by_string')\n",
    "late/other/unnamed.py": "",
    "by_string.py": "",
    "top.py": "THING = 1\n",
    "unrelated.py": "import nothing\n",
}


class TestClosure:
    def test_follows_every_kind_of_import_and_runs_nothing(self, tmp_path: Path) -> None:
        closure = usercode.source_closure("datasets:table", write(tmp_path, TREE))
        assert set(closure.files) == set(TREE) - {"unrelated.py", "late/other/unnamed.py"}
        assert list(closure.files) == sorted(closure.files)
        assert [name for name, _ in closure.distributions] == ["numpy", "scikit_learn"]
        assert all(version[0].isdigit() for _, version in closure.distributions)

    @pytest.mark.parametrize("name", sorted(set(TREE) - {"unrelated.py", "late/other/unnamed.py"}))
    def test_digest_depends_on_each_file(self, tmp_path: Path, name: str) -> None:
        folder = write(tmp_path, TREE)
        before = usercode.source_closure("datasets:table", folder)
        (folder / name).write_text((folder / name).read_text() + "# changed\n")
        assert usercode.source_closure("datasets:table", folder).digest != before.digest

    def test_digest_ignores_what_is_not_imported_and_where_it_lies(self, tmp_path: Path) -> None:
        first, second = write(tmp_path / "one", TREE), write(tmp_path / "two", TREE)
        (second / "unrelated.py").write_text("other = 1")
        assert usercode.source_closure("datasets:table", first) == usercode.source_closure("datasets:table", second)

    def test_library_reference_has_no_files(self, tmp_path: Path) -> None:
        closure = usercode.source_closure("sklearn.ensemble:HistGradientBoostingClassifier", tmp_path)
        assert (closure.files, closure.distributions[0][0]) == ((), "scikit_learn")

    def test_file_beside_the_recipe_shadows_a_library(self, tmp_path: Path) -> None:
        closure = usercode.source_closure("pandas:f", write(tmp_path, {"pandas.py": "import pyarrow"}))
        assert closure.files == ("pandas.py",)
        assert [name for name, _ in closure.distributions] == ["pyarrow"]

    def test_import_of_what_is_not_installed_is_listed_without_version(self, tmp_path: Path) -> None:
        source = "try:\n    import not_installed_xyz\nexcept ImportError:\n    pass\n"
        closure = usercode.source_closure("a:f", write(tmp_path, {"a.py": source}))
        assert closure.distributions == (("not_installed_xyz", ""),)

    def test_distribution_with_another_name_is_found_by_its_record(self, tmp_path: Path) -> None:
        closure = usercode.source_closure("a:f", write(tmp_path, {"a.py": "import dotenv, attr, google.protobuf"}))
        versions = usercode.installed()
        assert ("attrs", versions["attrs"]) in closure.distributions

    def test_syntax_error_names_file_and_line(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"a.py": "import b\n", "b.py": "x = 1\ndef broken(:\n"})
        with pytest.raises(UserCodeError, match=r"b\.py:2") as caught:
            usercode.source_closure("a:f", folder)
        assert "b.py:2" in caught.value.hint

    @pytest.mark.parametrize("content", [b"x = '\xff\xfe'\n", b"x = 1\0\n"])
    def test_file_that_is_not_text_names_the_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.py").write_bytes(content)
        with pytest.raises(UserCodeError, match=r"a\.py:1"):
            usercode.source_closure("a:f", tmp_path)

    def test_missing_module_suggests_the_nearest(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"datasets.py": ""})
        with pytest.raises(UserCodeError, match="no module 'datsets'") as caught:
            usercode.source_closure("datsets:f", folder)
        assert caught.value.hint == "did you mean 'datasets'?"

    def test_import_beyond_the_folder_is_not_followed(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "in", {"a.py": "from ... import outside\n", "../outside.py": ""})
        assert usercode.source_closure("a:f", folder).files == ("a.py",)


class TestLoad:
    def test_two_recipes_with_modules_of_the_same_name(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write(
                tmp_path / name,
                {"datasets.py": "from helpers import NAME\ndef f(): return NAME\n", "helpers.py": f"NAME = {name!r}\n"},
            )
        loaded = [usercode.load("datasets:f", tmp_path / name) for name in ("one", "two", "one")]
        assert [function() for function in loaded] == ["one", "two", "one"]
        assert "datasets" not in sys.modules
        assert "helpers" not in sys.modules

    def test_imports_inside_functions_are_found_when_called_later(self, tmp_path: Path) -> None:
        files = {
            "a.py": "def f():\n    import pkg.mod\n    import pkg.mod as m\n    from pkg import mod\n"
            "    from pkg.mod import X\n    return pkg.mod.X, m.X, mod.X, X\n",
            "pkg/__init__.py": "",
            "pkg/mod.py": "from .rel import X\n",
            "pkg/rel.py": "X = 5\n",
        }
        before = list(sys.path)
        function = usercode.load("a:f", write(tmp_path, files))
        assert function() == (5, 5, 5, 5)
        assert sys.path == before

    def test_shadowing_a_library_does_not_shadow_it_for_others(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"a.py": "import textwrap\nf = textwrap.mine\n", "textwrap.py": "mine = 'beside'\n"})
        assert usercode.load("a:f", folder) == "beside"
        import textwrap as real

        assert real.dedent(" x") == "x"

    def test_changed_file_is_loaded_anew_and_no_bytecode_is_left(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"a.py": "import b\nf = b.V\n", "b.py": "V = 1\n"})
        assert usercode.load("a:f", folder) == 1
        (folder / "b.py").write_text("V = 2\n")
        assert usercode.load("a:f", folder) == 2
        assert not list(folder.rglob("__pycache__"))

    def test_same_state_is_executed_once(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"a.py": "f = object()\n"})
        assert usercode.load("a:f", folder) is usercode.load("a:f", folder)

    def test_works_in_another_process(self, tmp_path: Path) -> None:
        folder = write(tmp_path, {"a.py": "import b\ndef f(): return b.V\n", "b.py": "V = 'there'\n"})
        code = (
            "from pathlib import Path; from mlflowkit import usercode;"
            f"print(usercode.load('a:f', Path({str(folder)!r}))())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
        assert done.stdout == "there\n"

    def test_classes_keep_their_module(self, tmp_path: Path) -> None:
        source = "from __future__ import annotations\nimport dataclasses as d\n@d.dataclass\nclass C:\n    x: int\n"
        loaded = usercode.load("a:C", write(tmp_path, {"a.py": source}))
        import typing

        assert typing.get_type_hints(loaded) == {"x": int}

    def test_libraries_are_allowed_by_name_only(self, tmp_path: Path) -> None:
        import sklearn.tree

        reference = "sklearn.tree:DecisionTreeClassifier"
        assert usercode.load(reference, tmp_path, libraries=("sklearn",)) is sklearn.tree.DecisionTreeClassifier
        with pytest.raises(UserCodeError, match="neither beside the recipe nor one of sklearn"):
            usercode.load("subprocess:run", tmp_path, libraries=("sklearn",))
        with pytest.raises(UserCodeError, match="no module 'subprocess'"):
            usercode.load("subprocess:run", tmp_path)
        with pytest.raises(UserCodeError):
            usercode.load("sklearn_fake:run", tmp_path, libraries=("sklearn",))

    def test_nearest_name_is_suggested(self, tmp_path: Path) -> None:
        with pytest.raises(UserCodeError, match=r"a\.py: there is no 'lending_clb' in it") as caught:
            usercode.load("a:lending_clb", write(tmp_path, {"a.py": "def lending_club(): ...\n"}))
        assert caught.value.hint == "did you mean 'lending_club'?"

    @pytest.mark.parametrize(
        ("body", "place", "words"),
        [
            ("import b\n", "b.py:2", "ZeroDivisionError"),
            ("import not_installed_xyz\n", "a.py:1", "pip install not-installed-xyz"),
            ("import sys\nsys.exit(3)\n", "a.py:2", "SystemExit: 3"),
            ("import json\n\njson.loads('{')\n", "a.py:3", "JSONDecodeError"),
        ],
    )
    def test_what_an_import_raises_names_the_users_line(
        self, tmp_path: Path, body: str, place: str, words: str
    ) -> None:
        folder = write(tmp_path, {"a.py": body, "b.py": "x = 0\n1 / x\n"})
        with pytest.raises(UserCodeError) as caught:
            usercode.load("a:f", folder)
        assert place in caught.value.message
        assert words in caught.value.message + caught.value.hint

    @pytest.mark.parametrize("reference", ["a", "a:", ":f", "a b:f", "../a:f", "a.:f", "a:f()"])
    def test_malformed_references(self, tmp_path: Path, reference: str) -> None:
        with pytest.raises(UserCodeError, match="not a reference"):
            usercode.load(reference, write(tmp_path, {"a.py": "f = 1\n"}))


def test_blame_points_at_the_users_frame_not_the_librarys(tmp_path: Path) -> None:
    source = "import json\ndef f():\n    return json.dumps(object())\n"
    function = usercode.load("a:f", write(tmp_path, {"a.py": source}))
    with (
        pytest.raises(UserCodeError, match=r"a\.py:3: a:f raised TypeError"),
        usercode.translate_user_errors("a:f", tmp_path),
    ):
        function()


def test_blame_lets_interrupts_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), usercode.translate_user_errors("a:f", tmp_path):
        raise KeyboardInterrupt


def test_closure_loads_no_vendor(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.py": "import pandas, torch, sklearn\n"})
    code = (
        "import sys; from pathlib import Path; from mlflowkit import usercode;"
        f"usercode.source_closure('a:f', Path({str(folder)!r}));"
        "print({'pandas', 'torch', 'sklearn', 'numpy', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class _Cycle:
    """Garbage whose collection runs Python code, so that threads switch wherever memory is allocated."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        pass


def test_source_is_parsed_from_several_threads() -> None:
    source = "\n".join(f"def f{index}(a):\n    return [b * {index} for b in a if b]" for index in range(400))

    def parse(_: int) -> int:
        _Cycle()
        return len(usercode.parse_source(source).body)

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(10)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(parse, range(60))) == [400] * 60
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
