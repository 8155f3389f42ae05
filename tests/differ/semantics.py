"""Set `semantics`: what holds for every kind: selectors, pages, options of verbs, validation of fields, applied objects."""
import json
import urllib.parse

from cases import case, short, step

MAPS = "/api/v1/namespaces/{ns}/configmaps"
APPLY = "application/apply-patch+yaml"
THREE = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"k": name}}
         for name, labels in (("a", {"app": "x", "n": "3"}), ("b", {"app": "y", "tier": "fe"}), ("c", {}))]
SETUP = [step("POST", MAPS, one, cmp=False) for one in THREE]

LABELS = [
    "app", "!app", "app=x", "app==x", "app!=x", "app in (x,y)", "app notin (x)", "app in ()", "app in (x",
    "app in x)", "app in (x,)", "app in (x,,y)", "app in ( x , y )",
    "app  =  x", "app=x,tier=fe", "app=x,", ",app=x", ",", "=", "==", "!=", "!", "!!app", "! app", "app=", "app!=",
    "app==", "app===x", "app=x=y", "app>1", "n>2", "n<2", "n > 2",
    "n>x", "n>1.5", "n>=2", "n in", "n notin", "in (x)", "in", "notin", "in in (in)", "app exists", "app in (x) tier",
    "app in [x]", "a/b=c", "a/b/c=d", "/a=b", "a/=b", "A.b/c=d",
    "-a=b", "a-=b", "a=-b", "a=b-", "a=b c", "a b=c", "a=" + "v" * 64, "k" * 64 + "=v", "k" * 254 + "/a=v", "é=x",
    "a=é", "a='x'", 'a="x"', "(a=b)", "a&b", "a|b", "a;b", "%", "a%3Db",
    "app in (x)\n", "\tapp", "app,!app", "app=x,app=y", "x in (" + ",".join(f"v{i}" for i in range(30)) + ")", "*",
    "app=*", "app~=x", "app<>x", "app=>1", "<1", "n<", "n>-1", "n>9223372036854775808",
]
FIELDS = [
    "metadata.name=a", "metadata.name==a", "metadata.name!=a", "metadata.name=", "metadata.name",
    "metadata.name=a,metadata.name!=b", "metadata.namespace={ns}", "metadata.namespace=x",
    "metadata.name in (a)", "metadata.labels.app=x", "metadata.uid=x", "data.k=a", "x=y", "=", "==", "=a", ",",
    "metadata.name=a,", ",metadata.name=a", "metadata.name=a\\,b", "metadata.name=a\\=b",
    "metadata.name=a\\", "metadata.name=a\\x", "metadata.name=a=b", "metadata.name===a", "metadata.name>a",
    "!metadata.name", "metadata.name = a", " metadata.name=a", "metadata.name=a ", "name=a", "Metadata.Name=a",
]
# Paths that some kinds can be selected by: asked of each of the kinds.
SELECTABLE = {
    "pods": ["spec.nodeName=x", "spec.restartPolicy=Always", "spec.schedulerName=x", "spec.serviceAccountName=x",
    "spec.hostNetwork=x", "status.phase=X", "status.podIP=1.2.3.4", "status.podIPs=x",
    "status.nominatedNodeName=", "spec.priority=1", "status.podIP=", "spec.nodeName!=",
    "status.phase!=Running,status.phase!=Failed", "spec.hostNetwork=false"],
    "events": ["involvedObject.kind=Pod", "involvedObject.namespace=x", "involvedObject.name=x",
    "involvedObject.uid=x", "involvedObject.apiVersion=v1", "involvedObject.resourceVersion=1",
    "involvedObject.fieldPath=x", "reason=x", "reportingComponent=x", "source=x", "type=Normal",
    "source.component=x", "message=x", "regarding.name=x"],
    "secrets": ["type=Opaque", "type!=Opaque", "data=x"], "services": ["spec.clusterIP=None", "spec.type=ClusterIP",
    "spec.type!=x", "spec.ports=x"],
    "replicationcontrollers": ["status.replicas=0", "status.replicas=x", "spec.replicas=1"],
    "serviceaccounts": ["secrets=x"], "resourcequotas": ["spec=x"], "limitranges": ["spec=x"],
    "persistentvolumeclaims": ["status.phase=Bound", "spec.volumeName=x"], "endpoints": ["subsets=x"],
    "podtemplates": ["template=x"],
}
CLUSTER = {
    "/api/v1/nodes": ["spec.unschedulable=true", "spec.unschedulable=x", "spec.podCIDR=x", "metadata.namespace=x"],
    "/api/v1/namespaces": ["status.phase=Active", "name=x", "status.phase=Terminating"],
    "/api/v1/persistentvolumes": ["name=x", "status.phase=x"],
    "/apis/certificates.k8s.io/v1/certificatesigningrequests": ["spec.signerName=x", "spec.username=x",
    "status.x=1"],
    "/apis/storage.k8s.io/v1/storageclasses": ["provisioner=x"],
    "/apis/resource.k8s.io/v1/resourceslices": ["spec.driver=x", "spec.nodeName=x", "spec.pool=x"],
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions": ["spec.group=x", "status.x=x"],
    "/apis/batch/v1/jobs": ["status.successful=1", "status.failed=1", "spec.x=1", "metadata.namespace=x"],
    "/apis/apps/v1/replicasets": ["status.replicas=0", "spec.x=1"],
    "/apis/apps/v1/deployments": ["status.replicas=0"], "/apis/events.k8s.io/v1/events": ["regarding.kind=Pod",
    "reason=x", "involvedObject.name=x", "note=x", "type=Normal"],
}
LISTS = [
    "limit=1", "limit=0", "limit=-1", "limit=x", "limit=1.5", "limit=99999999999999999999", "limit=",
    "limit=1&limit=2", "continue=x", "continue=", "limit=1&continue=x", "limit=1&continue=e30",
    "continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ", "continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0",
    "continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYVx1MDAwMCJ9",
    "continue=eyJ2IjoieCIsInJ2IjoxLCJzdGFydCI6ImEifQ", "resourceVersion=0", "resourceVersion=1", "resourceVersion=x",
    "resourceVersion=-1", "resourceVersion=99999999999", "resourceVersion=01", "resourceVersion=1.0",
    "resourceVersionMatch=Exact", "resourceVersionMatch=x", "resourceVersion=0&resourceVersionMatch=Exact",
    "resourceVersion=0&resourceVersionMatch=NotOlderThan", "resourceVersion=0&limit=1",
    "resourceVersion=0&limit=1&continue=x",
    "resourceVersionMatch=NotOlderThan&limit=1", "continue=x&resourceVersionMatch=Exact&resourceVersion=1",
    "timeoutSeconds=0", "timeoutSeconds=x", "timeoutSeconds=-1", "timeoutSeconds=1.5",
    "watch=x&timeoutSeconds=1", "watch=&timeoutSeconds=1", "watch=false", "watch=0",
    "allowWatchBookmarks=x", "allowWatchBookmarks=true", "sendInitialEvents=true", "sendInitialEvents=x",
    "pretty=true&limit=1", "pretty=x", "pretty=0", "fieldSelector=", "labelSelector=",
    "labelSelector=app&labelSelector=tier", "LIMIT=1", "foo=bar",
    "limit=1&labelSelector=app", "limit=2&fieldSelector=metadata.name!=a", "dryRun=All", "includeObject=None",
    "shardSelector=x", "exact=true", "export=true",
]
WATCHES = [
    "", "resourceVersion=0", "resourceVersion=x", "resourceVersion=-1", "resourceVersion=99999999999",
    "labelSelector=app=x", "labelSelector=!app", "labelSelector=,,", "fieldSelector=metadata.name=a",
    "fieldSelector=x=y", "allowWatchBookmarks=true",
    "sendInitialEvents=true", "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
    "sendInitialEvents=true&resourceVersionMatch=Exact",
    "sendInitialEvents=false&resourceVersionMatch=NotOlderThan", "sendInitialEvents=false",
    "resourceVersionMatch=NotOlderThan", "resourceVersion=0&resourceVersionMatch=NotOlderThan",
    "resourceVersion=0&resourceVersionMatch=Exact", "limit=1", "continue=x",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=app",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0",
    "pretty=true", "timeoutSeconds=x",
]
DELETES = [
    None, {}, [], "x", 5, {"kind": "DeleteOptions", "apiVersion": "v1"}, {"kind": "DeleteOptions",
    "apiVersion": "meta.k8s.io/v1"}, {"kind": "DeleteOptions", "apiVersion": "apps/v1"}, {"kind": "Nope",
    "apiVersion": "v1"}, {"kind": "DeleteOptions"},
    {"gracePeriodSeconds": 0}, {"gracePeriodSeconds": -1}, {"gracePeriodSeconds": "x"}, {"gracePeriodSeconds": 1.5},
    {"propagationPolicy": "Foreground"}, {"propagationPolicy": "nope"}, {"propagationPolicy": ""},
    {"propagationPolicy": None},
    {"orphanDependents": True}, {"orphanDependents": True, "propagationPolicy": "Orphan"}, {"orphanDependents": "x"},
    {"preconditions": {}}, {"preconditions": {"uid": "x"}}, {"preconditions": {"resourceVersion": "1"}},
    {"preconditions": {"uid": None}},
    {"preconditions": {"uid": "x", "resourceVersion": "1"}}, {"preconditions": "x"}, {"preconditions": {"uid": 5}},
    {"dryRun": ["All"]}, {"dryRun": ["x"]}, {"dryRun": []}, {"dryRun": "All"}, {"dryRun": ["All", "All"]},
    {"dryRun": ["All", "x"]}, {"zz": 1},
    {"ignoreStoreReadErrorWithClusterBreakingPotential": True},
    {"ignoreStoreReadErrorWithClusterBreakingPotential": True, "gracePeriodSeconds": 1},
    {"ignoreStoreReadErrorWithClusterBreakingPotential": True, "propagationPolicy": "Background"},
]
OPTIONS = [
    "dryRun=All", "dryRun=", "dryRun=x", "dryRun=all", "dryRun=All&dryRun=All", "dryRun=All&dryRun=x",
    "fieldManager=m", "fieldManager=", "fieldManager=" + "m" * 129, "fieldManager=a%0Ab", "fieldManager=%C3%A9",
    "fieldManager=%07", "fieldValidation=Strict", "fieldValidation=Warn",
    "fieldValidation=Ignore", "fieldValidation=strict", "fieldValidation=x", "fieldValidation=", "force=true",
    "force=x", "force=false", "pretty=true", "dryRun=All&fieldManager=m&fieldValidation=Strict",
    "fieldValidation=Strict&fieldValidation=Ignore", "foo=bar", "FieldManager=m",
]
META = [
    {"resourceVersion": "1"}, {"resourceVersion": "x"}, {"resourceVersion": "0"}, {"resourceVersion": ""},
    {"resourceVersion": 5}, {"uid": "x"}, {"uid": ""}, {"name": "b"}, {"name": None}, {"namespace": "x"},
    {"namespace": None}, {"generation": 5},
    {"creationTimestamp": None}, {"creationTimestamp": "2020-01-01T00:00:00Z"}, {"creationTimestamp": "x"},
    {"deletionTimestamp": "2020-01-01T00:00:00Z"}, {"deletionGracePeriodSeconds": 5}, {"selfLink": "x"},
    {"generateName": "x"}, {"managedFields": []}, {"managedFields": None},
    {"managedFields": [{}]}, {"managedFields": [{"manager": "m"}]}, {"managedFields": [{"operation": "Apply",
    "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {}}]}, {"managedFields": [{"operation": "x",
    "apiVersion": "v1"}]},
    {"managedFields": [{"operation": "Update", "apiVersion": "v1", "fieldsType": "x"}]},
    {"managedFields": [{"operation": "Update", "apiVersion": "v9", "fieldsType": "FieldsV1",
    "fieldsV1": {"f:data": {}}}]},
    {"managedFields": [{"operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"x": {}}}]},
    {"managedFields": [{"operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": "x"}]},
    {"finalizers": ["x"]}, {"finalizers": ["example.com/x"]}, {"finalizers": [None]},
    {"finalizers": ["foregroundDeletion", "orphan"]}, {"finalizers": ["a/b", "a/b"]}, {"labels": None},
    {"labels": {}}, {"labels": []}, {"annotations": {"a": None}}, {"annotations": {"a": "x" * 262145}},
    {"ownerReferences": [{}]}, {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}]},
    {"ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "x", "uid": "y"}]},
    {"ownerReferences": [{"apiVersion": "a/b/c", "kind": "X", "name": "x", "uid": "y"}]},
    {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y", "controller": True},
    {"apiVersion": "v1", "kind": "Pod", "name": "z", "uid": "w", "controller": True}]},
    {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}, {"apiVersion": "v1",
    "kind": "Pod", "name": "x", "uid": "y"}]}, {"zz": 1},
]
JSON_PATCHES = [
    [], {}, "x", None, 5, [{}], [None], ["x"], [{"op": "nope", "path": "/data/k"}], [{"op": "add"}], [{"op": "add",
    "path": "/data/z"}], [{"op": "add", "path": "data/z", "value": "x"}], [{"op": "add", "path": "",
    "value": {}}], [{"op": "add", "path": "/", "value": {}}],
    [{"op": "add", "path": "/data/z", "value": "x"}], [{"op": "add", "path": "/data/z", "value": 5}], [{"op": "add",
    "path": "/data/z", "value": None}], [{"op": "add", "path": "/zz", "value": 5}], [{"op": "add",
    "path": "/zz/y", "value": 5}], [{"op": "remove", "path": "/data/z"}],
    [{"op": "remove", "path": "/data"}], [{"op": "remove", "path": "/metadata"}], [{"op": "remove", "path": "/kind"}],
    [{"op": "remove", "path": "/apiVersion"}], [{"op": "replace", "path": "/kind", "value": "Pod"}],
    [{"op": "replace", "path": "/data/z", "value": "x"}],
    [{"op": "replace", "path": "/data/k", "value": "x"}], [{"op": "test", "path": "/data/k", "value": "a"}],
    [{"op": "test", "path": "/data/k", "value": "b"}], [{"op": "test", "path": "/data/z", "value": None}],
    [{"op": "test", "path": "/data/k"}], [{"op": "copy", "from": "/data/k", "path": "/data/y"}],
    [{"op": "copy", "from": "/data/z", "path": "/data/y"}], [{"op": "copy", "path": "/data/y"}], [{"op": "move",
    "from": "/data/k", "path": "/data/y"}], [{"op": "move", "from": "/data/z", "path": "/data/y"}],
    [{"op": "add", "path": "/metadata/finalizers/-", "value": "a/b"}],
    [{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}], [{"op": "add", "path": "/metadata/labels/a~2b",
    "value": "c"}], [{"op": "add", "path": "/metadata/managedFields/0", "value": {}}], [{"op": "remove",
    "path": "/metadata/managedFields/5"}], [{"op": "remove", "path": "/metadata/managedFields/x"}],
    [{"op": "replace", "path": "/metadata/name", "value": "z"}], [{"op": "add", "path": "/data/k", "value": "x",
    "zz": 1}], [{"op": "ADD", "path": "/data/k", "value": "x"}], [{"op": "test",
    "path": "/metadata/resourceVersion", "value": "1"}], [{"op": "add", "path": "/data/k",
    "value": "x"}] * 10001,
]
MERGE_PATCHES = [{}, [], "x", None, 5, {"data": None}, {"data": {"k": None}}, {"data": {"k": 5}}, {"data": []},
    {"data": "x"}, {"metadata": None}, {"metadata": {"name": "z"}}, {"kind": "Pod"}, {"kind": None},
    {"apiVersion": "v2"}, {"zz": 1}, {"metadata": {"labels": {"app": None}}}, {"data": {"$patch": "replace"}},
    {"$patch": "delete"}, {"data": {"$patch": "nope"}}, {"$retainKeys": ["x"]},
    {"data": {"$retainKeys": ["z"], "z": "y"}}, {"metadata": {"finalizers": ["a/b"]}},
    {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}},
    {"metadata": {"$setElementOrder/finalizers": ["a/b"], "finalizers": ["c/d"]}},
    {"metadata": {"$setElementOrder/finalizers": "x"}}, {"metadata": {"resourceVersion": "1"}},
    {"metadata": {"resourceVersion": None}}, {"metadata": {"uid": "x"}}]
