//! What the cluster does beside workloads: addresses of load balancers, checked policies.

use coracle_testkit::{coracle, retry, run};

use crate::{MAIN, Story};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: c, image: coracle.local/self, command: [/coracle, demo, serve] }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { type: LoadBalancer, selector: { app: web }, ports: [{ port: 8088, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: late }
spec: { type: LoadBalancer, selector: { app: web }, ports: [{ port: 8088, targetPort: 8080 }] }
"#;

/// A Service of type LoadBalancer has the node's address and answers there; a second one cannot have the port.
pub fn load_balancer_answers_on_the_node(story: &Story) {
    story.apply("web.yaml", WEB);
    story.kubectl("rollout status deploy/web --timeout=60s");
    let address = retry("one of the two has the address", 30, || {
        let services = story.json("get services web late");
        let with: Vec<String> = services["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s.pointer("/status/loadBalancer/ingress/0/ip")?.as_str().map(str::to_owned))
            .collect();
        match with.as_slice() {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        }
    });
    retry("the node answers", 30, || {
        let url = format!("http://{address}:8088/there");
        let answer = run(story.machine.command(&coracle()).args(["demo", "get", &url]));
        if answer.stdout.contains("you asked for /there") { Ok(()) } else { Err(answer.stderr) }
    });
    retry("the other is told why it has none", 30, || {
        let events = story.kubectl("get events --field-selector reason=SyncLoadBalancerFailed");
        if events.contains("port 8088/TCP is in use by Service default/") { Ok(()) } else { Err(events) }
    });
    story.kubectl("delete deploy/web svc/web svc/late");
}

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: { name: typo }
spec:
  matchConstraints:
    resourceRules: [{ apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments] }]
  validations:
  - expression: "object.spec.replicas <= 5 && object.spec.template.spec.containers.all(c, c.name != '')"
  - expression: "object.spec.replica <= 5"
"#;

/// The status of a policy says which expression does not fit the kind.
pub fn a_policy_is_checked_against_the_kinds_it_is_for(story: &Story) {
    story.apply("typo.yaml", POLICY);
    let warnings = retry("the policy is checked", 30, || {
        let policy = story.json("get validatingadmissionpolicy typo");
        let (seen, made) = (&policy["status"]["observedGeneration"], &policy["metadata"]["generation"]);
        let checked = seen == made && policy["status"]["typeChecking"].is_object();
        if checked {
            Ok(policy["status"]["typeChecking"]["expressionWarnings"].clone())
        } else {
            Err(policy.to_string())
        }
    });
    let warnings = warnings.as_array().cloned().unwrap_or_default();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[1].expression");
    let text = warnings[0]["warning"].as_str().unwrap_or("");
    assert!(
        text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replica'"),
        "{text}"
    );
    story.machine.kubectl(MAIN, &["delete", "validatingadmissionpolicy", "typo"]).ok();
}
