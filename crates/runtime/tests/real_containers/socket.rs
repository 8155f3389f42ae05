//! The runtime behind its socket: the same traits, in a client's hands.

use coracle_cri::remote::{Job, Wanted};
use coracle_cri::{CriClient, CriServer, StreamServer, StreamUrls};
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::*;

struct Served {
    client: CriClient,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(lab: &Lab) -> Served {
    let path = lab.dir.join("cri.sock");
    let streams = StreamServer::open(lab.runtime.clone()).await.unwrap();
    let server = CriServer::new(lab.runtime.clone(), lab.runtime.clone(), streams, Clock::system());
    let listener = coracle_grpc::listen(&path).unwrap();
    Served { client: CriClient::new(&path, None), task: tokio::spawn(server.serve(listener)) }
}

async fn wait_for(client: &CriClient, id: &str, state: ContainerState) -> ContainerStatus {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let status = client.container_status(id).await.unwrap();
        if status.state == state {
            return status;
        }
        assert!(Instant::now() < end, "{id} does not become {state:?}: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn clients_of_the_socket_have_all_of_it(lab: &Lab) {
    let served = serve(lab).await;
    let client = &served.client;
    assert_eq!(client.version().await.unwrap().runtime_name, "coracle");
    let status = client.status().await.unwrap();
    assert!(status.runtime_not_ready.is_none() && status.network_not_ready.is_none(), "{status:?}");
    assert!(status.supplemental_groups_policy && status.handlers.iter().any(|h| h.name.is_empty()));
    let mut events = client.container_events().await.unwrap();

    let config = lab.sandbox_config("socket");
    let sandbox = client.run_pod_sandbox(config.clone()).await.unwrap();
    let seen = client.pod_sandbox_status(&sandbox).await.unwrap();
    assert!(seen.ready);
    assert_eq!((seen.ips.as_slice(), seen.metadata.name.as_str()), (&["10.9.8.7".to_owned()][..], "socket"));
    let mut container = shell("main", "echo $GREETING; trap 'exit 4' TERM; while :; do sleep 0.1; done");
    container.envs = vec![coracle_cri::v1::KeyValue { key: "GREETING".into(), value: "hello".into() }];
    let id = client.create_container(&sandbox, container, config.clone()).await.unwrap();
    client.start_container(&id).await.unwrap();
    wait_for(client, &id, ContainerState::Running).await;
    let done = client.exec_sync(&id, ["sh", "-c", "id -u; exit 3"].map(str::to_owned).to_vec(), 20).await;
    let done = done.unwrap();
    assert_eq!((done.stdout.as_slice(), done.exit_code), (&b"0\n"[..], 3));

    let filter = ContainerFilter { state: Some(ContainerState::Exited), ..Default::default() };
    assert!(client.list_containers(filter).await.unwrap().iter().all(|c| c.id != id));
    let stats = client.container_stats(&id).await.unwrap();
    assert!(stats.usage.memory_usage_bytes > 0, "{stats:?}");
    assert!(client.pod_sandbox_stats(&sandbox).await.unwrap().usage.cpu_core_nano_seconds > 0);
    let limits = LinuxResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    client.update_container_resources(&id, limits).await.unwrap();
    assert_eq!(client.container_status(&id).await.unwrap().resources.memory_limit_in_bytes, 64 << 20);
    client.reopen_container_log(&id).await.unwrap();
    client.stop_container(&id, 10).await.unwrap();
    let ended = wait_for(client, &id, ContainerState::Exited).await;
    assert_eq!((ended.exit_code, lab.log(&ended)), (4, vec!["stdout F hello".to_owned()]));

    let absent = client.container_status("feedc0de").await.unwrap_err();
    assert!(matches!(absent, CriError::NotFound(_)), "{absent:?}");
    let short = client.container_status(&id[..12]).await.unwrap();
    assert_eq!(short.id, id, "the beginning of an id is enough");
    let odd = PodSandboxConfig { runtime_handler: "kata".into(), ..config };
    let refused = client.run_pod_sandbox(odd).await.unwrap_err().to_string();
    assert_eq!(refused, "failed to get sandbox runtime: no runtime for \"kata\" is configured");

    let images = client.list_images().await.unwrap();
    assert!(images.iter().any(|i| i.repo_tags.iter().any(|t| t == IMAGE)), "{images:?}");
    assert!(client.image_fs_info().await.unwrap().used_bytes > 0);
    client.stop_pod_sandbox(&sandbox).await.unwrap();
    client.remove_pod_sandbox(&sandbox).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < 6 {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
        if event.pod_sandbox_id == sandbox {
            kinds.push((event.container_id == id, event.kind));
        }
    }
    use ContainerEventType::{Created, Deleted, Started, Stopped};
    let want = [
        (false, Started),
        (true, Created),
        (true, Started),
        (true, Stopped),
        (false, Stopped),
        (true, Deleted),
    ];
    assert_eq!(kinds, want);
}

pub async fn streams_over_the_socket_are_had_at_a_url(lab: &Lab) {
    let served = serve(lab).await;
    let pod = lab.sandbox("urls").await;
    let id = lab.run(&pod, shell("main", "sleep 100")).await;
    let exec = ExecRequest {
        container_id: id.clone(),
        command: ["sh", "-c", "read x; echo got $x; exit 6"].map(str::to_owned).to_vec(),
        tty: false,
        stdin: true,
    };
    let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
    let url = served.client.command_url(Job::Exec(exec), wanted).await.unwrap();
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    let protocol = "v5.channel.k8s.io".parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let address = url.split('/').nth(2).unwrap().to_owned();
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request.clone(), stream).await.unwrap();
    socket.send(Message::Binary(b"\0word\n"[..].into())).await.unwrap();
    let (mut out, mut result) = (Vec::new(), String::new());
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data.first() == Some(&1) => out.extend_from_slice(&data[1..]),
            Message::Binary(data) if data.first() == Some(&3) => {
                result = String::from_utf8_lossy(&data[1..]).into_owned();
            }
            _ => {}
        }
    }
    assert_eq!(out, b"got word\n");
    assert!(result.contains("exit status 6"), "{result}");
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let again = tokio_tungstenite::client_async(request, stream).await;
    assert!(again.is_err(), "a URL is good once");
    let both = Wanted { tty: true, ..wanted };
    let refused = served.client.command_url(Job::Attach(id.clone()), both).await.unwrap_err();
    assert!(matches!(refused, CriError::InvalidArgument(_)), "{refused:?}");
    lab.runtime.stop_container(&id, 0).await.unwrap();
    let late = served.client.command_url(Job::Attach(id), Wanted { stderr: false, ..wanted }).await;
    assert!(matches!(late, Err(CriError::FailedPrecondition(_))), "{late:?}");
    lab.remove(&pod).await;
}
