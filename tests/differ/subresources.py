"""Set `subresources`: status of every kind, scale, and what is only ever sent to a part of an object."""
import fields
import values
from cases import case, dotted, short, step, without

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
    {"name": "c", "image": "x", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2",
    "memory": "1Gi"}}}]}}
PODS = "/api/v1/namespaces/{ns}/pods"
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
SELECTED = {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}
SCALED = {
    "Deployment": ("/apis/apps/v1/namespaces/{ns}/deployments", {"apiVersion": "apps/v1", "spec": SELECTED}),
    "ReplicaSet": ("/apis/apps/v1/namespaces/{ns}/replicasets", {"apiVersion": "apps/v1", "spec": SELECTED}),
    "StatefulSet": ("/apis/apps/v1/namespaces/{ns}/statefulsets", {"apiVersion": "apps/v1", "spec": SELECTED}),
    "ReplicationController": ("/api/v1/namespaces/{ns}/replicationcontrollers", {"apiVersion": "v1",
    "spec": {"template": TEMPLATE}}),
}
# What is sent to a part of an object that stands: part, the whole object, a valid body.
META = {"metadata": {"name": "p"}}
SENT = {
    "binding": (PODS, POD, {"apiVersion": "v1", "kind": "Binding", **META, "target": {"apiVersion": "v1",
    "kind": "Node", "name": "n"}}),
    "eviction": (PODS, POD, {"apiVersion": "policy/v1", "kind": "Eviction", **META, "deleteOptions": {
        "gracePeriodSeconds": 5, "preconditions": {"uid": "x", "resourceVersion": "1"},
        "propagationPolicy": "Background", "dryRun": ["All"]}}),
    "token": ("/api/v1/namespaces/{ns}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", **META}, {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"],
        "expirationSeconds": 3600, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}}}),
}
EPHEMERAL = {"name": "e", "image": "x", "targetContainerName": "c", "command": ["a"], "env": [{"name": "A",
    "value": "b"}], "ports": None, "stdin": True, "tty": True,
    "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "volumeMounts": None,
    "securityContext": {"runAsUser": 1},
    "resources": None, "livenessProbe": None, "lifecycle": None, "workingDir": "/x", "restartPolicy": None}
RESIZES = [
    {"limits": {"cpu": "3", "memory": "2Gi"}, "requests": {"cpu": "1", "memory": "2Gi"}}, {}, None,
    {"requests": {"cpu": "5"}}, {"limits": {"cpu": "-1"}},
    {"limits": {"cpu": "x"}}, {"requests": {"foo": "1"}}, {"requests": {"ephemeral-storage": "1"}},
    {"requests": {"cpu": "1"}}, {"limits": {"cpu": "1"}},
    {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}}, {"limits": {"cpu": "2",
    "memory": "1Mi"}, "requests": {"cpu": "1", "memory": "1Mi"}},
    {"claims": [{"name": "x"}], "requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
    {"requests": 5}, [], "x",
]
CONDITIONS = [
    [{"type": "Approved", "status": "True", "reason": "x", "message": "y"}], [{"type": "Denied", "status": "True"}],
    [{"type": "Approved", "status": "False"}],
    [{"type": "Approved"}], [{"status": "True"}], [{"type": "", "status": "True"}], [{"type": "X", "status": "Nope"}],
    [{"type": "X", "status": "Unknown"}], [],
    [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}], [{"type": "A", "status": "True"},
    {"type": "A", "status": "True"}],
    [{"type": "Failed", "status": "True"}], [{"type": "Failed", "status": "False"}], [{}], [None], "x", [{"type": "X",
    "status": "True", "lastUpdateTime": "x"}],
]


def status(rng, bases, per_kind):
    """A status of upstream's sample, with one field changed, put and merged."""
    for kind in sorted({base.kind for base in bases}):
        base = next((b for b in bases if b.kind == kind and b.stored and b.apart and b.sample and "status" in b.sample),
            None)
        if base is None or kind in (*fields.WRITTEN, "CertificateSigningRequest"):
            continue
        found = []
        for path, value, sample in fields.walk({"status": base.sample["status"]}, {"status": base.sample["status"]}):
            many = values.BY_KIND[values.kind_of_sample(str(path[-1]), sample)] + values.STRANGE
            # As a sample's status is not valid as a whole, one field stands alone in it.
            found += [(path, other) for other in many]
        for path, other in fields.pick(rng, found, per_kind):
            body = only(base.sample, path, other)
            target = f"{base.collection}/{base.named}/status"
            steps = [
                step("POST", base.collection, base.object, cmp=False),
                step("PUT", target, {**base.object, **body}, q="dryRun=All"),
                step("PATCH", target, body, q="dryRun=All", ct="application/merge-patch+json"),
            ]
            label = f"{base.name}/{dotted(path)}={short(other)}"
            yield case("status", kind, label, steps, ns="fresh" if base.namespaced else "none", cleanup=base.cleanup)


def only(sample, path, value):
    """An object with nothing but what stands at the path, and the texts and numbers beside it."""
    if not path:
        return value
    if isinstance(sample, list):
        return [only(sample[0], path[1:], value)]
    beside = {key: other for key, other in sample.items() if len(path) < 3 and isinstance(other, (int,
        str)) and "Value" not in str(other)}
    return {**beside, path[0]: only(sample.get(path[0]), path[1:], value)}


