"""Set `policy`: admission policies, quotas, limit ranges and pod security, as objects meet them."""
import cel
from cases import case, short, step

GROUP = "/apis/admissionregistration.k8s.io/v1"
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
    "image": "x"}]}}
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": {"a": "b"}}, "data": {"k": "v",
    "n": "5"}}
MAPS, PODS = "/api/v1/namespaces/{ns}/configmaps", "/api/v1/namespaces/{ns}/pods"
MATCH = {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"],
    "resources": ["configmaps"]}],
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "{ns}"}}}

EXPRESSIONS = """
true
false
1
'x'
object
object.data.k == 'v'
object.data.k == 5
object.data.missing == 'x'
has(object.data.missing)
object.missing == 'x'
object.metadata.name == 'm'
object.metadata.missing == 'x'
object.metadata.labels['a'] == 'b'
object.metadata.labels.z == 'b'
object.metadata.labels.all(k, k == 'a')
object.metadata.?labels.z.orValue('y') == 'b'
oldObject == null
oldObject.data.k == 'v'
oldObject != null && object.data == oldObject.data
request.operation == 'CREATE'
request.name == 'm'
request.namespace.startsWith('ns-')
request.userInfo.username == 'nobody'
request.userInfo.groups.exists(g, g == 'x')
request.kind.kind == 'Pod'
request.resource.resource == 'pods'
request.requestKind.version == 'v2'
request.subResource == 'status'
request.dryRun
request.options.x == 1
request.missing == 1
request.object.data == object.data
namespaceObject.metadata.name == 'x'
namespaceObject.metadata.labels['kubernetes.io/metadata.name'] == 'x'
namespaceObject.status.phase == 'Active'
namespaceObject.missing == 1
params.data.x == 1
params == null
variables.x == 1
variables.missing == 1
authorizer.group('').resource('pods').namespace('default').check('get').allowed()
authorizer.requestResource.check('create').allowed()
!authorizer.requestResource.check('create').allowed()
authorizer.path('/healthz').check('get').reason() == 'x'
authorizer.serviceAccount('default', 'default').group('').resource('pods').check('get').allowed()
authorizer.group('').resource('pods').subresource('status').name('x').fieldSelector('metadata.name=x').labelSelector('a=b').check('get').errored()
self.x
object.data.k ==
size(object.data) > 5
object.data.all(k, object.data[k].matches('^x'))
object.data.k.find('x') == 'x'
int(object.data.n) > 9
int(object.data.k) > 9
quantity(object.data.n).isGreaterThan(quantity('9'))
object.data.map(k, k).join(',') == 'x'
dyn(object).foo == 1
type(object) == map
object.spec.replicas > 5
jsonpatch.escapeKey('a/b') == 'x'
[1,2,3].all(x, [1,2,3].all(y, [1,2,3].all(z, object.data.all(k, k == 'x'))))
""".strip("\n").split("\n")

