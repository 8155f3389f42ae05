//! Devices of a plug-in that this test runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_grpc::{Answer, Bytes, Channel, Map, Message, Service, Status};
use coracle_testkit::retry;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Claim, Lab, MAIN};

pub const CLAIMS: &[Claim] = &[("devices: a plug-in's devices are given to containers", devices_are_given)];

const RESOURCE: &str = "test.example/widget";

coracle_grpc::messages! {
    Options { pre_start_required: bool = 1, get_preferred_allocation_available: bool = 2 }
    Register { version: String = 1, endpoint: String = 2, resource_name: String = 3, options: Option<Options> = 4 }
    Empty {}
    List { devices: Vec<Device> = 1 }
    Device { id: String = 1, health: String = 2 }
    Preferred { requests: Vec<PreferredOne> = 1 }
    PreferredOne { available: Vec<String> = 1, must: Vec<String> = 2, size: i32 = 3 }
    Ids { ids: Vec<String> = 1 }
    PerContainer { requests: Vec<Ids> = 1 }
    Needs { responses: Vec<Need> = 1 }
    Need { envs: Map = 1, mounts: Vec<Mount> = 2, devices: Vec<Node> = 3, annotations: Map = 4 }
    Mount { container_path: String = 1, host_path: String = 2, read_only: bool = 3 }
    Node { container_path: String = 1, host_path: String = 2, permissions: String = 3 }
    PodList { pods: Vec<PodResources> = 1 }
    PodResources { name: String = 1, namespace: String = 2, containers: Vec<ContainerResources> = 3 }
    ContainerResources { name: String = 1, devices: Vec<ContainerDevices> = 2 }
    ContainerDevices { resource_name: String = 1, ids: Vec<String> = 2 }
}

/// Three widgets; the kubelet is told to prefer the last ones.
struct Plugin {
    shared: PathBuf,
    lists: Mutex<Vec<mpsc::Sender<Result<Bytes, Status>>>>,
    started: Mutex<Vec<Vec<String>>>,
}

fn list(healthy: usize) -> Bytes {
    let health = |i: usize| if i < healthy { "Healthy" } else { "Unhealthy" };
    let device = |i: usize| Device { id: format!("w{i}"), health: health(i).into() };
    List { devices: (0..3).map(device).collect() }.encode()
}

impl Plugin {
    fn tell(&self, healthy: usize) {
        self.lists.lock().unwrap().retain(|l| l.try_send(Ok(list(healthy))).is_ok());
    }
}

impl Service for Plugin {
    fn call(self: Arc<Self>, method: String, q: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match method.as_str() {
                "v1beta1.DevicePlugin/ListAndWatch" => {
                    let (sender, receiver) = mpsc::channel(16);
                    sender.try_send(Ok(list(3))).unwrap();
                    self.lists.lock().unwrap().push(sender);
                    Answer::Stream(receiver)
                }
                "v1beta1.DevicePlugin/GetPreferredAllocation" => {
                    Answer::unary(q, |q: Preferred| async move {
                        let one = &q.requests[0];
                        let size = usize::try_from(one.size).unwrap();
                        let ids = one.available.iter().rev().take(size).cloned().collect();
                        Ok::<_, Status>(PerContainer { requests: vec![Ids { ids }] })
                    })
                    .await
                }
                "v1beta1.DevicePlugin/Allocate" => {
                    Answer::unary(q, |q: PerContainer| async move {
                        let host_path = self.shared.display().to_string();
                        let need = Need {
                            envs: Map::from([("WIDGETS".to_owned(), q.requests[0].ids.join(","))]),
                            mounts: vec![Mount {
                                container_path: "/widgets".into(),
                                host_path,
                                read_only: true,
                            }],
                            devices: vec![Node {
                                container_path: "/dev/widget".into(),
                                host_path: "/dev/full".into(),
                                permissions: "rw".into(),
                            }],
                            annotations: Map::new(),
                        };
                        Ok::<_, Status>(Needs { responses: vec![need] })
                    })
                    .await
                }
                "v1beta1.DevicePlugin/PreStartContainer" => {
                    Answer::unary(q, |q: Ids| async move {
                        self.started.lock().unwrap().push(q.ids);
                        Ok::<_, Status>(Empty {})
                    })
                    .await
                }
                _ => Answer::unimplemented(&method),
            }
        })
    }
}

