//! ClusterIP, DNS name, NodePort; readiness takes pods in and out.

use std::collections::BTreeSet;
use std::path::Path;

use coracle_testkit::retry;

use crate::Story;

pub fn run(story: &Story) {
    let service = story.json("get svc web -n shop");
    let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    story.kubectl(&format!("run client -n shop --image={} -- sleep 3600", crate::IMAGE));
    story.kubectl("wait -n shop pod/client --for=condition=Ready --timeout=30s");
    let get = |url: &str| story.sh("client", &format!("timeout 5 wget -qO- {url}"));

    assert!(get(&format!("http://{ip}:80/")).starts_with("web-"));
    // Debian's static busybox finds neither hosts nor the name of port 80; nslookup resolves by itself.
    let looked = story.sh("client", "nslookup web.shop.svc.cluster.local");
    assert!(looked.contains(&format!("Address: {ip}")), "{looked}");
    let seen: BTreeSet<String> = (0..60).map(|_| get(&format!("http://{ip}:80/"))).collect();
    assert_eq!(seen.len(), 3, "all three pods answer: {seen:?}");
    // A pod reaches itself through its own service.
    let own = format!("for i in 1 2 3 4 5 6 7 8; do timeout 5 wget -qO- http://{ip}:80/ || exit 1; done");
    let own = story.sh("deploy/web", &own);
    assert_eq!(own.lines().count(), 8);
    // Names work for programs too, short ones through the search list.
    story.kubectl("run namer -n shop --image=coracle.local/self -- demo tick");
    story.kubectl("wait -n shop pod/namer --for=condition=Ready --timeout=60s");
    for name in ["web", "web.shop", "web.shop.svc.cluster.local"] {
        let got = story.kubectl(&format!("exec -n shop namer -- /coracle demo get http://{name}/"));
        assert!(got.starts_with("web-"), "{name}: {got}");
    }
    story.kubectl("delete pod namer -n shop --grace-period=0 --force");
    // The API answers inside the cluster under its service name.
    let api = story.sh("client", "nslookup kubernetes.default.svc.cluster.local");
    assert!(api.contains("Address: 10."), "{api}");

    let host = |url: &str| {
        coracle_testkit::run(
            story
                .machine
                .command(Path::new("busybox"))
                .args(["timeout", "5", "busybox", "wget", "-qO-", url]),
        )
    };
    assert!(host("http://192.168.77.1:30080/").ok().starts_with("web-"), "NodePort from the host");
    assert!(host(&format!("http://{ip}:80/")).ok().starts_with("web-"), "ClusterIP from the host");

    readiness(story, &ip);
    story.kubectl("delete pod client -n shop --grace-period=0 --force");
}

fn endpoints(story: &Story) -> usize {
    let slices = story.json("get endpointslices -n shop -l kubernetes.io/service-name=web");
    let endpoints = slices["items"][0]["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().filter(|e| e["conditions"]["ready"] == true).count()
}

fn readiness(story: &Story, ip: &str) {
    let pods = story.pods("app=web");
    let pod = &pods[0];
    let wait_for = |n: usize| {
        retry("ready endpoints", 15, || {
            let got = endpoints(story);
            if got == n { Ok(()) } else { Err(format!("{got} of {n}")) }
        });
    };
    wait_for(3);
    story.sh(pod, "rm /www/ok");
    wait_for(2);
    let seen: BTreeSet<String> =
        (0..40).map(|_| story.sh("client", &format!("timeout 5 wget -qO- http://{ip}:80/"))).collect();
    assert!(!seen.contains(&format!("{pod}\n")), "an unready pod gets no traffic: {seen:?}");
    story.sh(pod, "touch /www/ok");
    wait_for(3);
}
