"""The recipes of docs/data.md on rows of the shapes that the published files have."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from pipelines.config.job import validate
from pipelines.data.directory import load
from pipelines.ingest.ingest import ingest

DOC = Path(__file__).parents[3] / "docs" / "data.md"
RECIPES = dict(re.findall(r"^### (.+?)\n\n```yaml\n(.*?)```", DOC.read_text(), re.DOTALL | re.MULTILINE))


def objects(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ARTISTS = {False: ["art-0", "art-1", "art-2", "art-3"], True: [""] * 4}
CLICKS = [(u, e, i) for u in (1, 2, 3) for i, e in ((10, "view"), (10, "transaction"), (11, "addtocart"), (12, "view"))]
FILES = {
    "MovieLens-1M": {
        "ratings.dat": "".join(f"{u}::{i}::5::{978300000 + i}\n" for u in (1, 2) for i in range(1, 7)),
        "movies.dat": "".join(f"{i}::Amélie, {i} (2001)::Comedy|Drama\n" for i in range(1, 7)).encode("latin-1"),
    },
    "MovieLens-20M and 32M": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(f"1,{i},{i / 2},{i}\n" for i in range(2, 11)),
        "movies.csv": 'movieId,title,genres\n' + "".join(f'{i},"Film, {i}",Comedy|Drama\n' for i in range(2, 12)),
    },
    "Amazon Reviews 2023": {
        "All_Beauty.csv.gz": "user_id,parent_asin,rating,timestamp,history\n"
        + "".join(f"A1,B{i},4.0,{1_500_000_000_000 + i},\nA2,C{i},1.0,1,\n" for i in range(4)),
        "meta_All_Beauty.jsonl.gz": objects(
            *({"parent_asin": f"B{i}", "title": "Soap", "price": [9.5, "from 9", None, "-"][i],
               "main_category": "Beauty",
               "description": ["A <b>nice</b> one", "vegan"], "store": "Shop", "details": {"Brand": "X"} if i else None}
              for i in range(4))
        ),
    },
    "Yelp": {
        "yelp_academic_dataset_review.json": objects(
            *({"user_id": "u", "business_id": f"b{i}", "stars": 5.0, "text": "a\nb", "date": f"2015-01-28 10:53:{i:02}"}
              for i in range(4))
        ),
        "yelp_academic_dataset_business.json": objects(
            *({"business_id": f"b{i}", "name": "Bar", "city": "Reno", "attributes": None,
               "categories": "Bars, Food" if i else None} for i in range(4))
        ),
    },
    "Steam": {
        "reviews.jsonl.gz": objects(
            *({"username": "u", "product_id": str(i), "date": f"2015-01-{i + 1:02}", "hours": 1.5} for i in range(4))
        ),
        "games.jsonl.gz": objects(
            *({"id": str(i), "title": "Game", "genres": ["Action", "Indie"], "developer": "D"} for i in range(4))
        ),
    },
    "Click logs (RetailRocket)": {
        "events.csv": "timestamp,visitorid,event,itemid,transactionid\n"
        + "".join(f"{1_433_221_332_117 + n},{u},{e},{i},\n" for n, (u, e, i) in enumerate(CLICKS * 2))
        + "".join(f"{1_433_221_400_000 + n},{u},view,{i},\n" for u in (4, 5, 6) for n, i in enumerate((10, 11, 12))),
    },
    "Listens (LastFM)": {
        "userid-timestamp-artid-artname-traid-traname.tsv": "".join(
            f"user_00000{u}\t2009-05-04T23:{n:02}:57Z\t{ARTISTS[u == 1 and n == 9][n % 4]}\tThe \"Band\tt{n}\tT\n"
            for u in (1, 2) for n in range(10)
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_reads_rows_of_its_shape(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DATA", str(tmp_path))
    for file, content in FILES[name].items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    config = validate(yaml.safe_load(RECIPES[name]), name)
    summary = ingest(config.data, tmp_path / "out")
    catalog, histories = load(tmp_path / "out")
    assert len(histories) == summary["users"] > 0
    assert all(summary["splits"].values())
    if config.data.items is not None:
        assert summary["items_without_text"] == 0
        assert all(any(values) for values in catalog.attributes.values())
    assert summary["rejected"]["interactions"] == (1 if "LastFM" in name else 0)


def test_every_recipe_is_tested_and_is_a_dozen_lines():
    assert set(RECIPES) == set(FILES)
    assert max(len(text.splitlines()) for text in RECIPES.values()) <= 12


def test_texts_are_made_of_what_recipes_ask_for(tmp_path, monkeypatch):
    test_a_recipe_reads_rows_of_its_shape(tmp_path, monkeypatch, "Amazon Reviews 2023")
    assert "Soap. A nice one, vegan. Main category: Beauty. Store: Shop. Brand: X" in load(tmp_path / "out")[0].texts
