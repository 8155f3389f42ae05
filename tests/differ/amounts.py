"""Set `numbers`: numbers at the ends of Go's types, wherever a body may have one."""
import crd
from cases import case, step

NUMBERS = ["0", "-0", "-0.0", "1.0", "1.5", "1E5", "0.1e1", "1e-7", "1e16", "1e22", "1e400", "-1e400", "1e-400", "2147483648",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551616", "123456789012345678901234567890", "12345678901234567890.5"]
# Where a number stands for an integer, a text, an amount, either, or is kept as it was written.
BODIES = {
    "int32": ("/apis/apps/v1/namespaces/{ns}/deployments", '{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"a"},'
        '"spec":{"replicas":%s}}'),
    "int64": ("/api/v1/namespaces/{ns}/configmaps",
        '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","generation":%s}}'),
    "unknown": ("/api/v1/namespaces/{ns}/configmaps", '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"x":%s}'),
    "text": ("/api/v1/namespaces/{ns}/configmaps",
        '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"a":%s}}'),
    "either": ("/api/v1/namespaces/{ns}/services", '{"kind":"Service","apiVersion":"v1","metadata":{"name":"a"},'
        '"spec":{"clusterIP":"None","ports":[{"port":80,"targetPort":%s}]}}'),
    "amount": ("/api/v1/namespaces/{ns}/resourcequotas", '{"kind":"ResourceQuota","apiVersion":"v1","metadata":{"name":"a"},'
        '"spec":{"hard":{"pods":%s}}}'),
}
DEPLOYMENT = {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {
    "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
    "spec": {"containers": [{"name": "c", "image": "i"}]}}}}
DEPLOYMENTS = "/apis/apps/v1/namespaces/{ns}/deployments"
PATCHES = {
    "application/merge-patch+json": '{"spec":{"replicas":%s}}',
    "application/strategic-merge-patch+json": '{"spec":{"replicas":%s}}',
    "application/json-patch+json": '[{"op":"add","path":"/spec/replicas","value":%s}]',
    "application/apply-patch+yaml": '{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"d"},"spec":{"replicas":%s}}',
}
CUSTOM = {"type": "object", "properties": {"i": {"type": "integer"}, "n": {"type": "number"}, "s": {"type": "string"},
    "short": {"type": "integer", "format": "int32"}, "any": {"x-kubernetes-preserve-unknown-fields": True}}}
THING = '{"kind":"Thing","apiVersion":"{u}.example.com/v1","metadata":{"name":"t"},"spec":{"%s":%s}}'


def cases():
    for number in NUMBERS:
        for name, (path, body) in BODIES.items():
            steps = [step("POST", path, raw=body % number, q=f"dryRun=All&fieldValidation={mode}") for mode in ("Strict", "Warn")]
            steps.append(step("POST", path, raw=body % number, q="dryRun=All", ct="application/yaml"))
            yield case("numbers", name, number, steps)
        steps = [step("POST", DEPLOYMENTS, DEPLOYMENT, cmp=False)]
        steps += [step("PATCH", f"{DEPLOYMENTS}/d", raw=body % number, ct=kind, q="dryRun=All&fieldManager=m")
                  for kind, body in PATCHES.items()]
        yield case("numbers", "patch", number, steps, ns="fresh")
        steps = crd.served(crd.definition(CUSTOM))
        steps += [step("POST", crd.OBJECTS, raw=THING.replace("%s", name, 1).replace("%s", number, 1), q="dryRun=All")
                  for name in CUSTOM["properties"]]
        yield case("numbers", "custom", number, steps, cleanup=crd.CLEANUP)
