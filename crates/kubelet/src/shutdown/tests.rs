//! Tests of the graceful shutdown: what is decided, and the whole against a bus that plays logind.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use coracle_client::ListOptions;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

use super::*;
use crate::testing::context;

#[track_caller]
fn check(list: &[(i32, i64)], want: &[&[i32]]) {
    let periods: Vec<_> = list
        .iter()
        .map(|(priority, seconds)| ShutdownPeriod { priority: *priority, seconds: *seconds })
        .collect();
    let pods = [-5, 0, 1, 999, 1000, 1_000_000, CRITICAL, CRITICAL + 1000].map(|p| (p, p)).to_vec();
    let got: Vec<Vec<i32>> = group(&periods, pods).into_iter().map(|(_, pods)| pods).collect();
    assert_eq!(got, want);
}

#[test]
fn pods_go_by_priority_into_the_last_period_not_above_them() {
    check(&[(CRITICAL, 10), (0, 20)], &[&[-5, 0, 1, 999, 1000, 1_000_000], &[CRITICAL, CRITICAL + 1000]]);
    check(
        &[(100, 1), (1000, 2), (1_000_000, 3)],
        &[&[-5, 0, 1, 999], &[1000], &[1_000_000, CRITICAL, CRITICAL + 1000]],
    );
    check(&[], &[]);
}

#[test]
fn critical_pods_get_their_part_of_the_whole_period() {
    let period = |priority, seconds| ShutdownPeriod { priority, seconds };
    assert_eq!(periods(30, 10), [period(0, 20), period(CRITICAL, 10)]);
    assert_eq!(periods(0, 0), []);
    assert_eq!(periods(10, 20), []);
}

/// A message of the bus: header fields (code, signature, bytes with their own padding), then the body.
fn message(kind: u8, fields: &[(u8, &str, Vec<u8>)], body: &[u8]) -> Vec<u8> {
    let mut all = vec![b'l', kind, 0, 1];
    all.extend((body.len() as u32).to_le_bytes());
    all.extend(1u32.to_le_bytes());
    all.extend([0; 4]);
    for (code, signature, value) in fields {
        all.resize(all.len().next_multiple_of(8), 0);
        all.extend([*code, signature.len() as u8]);
        all.extend(signature.bytes());
        all.push(0);
        all.extend(value);
    }
    let length = ((all.len() - 16) as u32).to_le_bytes();
    all.splice(12..16, length);
    all.resize(all.len().next_multiple_of(8), 0);
    all.extend(body);
    all
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u32).to_le_bytes().to_vec();
    bytes.extend(value.bytes());
    bytes.push(0);
    bytes
}

/// A reply whose one argument has a signature.
fn reply(to: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let kind = [&[signature.len() as u8], signature.as_bytes(), &[0]].concat();
    message(2, &[(5, "u", to.to_le_bytes().to_vec()), (8, "g", kind)], body)
}

/// Reads a call; its number and name.
fn call(stream: &mut UnixStream) -> (u32, String) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).expect("a call");
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let rest = (number(12) as usize).next_multiple_of(8) + number(4) as usize;
    let mut body = vec![0; rest];
    stream.read_exact(&mut body).expect("the rest");
    let known = ["Hello", "AddMatch", "Inhibit", "InhibitDelayMaxUSec"];
    let said = String::from_utf8_lossy(&body).into_owned();
    let name = known.iter().rev().find(|n| said.contains(**n)).expect("a call that logind knows");
    (number(8), (*name).to_owned())
}

/// Plays logind: gives a lock, says that the machine goes down, and waits until the lock is gone.
fn play(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().expect("a client");
    for answer in ["OK 1234\r\n", "AGREE_UNIX_FD\r\n", ""] {
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).expect("a line");
        }
        stream.write_all(answer.as_bytes()).expect("written");
    }
    let (mut held, lock) = std::io::pipe().expect("a pipe");
    let mut lock = Some(lock);
    loop {
        let (number, name) = call(&mut stream);
        match name.as_str() {
            "Inhibit" => {
                let lock = lock.take().expect("one lock is asked for");
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let fds = [lock.as_fd()];
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
                let bytes = reply(number, "h", &0u32.to_le_bytes());
                sendmsg(&stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).expect("sent");
            }
            "InhibitDelayMaxUSec" => {
                let body = [&[1, b't', 0, 0, 0, 0, 0, 0][..], &3_600_000_000u64.to_le_bytes()].concat();
                stream.write_all(&reply(number, "v", &body)).expect("written");
            }
            "AddMatch" => {
                stream.write_all(&reply(number, "", &[])).expect("written");
                break;
            }
            _ => stream.write_all(&reply(number, "s", &text(":1.1"))).expect("written"),
        }
    }
    let fields = [(3, "s", text("PrepareForShutdown")), (8, "g", vec![1, b'b', 0])];
    stream.write_all(&message(4, &fields, &1u32.to_le_bytes())).expect("written");
    let mut rest = Vec::new();
    held.read_to_end(&mut rest).expect("the lock is given up");
}

async fn pod_when(cx: &Context, name: &str, claim: impl Fn(&Pod) -> bool) -> Arc<Pod> {
    for _ in 0..6000 {
        if let Ok(pod) = cx.client.api::<Pod>().get("default", name).await
            && claim(&pod)
        {
            return pod;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {:?}", cx.client.api::<Pod>().get("default", name).await);
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_waits_until_the_pods_have_ended_and_takes_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let (cx, _api, _runtime, informers) = context(directory.path());
    let options = ListOptions { field_selector: "spec.nodeName=n1".into(), ..ListOptions::default() };
    let pods = Pods::default();
    let (all, informer) = (pods.clone(), informers.filtered::<Pod>("", options));
    let of = cx.clone();
    tokio::spawn(async move { all.run(of, informer).await });
    for (name, priority) in [("low", 0), ("high", 5000)] {
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {
            "nodeName": "n1", "priority": priority, "containers": [{"name": name, "image": "i:1"}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        cx.client.api::<Pod>().create("default", pod).await.expect("created");
        pod_when(&cx, name, |p| phase(p) == Some("Running")).await;
    }
    let listener = UnixListener::bind(directory.path().join("bus")).expect("a socket");
    let logind = tokio::task::spawn_blocking(move || play(&listener));
    tokio::spawn(run(cx.clone(), pods));
    tokio::time::timeout(Duration::from_secs(60), logind)
        .await
        .expect("in time")
        .expect("the lock is given up");
    for name in ["low", "high"] {
        let pod = pod_when(&cx, name, |p| phase(p) == Some("Failed")).await;
        let status = pod.status.clone().expect("a status");
        assert_eq!(status.reason.as_deref(), Some("Terminated"));
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(status.message.as_deref(), Some(message));
        let target = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget");
        assert_eq!(target.and_then(|c| c.reason.as_deref()), Some("TerminationByKubelet"));
    }
    assert_eq!(cx.shutdown.status().as_deref(), Some("node is shutting down"));
    let late = json!({"metadata": {"name": "late", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "late", "image": "i:1"}]}});
    let late: Pod = serde_json::from_value(late).expect("a pod");
    cx.client.api::<Pod>().create("default", late).await.expect("created");
    let late = pod_when(&cx, "late", |p| phase(p) == Some("Failed")).await;
    assert_eq!(late.status.as_ref().and_then(|s| s.reason.as_deref()), Some("NodeShutdown"));
}