TYPES = ["application/json", "application/json-patch+json", "application/merge-patch+json",
    "application/strategic-merge-patch+json", APPLY, "application/apply-patch+cbor", "application/yaml",
    "text/plain", "", "application/json-patch+json; charset=utf-8", "x", "application/vnd.kubernetes.protobuf"]
RAW = ["", "{", "null", "[]", "5", "\"x\"", "{}", "a: b", "kind: ConfigMap", "{\"kind\":\"ConfigMap\"}",
    "{\"apiVersion\":\"v1\"}", "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"}}x",
    "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\",\"name\":\"y\"}}",
    "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"},\"data\":{\"a\":\"b\",\"a\":\"c\"},\"Data\":{}}",
    "{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"metadata\":{\"name\":\"z\"}}",
    "{\"apiVersion\":\"v2\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"}}",
    "{\"apiVersion\":\"a/b/c\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"}}",
    "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[]}", "{\"apiVersion\":5,\"kind\":\"ConfigMap\"}",
    "{\"apiVersion\":\"v1\",\"kind\":5}", "{\"apiVersion\":\"v1\",\"kind\":null}",
    "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"},\"data\":{\"a\":\"\\ud800\"}}",
    "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"z\"},}", "{'a': 'b'}", "---\n",
    "a: b: c", "- a"]


