"""The form of a case (see GOLDEN.md of the replay tool) and the shared small makers."""
import copy
import json


def step(method, path, body=None, **more):
    """One request; `more`: q, ct, raw, cap, cmp, until, watch, view, h, sleep."""
    made = {"m": method, "p": path}
    if body is not None:
        made["b"] = body
    made.update({key: value for key, value in more.items() if value is not None})
    return made


def case(group, kind, name, steps, ns="shared", cleanup=None, **more):
    """One case; its id is group/kind/name, which `unique` keeps apart."""
    made = {"id": f"{group}/{kind}/{name}", "group": group, "kind": kind, "ns": ns, "steps": steps, **more}
    if cleanup:
        made["cleanup"] = cleanup
    return made


def unique(cases):
    """The cases with ids that differ: a repeated one gets a number."""
    seen = {}
    for one in cases:
        many = seen[one["id"]] = seen.get(one["id"], 0) + 1
        if many > 1:
            one["id"] += f"#{many}"
        yield one


def short(value):
    """A value as it stands in an id."""
    text = json.dumps(value, ensure_ascii=True).replace("/", "|").replace(" ", "_")
    return text if len(text) <= 60 else f"{text[:24]}+{len(text)}"


def at(obj, path):
    """What stands at a path (keys and indices), or None."""
    for key in path:
        if isinstance(obj, list) and isinstance(key, int) and key < len(obj):
            obj = obj[key]
        elif isinstance(obj, dict) and key in obj:
            obj = obj[key]
        else:
            return None
    return obj


def changed(obj, path, value):
    """A copy with another value at the path."""
    obj = copy.deepcopy(obj)
    at(obj, path[:-1])[path[-1]] = value
    return obj


def without(obj, path):
    """A copy without what stands at the path."""
    obj = copy.deepcopy(obj)
    del at(obj, path[:-1])[path[-1]]
    return obj


def dotted(path):
    return ".".join(map(str, path))