fn node_has(lab: &Lab, capacity: &str, allocatable: &str) {
    retry(&format!("{allocatable} of {capacity} widgets"), 60, || {
        let status = &lab.get("node", "n1")["status"];
        let seen = (&status["capacity"][RESOURCE], &status["allocatable"][RESOURCE]);
        if seen == (&json!(capacity), &json!(allocatable)) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn user_of(widgets: u32, script: &str) -> Value {
    json!({"name": "main", "command": ["sh", "-c", script],
        "resources": {"limits": {RESOURCE: widgets.to_string()}}})
}

fn devices_are_given(lab: &Lab) {
    let dir = lab.machine.data(MAIN).join("kubelet/device-plugins");
    let shared = lab.machine.dir().join("widgets");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::write(shared.join("x"), "from the plug-in").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let plugin = Arc::new(Plugin { shared, lists: Mutex::default(), started: Mutex::default() });
    let server = runtime.block_on(async {
        let listener = coracle_grpc::listen(&dir.join("widget.sock")).unwrap();
        let server = tokio::spawn(coracle_grpc::serve(listener, plugin.clone())).abort_handle();
        let kubelet = Channel::unix(&dir.join("kubelet.sock"));
        let mut me = Register {
            version: "v1beta1".into(),
            endpoint: "widget.sock".into(),
            resource_name: RESOURCE.into(),
            options: Some(Options { pre_start_required: true, get_preferred_allocation_available: true }),
        };
        let limit = Some(Duration::from_secs(30));
        let old = Register { version: "v1alpha".into(), ..me.clone() };
        let refused = kubelet.call::<_, Empty>("v1beta1.Registration/Register", &old, limit).await;
        assert!(refused.unwrap_err().message.contains("is not supported by kubelet"));
        me.resource_name = "cpu".into();
        let refused = kubelet.call::<_, Empty>("v1beta1.Registration/Register", &me, limit).await;
        assert!(refused.unwrap_err().message.contains("is invalid"));
        me.resource_name = RESOURCE.into();
        kubelet.call::<_, Empty>("v1beta1.Registration/Register", &me, limit).await.unwrap();
        server
    });
    node_has(lab, "3", "3");

    let script = "echo $WIDGETS; cat /widgets/x; echo; ls /dev/widget; sleep 1000";
    lab.pod("widgets", json!({"containers": [user_of(2, script)]}));
    lab.running("widgets");
    let log = retry("its output", 30, || {
        let log = lab.kubectl("logs widgets");
        if log.lines().count() == 3 { Ok(log) } else { Err(log) }
    });
    assert_eq!(log, "w1,w2\nfrom the plug-in\n/dev/widget\n");
    assert_eq!(*plugin.started.lock().unwrap(), [["w1", "w2"]]);

    let socket = lab.machine.data(MAIN).join("kubelet/pod-resources/kubelet.sock");
    let told: PodList = runtime.block_on(async {
        let agent = Channel::unix(&socket);
        agent.call("v1.PodResourcesLister/List", &Empty {}, Some(Duration::from_secs(30))).await.unwrap()
    });
    let ours = told.pods.iter().find(|p| p.name == "widgets").expect("the pod is listed");
    assert_eq!(ours.containers[0].devices[0].ids, ["w1", "w2"]);

    // The scheduler knows that one is left. What is put on the node beside it is refused there.
    let beside = json!({"nodeName": "n1", "restartPolicy": "Never", "containers": [user_of(2, "true")]});
    lab.pod("beside", beside);
    let pod = lab.ended("beside");
    assert_eq!(pod["status"]["phase"], "Failed");
    let reason = pod["status"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.starts_with("OutOf") || reason == "UnexpectedAdmissionError", "{}", pod["status"]);

    plugin.tell(2);
    node_has(lab, "3", "2");
    server.abort();
    node_has(lab, "3", "0");
    assert_eq!(lab.get("pod", "widgets")["status"]["phase"], "Running", "what runs goes on");
    lab.kubectl("delete pod widgets beside --wait=true");
}
