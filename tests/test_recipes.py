import gzip
import http.server
import json
import pathlib
import runpy
import threading

import pytest

from loopjax.cli import main as cli
from loopjax.data.prepare import fetch, job, recipes
from loopjax.errors import UserError
from tests.test_prepare import write_lines
from tests.test_shards import decoded

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def server():
    """Serves TEXTS, gzipped, at /content/; each `flaky` one fails twice before."""
    failures = dict.fromkeys(("/content/flaky1", "/content/flaky2"), 2)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/content/")
            status = 404 if name.startswith("gone") else 200
            if failures.get(self.path):
                failures[self.path] -= 1
                status = 503
            self.send_response(status)
            self.end_headers()
            if status == 200:
                self.wfile.write(gzip.compress(f"text of {name}".encode() + b"\xff"))

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 200

    with Server(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/content/"
        server.shutdown()


def test_texts_are_fetched_in_order_and_missing_ones_left_out(server, tmp_path, monkeypatch):
    names = [f"blob{i}" for i in range(300)]
    names[7], names[100], names[200] = "flaky1", "flaky2", "gone"
    found = list(fetch.documents(((name, i) for i, name in enumerate(names)), server, pause=0.01))
    wanted = [None if name == "gone" else f"text of {name}" for name in names]
    assert found == list(zip(wanted, range(300), strict=True))
    with pytest.raises(UserError, match=f"none of the first 100 texts exists at {server}"):
        list(fetch.documents(((f"gone{i}", i) for i in range(150)), server, pause=0.01))
    monkeypatch.setattr(fetch, "TRIES", 1)
    with pytest.raises(UserError, match="flaky cannot be fetched: .*refused"):
        list(fetch.documents([("flaky", 0)], "http://localhost:9/", pause=0.01))

    with pytest.raises(UserError, match="blob0: the text is longer than 5e-06 MB; raise --max-doc"):
        list(fetch.documents([("blob0", 0)], server, limit=5))

    path = tmp_path / "names.jsonl"
    path.write_text("".join(json.dumps({"blob_id": name}) + "\n" for name in names))
    manifest = job.prepare(
        [path], tmp_path / "out", heldout=0.1, text_key="blob_id", text_url=server
    )
    assert manifest["missing_texts"] == 1 and manifest["text_url"] == server
    kept = decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "heldout")
    assert sorted(kept) == sorted(filter(None, wanted))


def test_a_recipe_fills_a_folder_a_source_and_tells_the_mixture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    for name in ("web", "maths"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "train.jsonl", [f"{name} {i}" for i in range(90)])
    recipe = {
        "tokenizer": "bytes",
        "sources": {
            "a": {"dataset": str(tmp_path / "web")},
            "b": {"dataset": str(tmp_path / "maths"), "shard_size": 500},
        },
        "mixtures": [("config.mixture", {"a": 0.75, "b": 0.25})],
    }
    monkeypatch.setitem(recipes.RECIPES, "small", recipe)
    command = ["prepare", "--recipe", "small", "--heldout", "0.2", "--output"]
    for _ in ("new", "already there"):
        assert cli.main([*command, str(tmp_path / "data")]) == 0
        flags = f'--config.data_dir={tmp_path / "data"} --config.mixture=\'{{"a": 0.75, "b": 0.'
        assert flags in capsys.readouterr().out
    assert set(decoded(tmp_path / "data" / "b", "train")) < {f"maths {i}" for i in range(90)}
    assert cli.main([*command, str(tmp_path / "one"), "--only", "b"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["b"]
    for flags, says in (
        (["--only", "c"], "--only c must be a source of small: a, b"),
        (["--text-key", "x"], "--text-key does not go with --recipe, which sets it"),
    ):
        assert cli.main([*command, str(tmp_path / "no"), *flags]) == 2
        assert says in capsys.readouterr().err


def test_the_recipes_are_what_the_papers_configs_read():
    get_config = runpy.run_path(str(ROOT / "configs" / "smollm.py"))["get_config"]
    arguments = set(job.prepare.__kwdefaults__)
    for recipe in recipes.RECIPES.values():
        assert all(set(settings) <= arguments for settings in recipe["sources"].values())
    smollm, cooldown = (recipes.RECIPES[name] for name in ("smollm", "smollm-cooldown"))
    mixture = get_config("1.7b,baseline").mixture.to_dict()
    assert smollm["mixtures"] == [("config.mixture", mixture)]
    assert set(smollm["sources"]) == set(mixture)
    for math, (_, mixture) in zip(("finemath", "nemotron"), cooldown["mixtures"], strict=True):
        wanted = get_config(f"1.7b,baseline,{math}").cooldown.mixture.to_dict()
        total = sum(mixture.values())
        assert {k: round(w / total, 4) for k, w in mixture.items()} == wanted
        assert set(mixture) <= {*smollm["sources"], *cooldown["sources"]}