def scale():
    for kind, (path, rest) in SCALED.items():
        made = step("POST", path, {"kind": kind, "metadata": {"name": "d"}, **rest}, cmp=False)
        for spec in [{}, None, {"replicas": 3}, {"replicas": -1}, {"replicas": "3"}, {"replicas": None},
            {"replicas": 2147483648}, {"replicas": 1.5}, [], {"zz": 1}]:
            for how in ("PUT", "PATCH"):
                body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": spec}
                ask = step(how, f"{path}/d/scale", body, ct="application/merge-patch+json" if how == "PATCH" else None)
                yield case("subresources", kind, f"scale-{how}={short(spec)}", [made, ask, step("GET",
                    f"{path}/d/scale")], ns="fresh")
        for extra in [{"kind": "Nope"}, {"apiVersion": "v1"}, {"metadata": {}}, {"metadata": {"name": "x"}},
            {"metadata": {"name": "d", "resourceVersion": "1"}},
            {"metadata": {"name": "d", "uid": "x"}}, {"metadata": {"name": "d", "namespace": "x"}},
            {"metadata": {"name": "d", "labels": {"a": "b"}}}]:
            body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"},
                "spec": {"replicas": 2}, **extra}
            yield case("subresources", kind, f"scale-with={short(extra)}", [made, step("PUT", f"{path}/d/scale",
                body)], ns="fresh")
        applied = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 4}}
        steps = [made, step("PATCH", f"{path}/d/scale", applied, ct="application/apply-patch+yaml",
            q="fieldManager=a"), step("GET", f"{path}/d")]
        steps.append(step("PATCH", f"{path}/d/scale", {"spec": {"replicas": 5}}, ct="application/merge-patch+json",
            q="fieldManager=b"))
        steps.append(step("PATCH", f"{path}/d/scale", applied, ct="application/apply-patch+yaml", q="fieldManager=a"))
        steps.append(step("PATCH", f"{path}/d/scale", applied, ct="application/apply-patch+yaml",
            q="fieldManager=a&force=true"))
        yield case("subresources", kind, "scale-applied", [*steps, step("GET", f"{path}/d")], ns="fresh")


def sent(rng, per_part):
    """One field changed in what is sent to a part of an object, on an object that stands."""
    for part, (path, whole, body) in SENT.items():
        found = []
        for where, value, _ in fields.walk(body, None):
            found.append((f"{dotted(where)}:removed", without(body, where)))
            for other in values.BY_KIND[values.kind_of(value)] + values.STRANGE:
                found.append((f"{dotted(where)}={short(other)}", fields.changed(body, where, other)))
        found += [(f"kind={kind}", {**body, "kind": kind}) for kind in ("", "Nope", "Pod")]
        found += [(f"apiVersion={short(version)}", {**body, "apiVersion": version}) for version in ("", "v1",
            "nope/v1", "policy/v1beta1")]
        for label, other in fields.pick(rng, found, per_part):
            ask = step("POST", f"{path}/p/{part}", other, view="nomessage" if part == "token" and label == "" else None)
            yield case("subresources", part, label, [step("POST", path, whole, cmp=False), ask], ns="fresh")


def ephemeral(rng, per_part):
    found = [({key: value for key, value in EPHEMERAL.items() if value is not None}, "full")]
    for key, value in EPHEMERAL.items():
        for other in values.BY_KIND[values.kind_of(value)] + values.STRANGE:
            found.append(({**{k: v for k, v in EPHEMERAL.items() if v is not None}, key: other},
                f"{key}={short(other)}"))
    for container, label in fields.pick(rng, found, per_part):
        body = {"spec": {"ephemeralContainers": [container]}}
        ask = step("PATCH", f"{PODS}/p/ephemeralcontainers", body, ct="application/strategic-merge-patch+json",
            q="dryRun=All")
        whole = {**POD, "spec": {**POD["spec"], "ephemeralContainers": [container]}}
        put = step("PUT", f"{PODS}/p/ephemeralcontainers", whole, q="dryRun=All")
        yield case("subresources", "ephemeralcontainers", label, [step("POST", PODS, POD, cmp=False), ask, put],
            ns="fresh")


def resize():
    for resources in RESIZES:
        for how in ("strategic", "merge", "PUT"):
            spec = {"containers": [{"name": "c", "image": "x", "resources": resources}]}
            target = f"{PODS}/p/resize"
            ask = step("PUT", target, {**POD, "spec": spec}) if how == "PUT" else step("PATCH", target,
                {"spec": spec}, ct=fields.PATCHES[how])
            yield case("subresources", "resize", f"{how}-{short(resources)}", [step("POST", PODS, POD, cmp=False),
                ask], ns="fresh")


def approval(bases):
    base = next(b for b in bases if b.kind == "CertificateSigningRequest" and b.name == "min")
    target = f"{base.collection}/{base.named}"
    for conditions in CONDITIONS:
        steps = [step("POST", base.collection, base.object, cmp=False)]
        for part in ("approval", "status"):
            for certificate in (None, "eA==", ""):
                body = {"conditions": conditions} if certificate is None else {"conditions": conditions,
                    "certificate": certificate}
                steps.append(step("PUT", f"{target}/{part}", {**base.object, "status": body}, q="dryRun=All"))
            steps.append(step("PATCH", f"{target}/{part}", {"status": {"conditions": conditions}},
                ct="application/merge-patch+json"))
        yield case("subresources", "CertificateSigningRequest", short(conditions), steps, ns="none",
            cleanup=base.cleanup)


def cases(rng, bases, per_part):
    yield from status(rng, bases, per_part)
    yield from scale()
    yield from sent(rng, 3 * per_part)
    yield from ephemeral(rng, 3 * per_part)
    yield from resize()
    yield from approval(bases)