def listing():
    for part, many in (("labelSelector", LABELS), ("fieldSelector", FIELDS)):
        for one in many:
            query = f"{part}={quoted(one)}"
            steps = [step("GET", MAPS, q=query), step("GET", MAPS, q=f"{query}&watch=1&timeoutSeconds=1", watch=True),
                step("DELETE", MAPS, q=query + "&dryRun=All")]
            yield case("semantics", part, short(one), SETUP + steps, ns="fresh")
    for plural, many in SELECTABLE.items():
        steps = [step("GET", "/api/v1/namespaces/{ns}/" + plural, q="fieldSelector=" + quoted(one)) for one in many]
        yield case("semantics", "Selectable", plural, steps, ns="fresh")
    for path, many in CLUSTER.items():
        steps = [step("GET", path, q="limit=1&fieldSelector=metadata.name=none-such," + quoted(one)) for one in many]
        yield case("semantics", "Selectable", short(path), steps, ns="none")
    for query in LISTS:
        yield case("semantics", "List", query[:80], [*SETUP, step("GET", MAPS, q=query), step("GET", f"{MAPS}/a",
            q=query), step("GET", "/api/v1/namespaces/{ns}/secrets", q=query)], ns="fresh")
    for query in WATCHES:
        ask = "watch=1&timeoutSeconds=1&" + query
        steps = [step("GET", MAPS, q=ask, watch=True), step("GET", f"{MAPS}/a", q=ask, watch=True), step("GET",
            "/api/v1/watch/namespaces/{ns}/configmaps", q=ask, watch=True)]
        yield case("semantics", "Watch", query[:80], SETUP + steps, ns="fresh")


