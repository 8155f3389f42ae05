"""Set `crd`: definitions right and wrong, CEL rules, and custom objects against them."""
import copy

import cel
import fields
import schemas
from cases import at, case, short, step

COLLECTION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "things.{u}.example.com"
OBJECTS = "/apis/{u}.example.com/v1/namespaces/{ns}/things"
CLEANUP = [step("DELETE", f"{COLLECTION}/{NAME}")]


def definition(spec, **more):
    """A definition with one version whose `spec` has this schema; `more` goes into the version."""
    root = {"type": "object", "properties": {"spec": spec, "status": {"type": "object",
        "properties": {"i": {"type": "integer"}, "s": {"type": "string"}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}, **more}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": NAME},
        "spec": {
        "group": "{u}.example.com", "scope": "Namespaced", "versions": [version],
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}}}


def thing(spec, name="t", **more):
    return {"apiVersion": "{u}.example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec, **more}


def served(made):
    """The steps after which the objects of a definition can be made."""
    return [
        step("POST", COLLECTION, made, cmp=False),
        step("GET", f"{COLLECTION}/{NAME}", cmp=False, until={"path": "status.conditions.1.status", "eq": "True"}),
        step("GET", OBJECTS, cmp=False, until={"status": [200]}),
    ]


def refused(name, made, **query):
    """A definition that is only asked about."""
    return case("crd", "Definition", name, [step("POST", COLLECTION, made, q="dryRun=All", **query)], ns="none")


def fields_of_all(**more):
    return {"type": "object", "properties": copy.deepcopy(cel.FIELDS), **more}


def with_rule(**rule):
    return fields_of_all(**{"x-kubernetes-validations": [rule]})


def rules():
    """Every rule as a definition tells about it, and those that may compile as objects meet them."""
    old = {"s": "old", "i": 9, "o": {"x": 1}}
    for rule in cel.rules():
        yield refused(f"rule/{short(rule)}", definition(with_rule(rule=rule)))
        steps = served(definition(with_rule(rule=rule)))
        steps += [step("POST", OBJECTS, thing(spec), q="dryRun=All") for spec in cel.OBJECTS]
        steps.append(step("POST", OBJECTS, thing(old), cmp=False))
        steps.append(step("PATCH", f"{OBJECTS}/t", {"spec": {"s": "new"}}, ct="application/merge-patch+json",
            q="dryRun=All"))
        yield case("crd", "Rule", short(rule), steps, ns="fresh", cleanup=CLEANUP)
    for message in cel.messages():
        made = definition(with_rule(rule="self.i > 5", messageExpression=message))
        yield refused(f"message/{short(message)}", made)
        steps = served(made) + [step("POST", OBJECTS, thing(spec), q="dryRun=All") for spec in cel.OBJECTS]
        yield case("crd", "Message", short(message), steps, ns="fresh", cleanup=CLEANUP)


def defaults():
    """A default of every value in every type."""
    for name, schema in schemas.TYPES.items():
        for value in schemas.VALUES:
            spec = {"type": "object", "properties": {"f": {**schema, "default": value}}}
            yield refused(f"default/{name}={short(value)}", definition(spec))


def objects(rng):
    """Objects with a value in a field, by type: as it is created and as it is applied."""
    for name, schema in schemas.TYPES.items():
        values = rng.sample(schemas.VALUES, 12)
        steps = served(definition({"type": "object", "properties": {"f": schema}}))
        for i, value in enumerate(values):
            steps.append(step("POST", OBJECTS, thing({"f": value}), q="dryRun=All"))
            query = "dryRun=All&fieldManager=m"
            steps.append(step("PATCH", f"{OBJECTS}/p{i}", thing({"f": value}, name=f"p{i}"), q=query,
                ct="application/apply-patch+yaml"))
        yield case("crd", "Object", name, steps, ns="fresh", cleanup=CLEANUP)


def definitions():
    """Schemas and other parts of a definition that are wrong, or look so."""
    for wrong in schemas.WRONG:
        yield refused(f"schema/{short(wrong)}", definition(wrong))
        yield refused(f"inner/{short(wrong)}", definition({"type": "object", "properties": {"f": wrong}}))
    plain = {"type": "object", "properties": {key: cel.FIELDS[key] for key in ("s", "i", "b", "n", "o", "l")}}
    for label, path, value in schemas.SPEC:
        made = definition(plain)
        at(made["spec"], path[:-1])[path[-1]] = value
        yield refused(f"spec/{label}", made)
        changed = copy.deepcopy(made)
        put = step("PUT", f"{COLLECTION}/{NAME}", changed, q="dryRun=All")
        patch = step("PATCH", f"{COLLECTION}/{NAME}", {"spec": changed["spec"]}, ct="application/merge-patch+json",
            q="dryRun=All")
        # Patched only once its status stands, as that changes what is patched.
        yield case("crd", "Update", label, [*served(definition(plain)), put, patch], ns="fresh", cleanup=CLEANUP)


def cases(rng, per_part):
    """At most so many cases of each part."""
    for part in (rules(), defaults(), definitions()):
        yield from fields.pick(rng, part, per_part)
    yield from objects(rng)
