//! A namespace, a Deployment with configuration, its isolation and limits.

use coracle_testkit::retry;

use crate::{IMAGE, MAIN, Story};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings, namespace: shop }
data: { COLOUR: green, page.html: "<h1>shop</h1>" }
---
apiVersion: v1
kind: Secret
metadata: { name: key, namespace: shop }
stringData: { token: s3cret }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop, labels: { app: web } }
spec:
  replicas: 3
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: httpd
        image: IMAGE
        command: [sh, -c, "mkdir -p /www; hostname > /www/index.html; touch /www/ok; exec httpd -f -v -p 8080 -h /www"]
        ports: [{ name: http, containerPort: 8080 }]
        envFrom: [{ configMapRef: { name: settings } }]
        resources: { requests: { cpu: 10m, memory: 16Mi }, limits: { cpu: 500m, memory: 64Mi } }
        readinessProbe: { httpGet: { path: /ok, port: http }, periodSeconds: 1, failureThreshold: 1 }
        volumeMounts:
        - { name: settings, mountPath: /settings }
        - { name: key, mountPath: /key, readOnly: true }
      - name: side
        image: IMAGE
        command: [sh, -c, "while true; do sleep 3600; done"]
      volumes:
      - { name: settings, configMap: { name: settings } }
      - { name: key, secret: { secretName: key } }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  type: NodePort
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: http, nodePort: 30080 }]
"#;

pub fn run(story: &Story) {
    story.kubectl("create namespace shop");
    let manifest = MANIFEST.replace("IMAGE", IMAGE);
    let said = story.apply("web.yaml", &manifest, &[]);
    assert!(said.contains("deployment.apps/web created"), "{said}");
    let said = story.apply("web.yaml", &manifest, &[]);
    assert!(said.contains("deployment.apps/web unchanged"), "{said}");
    let said = story.apply("web.yaml", &manifest, &["--server-side", "--force-conflicts"]);
    assert!(said.contains("deployment.apps/web serverside-applied"), "{said}");
    story.kubectl("rollout status -n shop deploy/web --timeout=60s");

    let unknown = story.machine.file("unknown.yaml", &manifest.replace("replicas: 3", "replicsa: 3"));
    let path = unknown.display().to_string();
    let refused = story.machine.kubectl(MAIN, &["apply", "-f", &path]).fails();
    assert!(refused.contains("unknown field \"spec.replicsa\""), "{refused}");

    configuration(story);
    isolation(story);
    output_formats(story);
    self_image(story);
}

fn configuration(story: &Story) {
    assert_eq!(story.sh("deploy/web", "echo $COLOUR"), "green\n");
    assert_eq!(story.sh("deploy/web", "cat /settings/page.html"), "<h1>shop</h1>");
    assert_eq!(story.sh("deploy/web", "cat /key/token"), "s3cret");
    let token = "cat /var/run/secrets/kubernetes.io/serviceaccount/token | wc -c";
    assert!(story.sh("deploy/web", token).trim().parse::<u32>().is_ok_and(|n| n > 100));
    // A changed ConfigMap reaches the running pod's volume.
    story.kubectl(r#"patch cm settings -n shop --type=merge -p {"data":{"page.html":"new"}}"#);
    retry("the volume shows the new content", 10, || {
        let got = story.sh("deploy/web", "cat /settings/page.html");
        if got == "new" { Ok(()) } else { Err(got) }
    });
}

fn isolation(story: &Story) {
    let pods = story.pods("app=web");
    let pod = pods.first().expect("three pods run");
    let links = "for n in pid mnt ipc uts net; do readlink /proc/self/ns/$n; done";
    let inside: Vec<String> = story.sh(pod, links).lines().map(str::to_owned).collect();
    for (name, inside) in ["pid", "mnt", "ipc", "uts", "net"].iter().zip(&inside) {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).expect("procfs");
        assert_ne!(&host.display().to_string(), inside, "{name} namespace is the host's");
    }
    let side = ["exec", "-n", "shop", pod, "-c", "side", "--", "readlink", "/proc/self/ns/net"];
    let side = story.machine.kubectl(MAIN, &side).ok();
    assert_eq!(side.trim(), inside[4], "containers of one pod share the network");
    assert_eq!(story.sh(pod, "hostname").trim(), pod);

    let limit =
        "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(story.sh(pod, limit).trim(), (64 << 20).to_string());
    let raise = "for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do \
                 [ -e $f ] && echo 999999999 > $f && exit 1; done; exit 0";
    story.sh(pod, raise);
}

fn output_formats(story: &Story) {
    let wide = story.kubectl("get pods -n shop -o wide");
    assert!(wide.contains("READY") && wide.contains("2/2") && wide.contains("10.") && wide.contains("first"));
    let deploy = story.kubectl("get deploy web -n shop");
    assert!(deploy.contains("3/3"), "{deploy}");
    assert!(story.kubectl("get deploy web -n shop -o yaml").contains("kind: Deployment"));
    let path = "get deploy web -n shop -o jsonpath={.spec.replicas}";
    assert_eq!(story.kubectl(path), "3");
    let described = story.kubectl(&format!("describe pod -n shop {}", story.pods("app=web")[0]));
    assert!(described.contains("Successfully assigned shop/web-"), "{described}");
    assert!(described.contains("Container started"), "{described}");
    assert!(story.kubectl("describe deploy -n shop web").contains("NewReplicaSetAvailable"));
    assert!(story.kubectl("explain deployment.spec.strategy").contains("rollingUpdate"));
    assert!(story.kubectl("api-resources").contains("deployments"));
}

fn self_image(story: &Story) {
    story.kubectl("run hello -n shop --image=coracle.local/self --port=8080 -- demo serve");
    story.kubectl("wait -n shop pod/hello --for=condition=Ready --timeout=30s");
    let ip = story.json("get pod hello -n shop")["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let answer = story.sh("deploy/web", &format!("wget -qO- http://{ip}:8080/x"));
    assert!(answer.contains("Hello from hello"), "{answer}");
    story.kubectl("delete pod hello -n shop");
}