def watching():
    """Objects that come, change, and leave what is watched, as a watch from before all that tells of them."""
    def patched(name, patch):
        return step("PATCH", f"{MAPS}/{name}", patch, ct="application/merge-patch+json")
    story = [*SETUP, step("GET", MAPS, q="limit=1", cmp=False, cap={"rv": "metadata.resourceVersion"}),
        patched("a", {"metadata": {"labels": {"app": "y"}}}), patched("b", {"metadata": {"labels": {"app": None}}}),
        patched("c", {"metadata": {"labels": {"app": "x"}}}), patched("c", {"data": {"k": "new"}}),
        patched("a", {"metadata": {"labels": {"app": "x", "tier": "fe"}}}), step("DELETE", f"{MAPS}/c"),
        step("POST", MAPS, THREE[2]), step("DELETE", f"{MAPS}/b")]
    for select in ("", "labelSelector=app=x", "labelSelector=app", "labelSelector=!app", "labelSelector=app!=x",
            "labelSelector=app in (x,y),tier", "fieldSelector=metadata.name=a", "fieldSelector=metadata.name!=a",
            "labelSelector=app=x&fieldSelector=metadata.name=c", "labelSelector=none"):
        ask = f"watch=1&timeoutSeconds=1&{quoted(select).replace('%26', '&')}"
        steps = [step("GET", MAPS, q=f"{ask}&resourceVersion={{{{rv}}}}{more}", watch=True) for more in ("", "&allowWatchBookmarks=true",
            "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")]
        steps.append(step("GET", MAPS, q=ask, watch=True))
        yield case("semantics", "Watching", select or "all", story + steps, ns="fresh")


