//! The horizontal pod autoscaler under real load: containers that compute make it scale up.

use coracle_testkit::retry;

use crate::Story;

/// Options of the cluster with which an autoscaler decides within seconds.
pub const QUICK: [&str; 3] = [
    "--horizontal-pod-autoscaler-sync-period=2s",
    "--horizontal-pod-autoscaler-cpu-initialization-period=2s",
    "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
];

const BUSY: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: busy }
spec:
  selector: { matchLabels: { app: busy } }
  template:
    metadata: { labels: { app: busy } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: IMAGE
        command: [sh, -c, "while :; do :; done"]
        resources: { requests: { cpu: 20m }, limits: { cpu: 100m } }
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: { name: busy }
spec:
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: busy }
  minReplicas: 1
  maxReplicas: 3
  metrics: [{ type: Resource, resource: { name: cpu, target: { type: Utilization, averageUtilization: 50 } } }]
"#;

/// A busy loop uses more than its request: the autoscaler goes to its maximum and says why.
pub fn load_scales_up(story: &Story) {
    story.apply("busy.yaml", BUSY);
    retry("the load makes three pods of one", 180, || {
        let (deployment, status) =
            (story.json("get deploy busy"), story.json("get hpa busy")["status"].clone());
        if deployment["spec"]["replicas"] == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    // A pod that has just come has no figures yet, and the status says so for a moment.
    retry("the status tells the load", 60, || {
        let status = story.json("get hpa busy")["status"].clone();
        let used = &status["currentMetrics"][0]["resource"]["current"]["averageUtilization"];
        let is = |kind: &str| {
            let mut all = status["conditions"].as_array().into_iter().flatten();
            all.any(|c| c["type"] == kind && c["status"] == "True")
        };
        let told = used.as_i64().is_some_and(|percent| percent > 50);
        if told && is("AbleToScale") && is("ScalingActive") { Ok(()) } else { Err(status.to_string()) }
    });
    retry("the change is told", 60, || {
        let events = story.kubectl("get events --field-selector involvedObject.kind=HorizontalPodAutoscaler");
        let told = ["SuccessfulRescale", "cpu resource utilization (percentage of request) above target"];
        if told.iter().all(|text| events.contains(text)) { Ok(()) } else { Err(events) }
    });
    story.kubectl("delete hpa/busy deploy/busy");
}
