"""What people do with the Python client, against the cluster of $KUBECONFIG: each function is one of its doors."""
import base64
import datetime
import tempfile
import time
import uuid

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream

IMAGE = "coracle.local/self"


def name(kind):
    return f"{kind}-{uuid.uuid4().hex[:8]}"


def pod(pod_name, command):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name, "labels": {"made-by": "python"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": IMAGE, "command": command}],
        },
    }


def until(what, look, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s")


def running_pod(core):
    made = name("pod")
    core.create_namespaced_pod("default", pod(made, ["/coracle", "demo", "serve"]))
    ready = lambda: any(
        c.type == "Ready" and c.status == "True"
        for c in core.read_namespaced_pod(made, "default").status.conditions or []
    )
    until("the pod is ready", ready)
    return made


def pods_exec_and_logs(core):
    made = running_pod(core)
    out = stream(
        core.connect_get_namespaced_pod_exec, made, "default", command=["/coracle", "--version"],
        stderr=True, stdin=False, stdout=True, tty=False,
    )
    assert "coracle" in out, out
    session = stream(
        core.connect_post_namespaced_pod_exec, made, "default", command=["/coracle", "no-such-command"],
        stderr=True, stdin=False, stdout=True, tty=False, _preload_content=False,
    )
    session.run_forever(timeout=30)
    assert session.returncode not in (0, None), session.returncode
    core.read_namespaced_pod_log(made, "default")
    names = [p.metadata.name for p in core.list_namespaced_pod("default", label_selector="made-by=python").items]
    assert names == [made], names
    forward = portforward(core.connect_get_namespaced_pod_portforward, made, "default", ports="8080")
    line = forward.socket(8080)
    line.setblocking(True)
    line.sendall(b"GET /there HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = b""
    while piece := line.recv(4096):
        answer += piece
    assert b"you asked for /there" in answer, answer
    core.delete_namespaced_pod(made, "default", body=client.V1DeleteOptions(grace_period_seconds=0))


def config_maps_of_all_patches(core):
    made = name("config")
    core.create_namespaced_config_map("default", {"metadata": {"name": made}, "data": {"a": "1"}, "binaryData": {"b": base64.b64encode(b"\0").decode()}})
    patched = core.patch_namespaced_config_map(made, "default", {"data": {"c": "2", "a": None}})
    assert patched.data == {"c": "2"}, patched.data
    patched = core.patch_namespaced_config_map(made, "default", [{"op": "add", "path": "/data/d", "value": "3"}])
    assert patched.data == {"c": "2", "d": "3"}, patched.data
    patched.metadata.resource_version = "1"
    try:
        core.replace_namespaced_config_map(made, "default", patched)
        raise AssertionError("an old version was taken")
    except ApiException as e:
        assert e.status == 409, e
    core.delete_namespaced_config_map(made, "default")


def watches_see_what_happens(core):
    begin = core.list_namespaced_config_map("default").metadata.resource_version
    made = name("watched")
    core.create_namespaced_config_map("default", {"metadata": {"name": made}})
    core.delete_namespaced_config_map(made, "default")
    seen = []
    for event in watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=begin, timeout_seconds=60):
        if event["object"].metadata.name == made:
            seen.append(event["type"])
        if seen == ["ADDED", "DELETED"]:
            return
    raise AssertionError(seen)


def pages_are_one_list(core):
    for n in range(5):
        core.create_namespaced_secret("default", {"metadata": {"name": f"page-{n}", "labels": {"page": "y"}}, "stringData": {"a": "b"}})
    found, more = [], None
    while more != "":
        page = core.list_namespaced_secret("default", limit=2, label_selector="page=y", **({"_continue": more} if more else {}))
        found += [s.metadata.name for s in page.items]
        more = page.metadata._continue or ""
    assert found == [f"page-{n}" for n in range(5)], found
    core.delete_collection_namespaced_secret("default", label_selector="page=y")


def workloads(api):
    apps, batch = client.AppsV1Api(api), client.BatchV1Api(api)
    made = name("web")
    manifest = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: {made} }}