def quoted(text):
    return urllib.parse.quote(text, safe="{}=!,()")


def writing():
    for body in DELETES:
        more = {"raw": "null"} if body is None else {}
        steps = [step("DELETE", f"{MAPS}/a", body, **more), step("GET", f"{MAPS}/a"), step("DELETE", MAPS, body,
            **more), step("GET", MAPS, view="names")]
        yield case("semantics", "Delete", short(body), SETUP + steps, ns="fresh")
    new = {**THREE[0], "metadata": {"name": "z"}}
    other = {**THREE[0], "data": {"k": "other"}, "zz": 1}
    for query in OPTIONS:
        steps = [step("POST", MAPS, {**new, "zz": 1}, q=query), step("PUT", f"{MAPS}/a", other, q=query),
            step("DELETE", f"{MAPS}/b", q=query), step("DELETE", MAPS, q=query + "&labelSelector=none")]
        steps += [step("PATCH", f"{MAPS}/a", {"data": {"z": "y"}, "zz": 1}, q=query,
            ct=f"application/{kind}-patch+json") for kind in ("merge", "strategic-merge")]
        steps += [step("PATCH", f"{MAPS}/a", [{"op": "add", "path": "/zz", "value": 1}], q=query,
            ct="application/json-patch+json"), step("PATCH", f"{MAPS}/a", other, q=query, ct=APPLY), step("GET",
            f"{MAPS}/a")]
        yield case("semantics", "Options", query[:80], SETUP + steps, ns="fresh")
    for meta in META:
        body = {**THREE[0], "metadata": {**THREE[0]["metadata"], **meta}}
        steps = [step("PUT", f"{MAPS}/a", body, q="dryRun=All"), step("PATCH", f"{MAPS}/a", {"metadata": meta},
            ct="application/merge-patch+json", q="dryRun=All"),
            step("PATCH", f"{MAPS}/a", body, ct=APPLY, q="dryRun=All&fieldManager=m"), step("POST", MAPS,
            {**body, "metadata": {"name": "z", **meta}}, q="dryRun=All"), step("PUT", f"{MAPS}/none",
            {**body, "metadata": {"name": "none", **meta}}, q="dryRun=All")]
        yield case("semantics", "Meta", short(meta), SETUP + steps, ns="fresh")
    for patch in JSON_PATCHES:
        yield case("semantics", "JsonPatch", short(patch), [*SETUP, step("PATCH", f"{MAPS}/a", raw=dumped(patch),
            ct="application/json-patch+json")], ns="fresh")
    for patch in MERGE_PATCHES:
        steps = [step("PATCH", f"{MAPS}/a", raw=dumped(patch), ct=f"application/{kind}-patch+json",
            q="dryRun=All") for kind in ("merge", "strategic-merge")]
        yield case("semantics", "MergePatch", short(patch), SETUP + steps + [step("PATCH", f"{MAPS}/a",
            raw=dumped(patch), ct=APPLY, q="fieldManager=m&dryRun=All")], ns="fresh")
    for kind in TYPES:
        steps = [step("PATCH", f"{MAPS}/a", raw="{}", ct=kind, q="fieldManager=m"), step("POST", MAPS, raw="{}",
            ct=kind), step("PUT", f"{MAPS}/a", raw="{}", ct=kind), step("DELETE", f"{MAPS}/a", raw="{}", ct=kind)]
        yield case("semantics", "ContentType", kind or "none", SETUP + steps, ns="fresh")
    for raw in RAW:
        steps = [step("POST", MAPS, raw=raw, q=f"dryRun=All&fieldValidation={mode}") for mode in ("Strict", "Warn",
            "Ignore")] + [step("POST", MAPS, raw=raw, q="dryRun=All", ct="application/yaml"), step("PUT",
            f"{MAPS}/a", raw=raw, q="dryRun=All")]
        steps += [step("PATCH", f"{MAPS}/a", raw=raw, ct=kind, q="dryRun=All&fieldManager=m") for kind in (APPLY,
            "application/merge-patch+json", "application/strategic-merge-patch+json", "application/json-patch+json")]
        yield case("semantics", "Body", short(raw), SETUP + steps, ns="fresh")


