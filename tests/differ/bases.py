"""Valid objects to begin with: those that the recorded `create` cases make, and which fields there are beside theirs."""
import glob
import gzip
import json
import pathlib
import re

CASES = "golden-create.jsonl.gz"


class Base:
    """A valid object, where it is made, and what sample of all fields its kind has."""

    def __init__(self, case, sample):
        first = case["steps"][0]
        self.kind, self.name = case["kind"], case["id"].split("/")[-1]
        self.object, self.collection = first["b"], first["p"]
        self.namespaced = "{ns}" in self.collection
        self.sample = sample
        # A create answered with an object that stays: it can be read and updated.
        name = self.object.get("metadata", {}).get("name")
        self.stored = name is not None and any(one["p"] == f"{self.collection}/{name}" for one in case["steps"])
        self.named = name if self.stored else None
        self.cleanup = case.get("cleanup", [])

    @property
    def apart(self):
        """Whether several cases may make it at the same time."""
        return self.namespaced or "{u}" in (self.named or "")


def samples(folder):
    """Upstream's samples with all fields, by apiVersion and kind."""
    found = {}
    for file in glob.glob(f"{folder}/*.json"):
        obj = json.loads(pathlib.Path(file).read_text())
        if isinstance(obj, dict) and "kind" in obj:
            found[obj["apiVersion"], obj["kind"]] = obj
    return found


def read(golden, roundtrip):
    """All bases, in a fixed order."""
    with gzip.open(pathlib.Path(golden) / CASES, "rt") as lines:
        cases = [json.loads(line) for line in lines]
    known = samples(roundtrip)
    made = []
    for case in sorted(cases, key=lambda one: one["id"]):
        if re.search(r"-(apply|yaml-put-noop)$",
            case["id"]) or case["steps"][0]["m"] != "POST" or "b" not in case["steps"][0]:
            continue
        body = case["steps"][0]["b"]
        made.append(Base(case, known.get((body["apiVersion"], body["kind"]))))
    return made