spec:
  replicas: 2
  selector: {{ matchLabels: {{ app: {made} }} }}
  template:
    metadata: {{ labels: {{ app: {made} }} }}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{ name: c, image: {IMAGE}, command: [/coracle, demo, serve] }}]
---
apiVersion: v1
kind: Service
metadata: {{ name: {made} }}
spec: {{ selector: {{ app: {made} }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(manifest)
        file.flush()
        utils.create_from_yaml(api, file.name)
        utils.create_from_yaml(api, file.name, apply=True)
    until("two are ready", lambda: apps.read_namespaced_deployment(made, "default").status.ready_replicas == 2)
    scale = apps.read_namespaced_deployment_scale(made, "default")
    scale.spec.replicas = 1
    apps.replace_namespaced_deployment_scale(made, "default", scale)
    until("one is left", lambda: apps.read_namespaced_deployment(made, "default").status.replicas == 1)
    apps.delete_namespaced_deployment(made, "default", propagation_policy="Foreground")
    client.CoreV1Api(api).delete_namespaced_service(made, "default")
    job = name("job")
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE, "command": ["/coracle", "--version"]}]}}
    batch.create_namespaced_job("default", {"metadata": {"name": job}, "spec": {"template": template}})
    until("the job is done", lambda: batch.read_namespaced_job_status(job, "default").status.succeeded == 1)
    batch.delete_namespaced_job(job, "default", propagation_policy="Background")


def custom_resources(api):
    extensions = client.ApiextensionsV1Api(api)
    group = f"{name('g')}.example.com"
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
    extensions.create_custom_resource_definition({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"toys.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "toys", "kind": "Toy"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]},
    })
    served = lambda: any(
        c.type == "Established" and c.status == "True"
        for c in extensions.read_custom_resource_definition(f"toys.{group}").status.conditions or []
    )
    until("the definition is established", served)
    toys = dynamic.DynamicClient(api).resources.get(api_version=f"{group}/v1", kind="Toy")
    toys.create(body={"apiVersion": f"{group}/v1", "kind": "Toy", "metadata": {"name": "t"}, "spec": {"n": 1}}, namespace="default")
    applied = toys.server_side_apply(
        body={"apiVersion": f"{group}/v1", "kind": "Toy", "metadata": {"name": "t"}, "spec": {"n": 2}},
        namespace="default", field_manager="python", force_conflicts=True,
    )
    assert applied.spec.n == 2, applied
    plain = client.CustomObjectsApi(api).get_namespaced_custom_object(group, "v1", "default", "toys", "t")
    assert plain["spec"] == {"n": 2}, plain
    toys.delete(name="t", namespace="default")
    extensions.delete_custom_resource_definition(f"toys.{group}")


def leases_and_reviews(api):
    leases = client.CoordinationV1Api(api)
    made = name("lease")
    now = datetime.datetime.now(datetime.timezone.utc)
    leases.create_namespaced_lease("default", client.V1Lease(
        metadata=client.V1ObjectMeta(name=made),
        spec=client.V1LeaseSpec(holder_identity="me", lease_duration_seconds=15, renew_time=now),
    ))
    found = leases.read_namespaced_lease(made, "default").spec.renew_time
    assert abs((found - now).total_seconds()) < 0.001, (found, now)
    leases.delete_namespaced_lease(made, "default")
    token = client.CoreV1Api(api).create_namespaced_service_account_token(
        "default", "default", client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[])))
    review = client.AuthenticationV1Api(api).create_token_review(
        client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token.status.token)))
    assert review.status.user.username == "system:serviceaccount:default:default", review
    access = client.AuthorizationV1Api(api).create_self_subject_access_review(client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=client.V1ResourceAttributes(verb="get", resource="pods"))))
    assert access.status.allowed, access


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    assert client.VersionApi(api).get_code().major == "1"
    until("the service account is there", lambda: core.list_namespaced_service_account("default").items)
    config_maps_of_all_patches(core)
    watches_see_what_happens(core)
    pages_are_one_list(core)
    pods_exec_and_logs(core)
    workloads(api)
    custom_resources(api)
    leases_and_reviews(api)
    print("everything went well")


main()