MUTATIONS = [
    *[{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": one}} for one in (
        "Object{}", "Object{data: {'z': 'y'}}", "Object{metadata: Object.metadata{labels: {'z': 'y'}}}",
        "Object{metadata: Object.metadata{name: 'x'}}", "Object{zz: 1}", "Object{data: 'x'}",
        "Object{data: {'z': 1}}", "Object.metadata{}", "{}", "1",
        "Object{metadata: Object.metadata{annotations: {'z': object.data.missing}}}",
        "Object{metadata: Object.zz{}}",
        "Object{metadata: Object.metadata{labels: {'bad key!': 'x'}}}",
        "has(object.data) ? Object{data: {'k': object.data.k + 'x'}} : Object{}", "Object{data: {}}",
        "Object{metadata: Object.metadata{finalizers: ['a/b']}}",
        "Object{metadata: Object.metadata{ownerReferences: [Object.metadata.ownerReferences{name: 'x'}]}}",
        "Object{kind: 'Pod'}", "")],
    *[{"patchType": "JSONPatch", "jsonPatch": {"expression": one}} for one in (
        "[]", "[JSONPatch{op: 'add', path: '/data/z', value: 'y'}]",
        "[JSONPatch{op: 'add', path: '/data/z', value: 1}]",
        "[JSONPatch{op: 'nope', path: '/data/z', value: 'y'}]", "[JSONPatch{op: 'remove', path: '/data/z'}]",
        "[JSONPatch{op: 'test', path: '/data/k', value: 'x'}, JSONPatch{op: 'remove', path: '/data/k'}]",
        "[JSONPatch{op: 'replace', path: '/metadata/name', value: 'x'}]",
        "[JSONPatch{op: 'copy', from: '/data/k', path: '/data/z'}]",
        "[JSONPatch{op: 'move', from: '/data/k', path: '/data/' + jsonpatch.escapeKey('a/b')}]", "[JSONPatch{zz: 1}]",
        "[1]", "JSONPatch{}", "[JSONPatch{}]",
        "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'z': 'y'}}]",
        "[JSONPatch{op: 'add', path: '/metadata/labels', value: Object.metadata.labels{z: 'y'}}]",
        "[JSONPatch{op: 'add', path: 'x', value: 'y'}]",
        "[JSONPatch{op: 'add', path: '/data', value: object.data.missing}]", "object.data.n == '5' ? [] : [1]")],
]
POLICY_PARTS = [
    {"failurePolicy": "Ignore"}, {"failurePolicy": "Nope"}, {"matchConditions": [{"name": "a",
    "expression": "false"}]}, {"matchConditions": [{"name": "a", "expression": "object.missing"}]},
    {"matchConditions": [{"name": "", "expression": "true"}]},
    {"matchConditions": [{"name": "a", "expression": "object.data.missing == 'x'"}]},
    {"matchConditions": [{"name": "a", "expression": "1"}]}, {"matchConditions": [{"name": "a",
    "expression": "true"}, {"name": "a", "expression": "true"}]},
    {"variables": [{"name": "x", "expression": "object.data.k"}]}, {"variables": [{"name": "x",
    "expression": "variables.y"}, {"name": "y", "expression": "1"}]}, {"variables": [{"name": "1x",
    "expression": "1"}]}, {"variables": [{"name": "x", "expression": ""}]},
    {"variables": [{"name": "x", "expression": "1"}, {"name": "x", "expression": "2"}]},
    {"auditAnnotations": [{"key": "k", "valueExpression": "'x'"}]}, {"auditAnnotations": [{"key": "k",
    "valueExpression": "1"}]}, {"auditAnnotations": [{"key": "bad key", "valueExpression": "'x'"}]},
    {"auditAnnotations": [{"key": "k", "valueExpression": "null"}]}, {"paramKind": {"apiVersion": "v1",
    "kind": "ConfigMap"}}, {"paramKind": {"apiVersion": "nope/v1", "kind": "X"}},
    {"paramKind": {"apiVersion": "", "kind": ""}}, {"matchConstraints": None}, {"matchConstraints": {}},
    {"matchConstraints": {"resourceRules": []}}, {"matchConstraints": {**MATCH, "matchPolicy": "Exact"}},
    {"matchConstraints": {**MATCH, "matchPolicy": "x"}}, {"matchConstraints": {**MATCH,
    "excludeResourceRules": MATCH["resourceRules"]}}, {"matchConstraints": {**MATCH,
    "objectSelector": {"matchLabels": {"a": "z"}}}},
    {"matchConstraints": {**MATCH, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "x"}]}}},
    {"matchConstraints": {"resourceRules": [{**MATCH["resourceRules"][0], "resourceNames": ["m"]}]}},
    {"matchConstraints": {"resourceRules": [{**MATCH["resourceRules"][0], "operations": ["*", "CREATE"]}]}},
    {"matchConstraints": {"resourceRules": [{**MATCH["resourceRules"][0], "resources": ["*", "pods"]}]}},
    {"matchConstraints": {"resourceRules": [{**MATCH["resourceRules"][0], "resources": ["pods/*", "*/status",
    "*/*", "a/b/c"]}]}}, {"matchConstraints": {"resourceRules": [{**MATCH["resourceRules"][0], "scope": "x"}]}},
]
VALIDATIONS = [
    {"expression": "false", "message": "no"}, {"expression": "false", "reason": "Forbidden"}, {"expression": "false",
    "reason": "Nope"}, {"expression": "false", "messageExpression": "'a ' + object.data.k"},
    {"expression": "false", "messageExpression": "1"}, {"expression": "false",
    "messageExpression": "object.data.missing"},
    {"expression": "false", "messageExpression": "''"}, {"expression": "false", "messageExpression": "'a\\nb'"},
    {"expression": "false", "message": "x", "messageExpression": "' '"}, {"expression": "", "message": "x"},
    {"message": "x"}, {"expression": "false", "message": ""}, {"expression": "false\n", "message": "x\ny"},
    {"expression": "false || \nfalse"},
    {"expression": "false", "messageExpression": "'" + "x" * 6000 + "'"}, {"expression": "false",
    "reason": "RequestEntityTooLarge"}, {"expression": "false", "reason": "Unauthorized"},
    {"expression": " false "},
]
QUOTAS = [{"pods": "1"}, {"cpu": "1"}, {"requests.cpu": "1", "limits.memory": "1Gi"}, {"configmaps": "1"},
    {"count/configmaps": "1"}, {"count/deployments.apps": "0"}, {"services.nodeports": "0"}, {"memory": "1x"},
    {"nope": "1"}, {"requests.example.com/x": "1"}, {"example.com/x": "1"}, {"pods": "-1"}, {"pods": "0.5"}]