def dumped(value):
    return json.dumps(value)


def applying():
    """Who owns what after a sequence of applied and updated objects; each in all kinds of fields of a Deployment."""
    path = "/apis/apps/v1/namespaces/{ns}/deployments"

    def made(spec=None, labels=None, **container):
        whole = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x",
            **container}]}}, **(spec or {})}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels or {}},
            "spec": whole}

    def by(manager, body, force=None):
        return step("PATCH", f"{path}/d", body, ct=APPLY,
            q=f"fieldManager={manager}" + (f"&force={force}" if force else ""))

    bare = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    merge = lambda body, manager="u": step("PATCH", f"{path}/d", body, ct="application/merge-patch+json",
        q=f"fieldManager={manager}")
    get = step("GET", f"{path}/d")
    port = {"containerPort": 80}
    stories = {
        "conflict": [by("a", made()), by("b", made({"replicas": 2})), by("b", made({"replicas": 2}), "true"), by("a",
        made()), get],
        "same": [by("a", made()), by("b", made()), by("a", bare), get], "given-up": [by("a", made(labels={"x": "y"})),
        by("a", made()), get],
        "updated": [by("a", made()), merge({"spec": {"replicas": 3}}), by("a", made()), by("a", made(), "true"), get],
        "bare-first": [by("a", bare)],
        "ports": [by("a", made(ports=[port])), by("b", made(ports=[{"containerPort": 81}])), by("a",
        made(ports=[{"containerPort": 80, "protocol": "UDP"}])), get],
        "ports-twice": [by("a", made(ports=[port, port]))], "ports-no-key": [by("a", made(ports=[{"name": "x"}]))],
        "port-null": [by("a", made(ports=[None]))], "containers-twice": [by("a",
        made({"template": {"spec": {"containers": [{"name": "c", "image": "x"}, {"name": "c",
        "image": "y"}]}}}))],
        "env": [by("a", made(env=[{"name": "A", "value": "1"}])), by("b", made(env=[{"name": "A", "value": "2"}])),
        by("b", made(env=[{"name": "B", "value": "2"}])), by("a", made(env=[])), get],
        "args-atomic": [by("a", made(args=["1"])), by("b", made(args=["1", "2"])), by("b", made(args=["1", "2"]),
        "true"), get], "selector-atomic": [by("a", made()), by("b",
        made({"selector": {"matchLabels": {"a": "c"}}}))],
        "null": [by("a", made({"replicas": None})), by("a", made({"paused": None})), get], "empty": [by("a",
        made({"strategy": {}})), by("b", made({"strategy": {"type": "Recreate"}})), by("b",
        made({"strategy": {"type": "Recreate"}}), "true"), get],
        "quantities": [by("a", made(resources={"limits": {"cpu": "1000m"}})), by("b",
        made(resources={"limits": {"cpu": "1"}})), by("b", made(resources={"limits": {"cpu": "1.0"}})), get],
        "wrong-type": [by("a", made({"replicas": "1"})), by("a", made({"selector": []})), by("a",
        made({"template": "x"})), by("a", made(ports={}))], "unknown": [by("a", made({"zz": 1})), by("a",
        made(zz=1))],
        "name-differs": [by("a", {**made(), "metadata": {"name": "x"}}), by("a", {**made(), "metadata": {}})],
        "kind-differs": [by("a", {**made(), "kind": "ReplicaSet"}), by("a", {**made(),
        "apiVersion": "apps/v1beta1"}), by("a", {"spec": {}})],
        "managed-sent": [by("a", {**made(), "metadata": {"name": "d", "managedFields": [{"manager": "x"}]}}), by("a",
        {**made(), "metadata": {"name": "d", "managedFields": []}})],
        "update-then-apply": [step("POST", path, made(), q="fieldManager=u"), by("a", made({"replicas": 2})), by("a",
        made(labels={"k": "v"})), get], "status": [by("a", made()), step("PATCH", f"{path}/d/status", {**bare,
        "status": {"replicas": 1, "observedGeneration": 1}}, ct=APPLY, q="fieldManager=s"), get],
        "cleared": [by("a", made()), merge({"metadata": {"managedFields": [{}]}}), by("b", made({"replicas": 2})),
        get], "cleared-empty": [by("a", made()), merge({"metadata": {"managedFields": []}}), get],
        "resource-version": [by("a", {**made(), "metadata": {"name": "d", "resourceVersion": "1"}}), by("a", made()),
        by("a", {**made(), "metadata": {"name": "d", "resourceVersion": "1"}})], "uid": [by("a", {**made(),
        "metadata": {"name": "d", "uid": "x"}})],
        "toleration-atomic": [by("a", made({"template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"tolerations": [{"key": "x", "operator": "Exists"}], "containers": [{"name": "c",
        "image": "x"}]}}})), get],
        "volumes": [by("a", made({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"volumes": [{"name": "v",
        "emptyDir": {}}], "containers": [{"name": "c", "image": "x"}]}}})),
        by("a", made({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"volumes": [{"name": "v",
        "configMap": {"name": "x"}}], "containers": [{"name": "c", "image": "x"}]}}})), get],
        "no-manager": [step("PATCH", f"{path}/d", made(), ct=APPLY)], "force-elsewhere": [merge({}), step("PATCH",
        f"{path}/d", {}, ct="application/merge-patch+json", q="force=true")], "yaml-twice": [step("PATCH",
        f"{path}/d", raw="apiVersion: apps/v1\nkind: Deployment\nkind: Deployment\n", ct=APPLY,
        q="fieldManager=m")],
    }
    for name, steps in stories.items():
        yield case("semantics", "Apply", name, steps, ns="fresh")


def cases():
    yield from listing()
    yield from watching()
    yield from writing()
    yield from applying()
