"""Sets `create` and `update`: valid objects of every kind with one field changed."""
import json
from functools import partial

import values
from cases import at, case, changed, dotted, short, step, without

PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
# Kinds whose status the server writes, sooner or later: what a change meets is a matter of time.
WRITTEN = ("APIService", "CustomResourceDefinition", "FlowSchema", "PriorityLevelConfiguration", "ServiceCIDR")
# Fields that upstream's decoder keeps as they are: nothing inside them is a field.
RAW = {"fieldsV1", "data", "parameters", "managedFields", "openAPIV3Schema"}


def walk(obj, sample, path=()):
    """All fields: (path, value or None, sample of it or None). Those that only the sample has come after the others."""
    if isinstance(obj, dict):
        for name in obj:
            if path == () and name in ("apiVersion", "kind"):
                continue
            inner = sample.get(name) if isinstance(sample, dict) else None
            yield (*path, name), obj[name], inner
            if name not in RAW:
                yield from walk(obj[name], inner, (*path, name))
        for name in sample if isinstance(sample, dict) else ():
            if name not in obj and path not in ((), ("metadata",)) and not name.endswith("Key"):
                yield (*path, name), None, sample[name]
    elif isinstance(obj, list):
        inner = sample[0] if isinstance(sample, list) and sample else None
        for index, item in enumerate(obj[:2]):
            yield (*path, index), item, inner
            yield from walk(item, inner, (*path, index))


def mutations(base):
    """All changes of one field: (label, maker of the body, query or None)."""
    obj = base.object
    for path, value, sample in walk(obj, base.sample):
        where = dotted(path)
        kind = values.kind_of_sample(str(path[-1]), sample) if sample is not None else values.kind_of(value)
        if kind == "fields" and isinstance(value, dict) and value and all(isinstance(v,
            str) for v in value.values()) and sample is None:
            kind = "map"
        if value is not None:
            yield f"{where}:removed", partial(without, obj, path), None
        for other in values.BY_KIND[kind] + values.STRANGE:
            if other != value or type(other) is not type(value):
                yield f"{where}={short(other)}", partial(changed, obj, path, other), None
        if isinstance(value, list) and value:
            yield f"{where}:dup", partial(changed, obj, path, [*value, value[0]]), None
            yield f"{where}:-1", partial(changed, obj, path, value[:-1]), None
        if isinstance(value, dict) and kind == "fields":
            for mode in (None, "Warn", "Ignore", "Strict"):
                query = mode and f"fieldValidation={mode}"
                yield f"{where}:unknown-{mode}", partial(changed, obj, path, {**value, "zzUnknown": 1}), query
                first = next(iter(value), None)
                if first and first[:1].islower():
                    upper = {key[:1].upper() + key[1:] if key == first else key: v for key, v in value.items()}
                    yield f"{where}:CASE-{mode}", partial(changed, obj, path, upper), query
        if isinstance(value, str):
            yield f"{where}:longer", partial(changed, obj, path, value + "x"), None
        if isinstance(value, int) and not isinstance(value, bool):
            yield f"{where}:+1", partial(changed, obj, path, value + 1), None


def pick(rng, many, limit):
    """At most so many of a list, in its order; each time the same ones."""
    many = list(many)
    return [many[i] for i in sorted(rng.sample(range(len(many)), min(limit, len(many))))]


def dry(query):
    return "dryRun=All" + (f"&{query}" if query else "")


def merge_patch(old, new):
    """The merge patch from one value to another."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old or json.dumps(old[key]) != json.dumps(value):
            patch[key] = merge_patch(old.get(key), value)
    return patch


def create(rng, bases, per_kind):
    """Each case: one create that stores nothing."""
    for kind in sorted({base.kind for base in bases}):
        found = [(base, *change) for base in bases if base.kind == kind for change in mutations(base)]
        for base, label, make, query in pick(rng, found, per_kind):
            request = step("POST", base.collection, make(), q=dry(query) if base.stored else query)
            yield case("create", kind, f"{base.name}/{label}", [request], ns="shared" if base.namespaced else "none")


def change_request(how, base, label, body, query):
    """The request that turns the stored object into the body, or None if the way cannot say that."""
    path = f"{base.collection}/{base.named}"
    if how == "put":
        return step("PUT", path, body, q=dry(query))
    if how == "json":
        where = label.split(":")[0].split("=")[0].split(".")
        keys = [int(key) if key.isdigit() else key for key in where]
        pointer = "/" + "/".join(key.replace("~", "~0").replace("/", "~1") for key in where)
        there, then = at(base.object, keys), at(body, keys)
        if ".".join(where) != dotted(keys) or (there is None and at(base.object, keys[:-1]) is None):
            return None
        if label.endswith(":removed"):
            patch = [{"op": "remove", "path": pointer}]
        else:
            patch = [{"op": "replace" if there is not None else "add", "path": pointer, "value": then}]
        return step("PATCH", path, patch, ct=PATCHES["json"], q=dry(query))
    patch = merge_patch(base.object, body)
    return step("PATCH", path, patch, ct=PATCHES[how], q=dry(query))


def update(rng, bases, per_kind):
    """Each case: the valid object is stored, then changed in one of four ways, which stores nothing."""
    for kind in sorted({base.kind for base in bases} - set(WRITTEN)):
        found = [(base,
            *change) for base in bases if base.kind == kind and base.stored and base.apart for change in mutations(base)]
        for base, label, make, query in pick(rng, found, per_kind):
            how = rng.choice(["put", "put", "merge", "strategic", "json"])
            request = change_request(how, base, label, make(), query)
            if request is None:
                continue
            steps = [step("POST", base.collection, base.object, cmp=False), request]
            yield case("update", kind, f"{base.name}/{how}/{label}", steps, ns="fresh" if base.namespaced else "none",
                cleanup=base.cleanup)