LIMITS = [
    {"type": "Container", "max": {"cpu": "1"}}, {"type": "Container", "min": {"cpu": "1"}, "default": {"cpu": "2"}},
    {"type": "Container", "defaultRequest": {"cpu": "2"}, "default": {"cpu": "1"}}, {"type": "Container",
    "maxLimitRequestRatio": {"cpu": "2"}}, {"type": "Pod", "max": {"cpu": "1"}, "min": {"memory": "1Gi"}},
    {"type": "Pod", "default": {"cpu": "1"}}, {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
    {"type": "PersistentVolumeClaim"}, {"type": "Nope", "max": {"cpu": "1"}}, {"type": ""}, {"type": "Container",
    "max": {"cpu": "1"}, "min": {"cpu": "2"}}, {"type": "Container", "maxLimitRequestRatio": {"cpu": "0.5"}},
    {"type": "Container", "max": {"nope": "1"}}, {"type": "example.com/x", "max": {"example.com/x": "1"}},
]
PODS_OF_SPEC = [
    {}, {"hostNetwork": True}, {"hostPID": True, "hostIPC": True}, {"volumes": [{"name": "v",
    "hostPath": {"path": "/x"}}]}, {"volumes": [{"name": "v", "nfs": {"server": "x", "path": "/x"}}]},
    {"securityContext": {"runAsNonRoot": True}}, {"securityContext": {"runAsUser": 0}},
    {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True}},
    {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}, {"name": "net.ipv4.tcp_syncookies",
    "value": "1"}]}},
    {"securityContext": {"seLinuxOptions": {"type": "x", "user": "y"}}},
    {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, {"hostUsers": False,
    "securityContext": {"runAsUser": 0}}, {"securityContext": {"windowsOptions": {"hostProcess": True}},
    "hostNetwork": True},
    {"os": {"name": "windows"}}, {"securityContext": {"supplementalGroups": [0], "fsGroup": 0}},
]
CONTAINERS = [
    {}, {"securityContext": {"privileged": True}}, {"securityContext": {"capabilities": {"add": ["SYS_ADMIN",
    "CHOWN"]}}}, {"securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False}},
    {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    "allowPrivilegeEscalation": False, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}},
    {"securityContext": {"allowPrivilegeEscalation": True}}, {"securityContext": {"procMount": "Unmasked"}},
    {"ports": [{"containerPort": 80, "hostPort": 80}]}, {"securityContext": {"runAsUser": 0,
    "seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}},
    {"livenessProbe": {"httpGet": {"port": 80, "host": "1.2.3.4"}}},
    {"lifecycle": {"postStart": {"tcpSocket": {"port": 1, "host": "x"}}}}, {"resources": {"limits": {"cpu": "2"},
    "requests": {"cpu": "500m", "memory": "1Gi"}}}, {"resources": {"limits": {"example.com/x": "2"}}},
    {"resources": {"requests": {"cpu": "3"}}},
]


def pod(spec, container):
    return {**POD, "spec": {"containers": [{"name": "c", "image": "x", **container}], **spec}}


def policy(kind, **spec):
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "p-{u}"}, "spec": spec}


def bound(kind, made, requests, **binding):
    """A policy with its binding, waited for until it holds, and requests that it judges."""
    policies, bindings = f"{GROUP}/{kind.lower()[:-1]}ies", f"{GROUP}/{kind.lower()}bindings"
    bind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind + "Binding", "metadata": {"name": "b-{u}"},
        "spec": {"policyName": "p-{u}", **binding}}
    steps = [step("POST", policies, made), step("POST", bindings, bind)]
    cleanup = [step("DELETE", f"{bindings}/b-{{u}}"), step("DELETE", f"{policies}/p-{{u}}")]
    first, *rest = requests
    # There is nothing to wait for that every policy has: upstream's caches follow within a second.
    return steps + [{**first, "sleep": 1.5}, *rest], cleanup


def judged(validation, **spec):
    made = policy("ValidatingAdmissionPolicy", **{"failurePolicy": "Fail", "matchConstraints": MATCH,
        "validations": [validation], **spec})
    requests = [step("POST", MAPS, MAP, q="dryRun=All"), step("PUT", f"{MAPS}/m", {**MAP, "data": {"k": "w"}},
        q="dryRun=All"), step("DELETE", f"{MAPS}/m", q="dryRun=All")]
    steps, cleanup = bound("ValidatingAdmissionPolicy", made, requests, validationActions=["Deny"])
    return [step("POST", MAPS, MAP, cmp=False), *steps], cleanup


def validating():
    for one in EXPRESSIONS:
        steps, cleanup = judged({"expression": one})
        yield case("policy", "Expression", short(one), steps, ns="fresh", cleanup=cleanup)
    for one in VALIDATIONS:
        steps, cleanup = judged(one)
        yield case("policy", "Validation", short(one), steps, ns="fresh", cleanup=cleanup)
    for one in POLICY_PARTS:
        if "matchConstraints" not in one or one["matchConstraints"] and one["matchConstraints"].get("namespaceSelector") == MATCH["namespaceSelector"]:
            steps, cleanup = judged({"expression": "object.data.k == 'w'", "message": "no"}, **one)
            yield case("policy", "Part", short(one), steps, ns="fresh", cleanup=cleanup)
        made = policy("ValidatingAdmissionPolicy", **{"matchConstraints": MATCH,
            "validations": [{"expression": "true"}], **one})
        yield case("policy", "Part", f"asked-{short(one)}", [step("POST", f"{GROUP}/validatingadmissionpolicies",
            made, q="dryRun=All")], ns="none")
    for rule in cel.rules()[:300]:
        rule = rule.replace("self", "object.data")
        made = policy("ValidatingAdmissionPolicy", matchConstraints=MATCH, validations=[{"expression": rule}])
        yield case("policy", "Compile", short(rule), [step("POST", f"{GROUP}/validatingadmissionpolicies", made,
            q="dryRun=All")], ns="none")


def mutating():
    for one in MUTATIONS:
        made = policy("MutatingAdmissionPolicy", failurePolicy="Fail", reinvocationPolicy="Never",
            matchConstraints={**MATCH, "resourceRules": [{**MATCH["resourceRules"][0], "operations": ["CREATE",
            "UPDATE"]}]}, mutations=[one])
        requests = [step("POST", MAPS, {**MAP, "metadata": {"name": "n"}}, q="dryRun=All"), step("PUT", f"{MAPS}/m",
            MAP, q="dryRun=All")]
        steps, cleanup = bound("MutatingAdmissionPolicy", made, requests)
        yield case("policy", "Mutation", short(one), [step("POST", MAPS, MAP, cmp=False), *steps], ns="fresh",
            cleanup=cleanup)


def resources():
    pods = [step("POST", PODS, pod({}, container), q="dryRun=All") for container in CONTAINERS]
    for hard in QUOTAS:
        for scopes in ({}, {"scopes": ["BestEffort"]}, {"scopes": ["NotTerminating", "NotBestEffort"]},
            {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In",
            "values": ["x"]}]}}):
            quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard,
                **scopes}}
            path = "/api/v1/namespaces/{ns}/resourcequotas"
            steps = [step("POST", path, quota), step("PUT", f"{path}/q/status", {**quota, "status": {"hard": hard,
                "used": {key: "0" for key in hard}}}, cmp=False)]
            asked = [{**pods[0], "sleep": 0.7}, *pods[11:], step("POST", MAPS, MAP), step("POST", MAPS, {**MAP,
                "metadata": {"name": "n"}}), step("GET", f"{path}/q")]
            yield case("policy", "Quota", f"{short(hard)}-{short(scopes)}", steps + asked, ns="fresh")
    for limit in LIMITS:
        body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limit]}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}}
        asked = [{**pods[0], "sleep": 0.7}, *pods[11:], step("POST", "/api/v1/namespaces/{ns}/persistentvolumeclaims",
            claim, q="dryRun=All")]
        yield case("policy", "Limit", short(limit), [step("POST", "/api/v1/namespaces/{ns}/limitranges", body),
            *asked], ns="fresh")


def security():
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    for level in ("baseline", "restricted", "privileged"):
        labels = {"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "restricted"}
        for i, spec in enumerate(PODS_OF_SPEC):
            steps = []
            for container in CONTAINERS[: 14 if i == 0 else 3]:
                made = pod(spec, container)
                template = {"metadata": {"labels": {"a": "b"}}, "spec": made["spec"]}
                steps.append(step("POST", PODS, made, q="dryRun=All"))
                steps.append(step("POST", "/apis/apps/v1/namespaces/{ns}/deployments", {**deployment,
                    "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}, q="dryRun=All"))
            yield case("policy", "Security", f"{level}-{i}", steps, ns="fresh", nsmeta={"labels": labels})


def cases():
    yield from validating()
    yield from mutating()
    yield from resources()
    yield from security()
